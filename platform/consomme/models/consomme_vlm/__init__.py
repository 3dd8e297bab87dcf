"""VLMs that no class of transformers holds: other connectors, two encoders, cross-attention.

They are ordinary models of transformers. `registration.register` makes them known to its `Auto`
classes; `consomme.models.imports.import_transformers` calls it, so consomme opens them everywhere.
"""
