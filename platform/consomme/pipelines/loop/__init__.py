"""`loop`: run a chain of verbs from one recipe, in rounds."""
