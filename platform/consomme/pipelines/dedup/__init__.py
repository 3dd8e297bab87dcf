"""`dedup`: find copies of pictures and keep the best of each."""
