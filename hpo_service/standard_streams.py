"""Standard input, output and error that are there, whatever a command was started with.

A descriptor that is closed (`hpo run … <&-`) is the number of the next pipe or file that is opened, and a child takes
that for its standard input.
"""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Have /dev/null in the place of each that is closed. Called before anything else is opened."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, "r", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def say_no_more() -> None:
    """What is still to be said on standard output goes nowhere, at the end of the process, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
