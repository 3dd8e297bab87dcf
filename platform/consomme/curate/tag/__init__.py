"""Taggers: columns about samples, from text, objects, pictures, or the verdict of a model."""
