"""`train`: fine-tune a VLM under Ray Train, all of it or chosen layers."""
