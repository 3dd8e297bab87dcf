"""Data curation: keep policies, taggers, deduplication, and captions."""
