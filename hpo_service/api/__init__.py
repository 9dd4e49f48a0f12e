"""HTTP in, HTTP out: turns requests into operations and their results into answers."""
