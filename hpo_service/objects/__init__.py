"""Where the bytes of artifacts lie: in a folder or in a bucket, under keys of ours, never under a caller's names."""
