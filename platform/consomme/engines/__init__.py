"""Engines that run a model inside an actor; the only package that imports vLLM."""
