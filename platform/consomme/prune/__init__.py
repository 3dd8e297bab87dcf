"""Remove layers of a language model that matter least, and write what is left as a model folder."""
