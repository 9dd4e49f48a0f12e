"""`hpo worker`: the worker's own command, so that a machine that only trains can run it as `python -m hpo_worker`."""

from hpo_worker.start import worker

__all__ = ["worker"]
