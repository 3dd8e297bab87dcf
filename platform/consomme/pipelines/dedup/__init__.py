"""`dedup`: find duplicate pictures, and write a view of the best of each."""
