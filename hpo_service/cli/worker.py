"""`hpo worker`: the worker's own command, so that a machine that only trains can run it as `python -m worker`."""

from worker.start import worker

__all__ = ["worker"]
