"""How a model runs inside an actor; the only package that imports vLLM."""
