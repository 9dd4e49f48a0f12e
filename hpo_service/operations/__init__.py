"""The operations, a function each: what people do with studies, workers with trials, and timers with leases."""
