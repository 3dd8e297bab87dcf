"""Assemble a VLM from a vision encoder, a connector and a language model."""
