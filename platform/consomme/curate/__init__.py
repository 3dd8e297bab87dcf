"""Decisions about data: what to keep, what a caption may look like, which prompts ask for it."""
