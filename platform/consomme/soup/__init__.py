"""Averages of fine-tuned models: which ingredients go in, and how they are mixed."""
