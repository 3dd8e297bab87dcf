"""`soup`: average fine-tuned models, with searches that choose the ingredients."""
