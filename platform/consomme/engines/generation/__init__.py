"""Engines that generate text: transformers, vLLM, or an OpenAI-compatible server."""
