"""The page that shows what a run did: one HTML file that needs nothing else."""
