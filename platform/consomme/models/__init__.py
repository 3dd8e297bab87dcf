"""VLMs: assembly, loading, chat templates, LoRA, weights."""
