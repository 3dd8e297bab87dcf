"""Figures about models: how good, how sure, and never computed twice."""
