"""`download`: fetch the pictures of URL lists and write shards."""
