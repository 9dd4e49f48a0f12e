"""The domain: frozen values and pure rules. No I/O, no clock, no random numbers but those of new keys."""
