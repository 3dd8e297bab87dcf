"""`evaluate`: measure a model on benchmarks."""
