"""What callers can do, a method each: people with studies, workers with trials, time with leases."""
