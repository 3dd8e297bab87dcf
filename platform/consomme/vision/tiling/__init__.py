"""Cut pictures of any size into what a vision encoder takes: plans from sizes alone, and the cuts.

Pillow only, and no model: a plan follows from width and height, so the number of image tokens of a
picture is known from its file header. `consomme.models.tiling` makes a processor of transformers of
a tiling; `registry` knows all of them.
"""
