"""What callers can do, a function each: people with studies, workers with trials, time with leases."""
