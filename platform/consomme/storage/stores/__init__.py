"""Storage backends behind one protocol: local disk, S3, GCS."""
