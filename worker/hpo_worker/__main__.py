"""`python -m hpo_worker`: the command `hpo worker` without the rest of `hpo`."""

import os
import sys

import typer

from hpo_service.environment import faults
from hpo_service.standard_streams import open_standard_streams
from hpo_worker.start import worker

if __name__ == "__main__":
    open_standard_streams()
    if "--help" not in sys.argv and (wrong := faults(os.environ)):
        sys.stderr.write("\n".join(wrong) + "\n")
        sys.exit(2)
    typer.run(worker)
