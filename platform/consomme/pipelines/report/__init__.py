"""`report`: draw the report of a finished run."""
