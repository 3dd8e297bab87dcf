"""The ledger: run folders, attempts that fence each other, commit records, units in flight."""
