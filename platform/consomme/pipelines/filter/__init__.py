"""`filter`: select samples by a keep policy, and write a view of them."""
