"""`sweep`: train and evaluate over values of any keys of a train recipe."""
