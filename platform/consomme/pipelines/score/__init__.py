"""`score`: perplexity and image gain of every caption."""
