"""`filter`: decide exactly which samples stay, and write a view of them."""
