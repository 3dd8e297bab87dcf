"""Taggers: columns about samples, computed from text, by a vision-language model, or a judge."""
