"""Real processes, real databases, real faults: the service is driven from outside only, over HTTP and signals."""
