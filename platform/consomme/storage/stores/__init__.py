"""Where bytes lie: local disk, S3, GCS, behind one protocol."""
