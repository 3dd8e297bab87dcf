"""Pictures before a model sees them: the one decode policy (numpy and Pillow only)."""
