"""`prepare`: write the embedded data sets as shards."""
