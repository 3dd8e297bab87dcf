"""The ledger: run folders, attempts with fencing, commit records, notes on units in flight."""
