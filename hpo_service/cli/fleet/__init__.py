"""Fleets: workers started on an engine, which restarts them (one file per engine). The server knows no fleets."""
