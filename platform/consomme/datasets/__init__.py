"""Embedded data sets: emoji pictures, rendered scenes with exact ground truth, web noise."""
