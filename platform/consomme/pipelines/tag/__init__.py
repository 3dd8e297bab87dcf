"""`tag`: columns about samples, kept beside them."""
