"""One file per verb: a recipe and `run(recipe) -> Manifest`; with ops, all that knows Ray."""
