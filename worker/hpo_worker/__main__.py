"""`python -m hpo_worker`: the worker without the rest of the house."""

import typer

from hpo_worker.start import worker

if __name__ == "__main__":
    typer.run(worker)
