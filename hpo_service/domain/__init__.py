"""What the words mean: frozen values and pure rules. No IO, no clock, no randomness of its own."""
