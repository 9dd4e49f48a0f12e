"""`python -m worker`: the worker without the rest of the house."""

import typer

from worker.start import worker

if __name__ == "__main__":
    typer.run(worker)
