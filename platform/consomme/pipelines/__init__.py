"""One file per verb: a recipe and `run(recipe) -> Manifest`; the only place, with ops, that knows Ray."""
