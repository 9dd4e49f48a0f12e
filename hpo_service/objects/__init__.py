"""Storage of artifacts' bytes: in a folder or a bucket, under keys that we generate, never under a caller's names."""
