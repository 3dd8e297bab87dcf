"""Inspect runs from outside: status and verification, from storage alone."""
