"""`tag`: compute columns about samples, stored in sidecar files."""
