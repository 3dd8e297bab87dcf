"""`prune`: remove the layers of a language model that matter least."""
