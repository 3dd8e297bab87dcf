"""Keep policies: exact, global selections of samples by columns of scores."""
