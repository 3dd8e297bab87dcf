"""`soup`: average fine-tuned models, choosing what goes in."""
