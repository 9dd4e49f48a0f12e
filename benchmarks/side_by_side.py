"""The service beside every other contestant, at histories of several lengths, in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from contestants import Contestant
from loads import Load
from measured_rounds import Pace, Row, Stand, in_turns, stand

PART, CROWD = "side by side", "many workers"


def compared(
    run: str,
    part: str,
    all_of_them: Sequence[Contestant],
    loads: Sequence[Load],
    histories: Sequence[int],
    pace: Pace,
    rounds: int,
) -> Iterator[list[Row]]:
    """The rows of one load and history after the other."""
    for load in loads:
        for history in histories:
            able = [one for one in all_of_them if history <= one.most_history]
            with contextlib.ExitStack() as running:
                stands = [running.enter_context(stand(one, load, history, pace)) for one in able]
                in_turns(stands, rounds)
                yield [row(run, part, one, f"{pace.workers} workers") for one in stands]


def row(run: str, part: str, of: Stand, setting: str = "") -> Row:
    rounds = tuple(asdict(figures) for figures in of.rounds)
    return Row(run, part, of.contestant.name, of.load.name, of.history, setting, rounds)
