"""Processors of transformers that cut pictures by a tiling of `consomme.vision.tiling`.

`registered_transformers` registers them with the Auto classes. A program that is not consomme's
calls it once, and then opens folders with such a processor by `AutoProcessor.from_pretrained`.
"""
