"""The live view shows where a study stands, whatever the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from hpo_service.cli.live_view import LiveDisplay, Snapshot, line, seconds_left, view
from tests.cli.canned import a_round, a_study, a_trial

RUNNING = a_study(
    state="ACTIVE",
    limits={"trials": 120, "running": None, "seconds": None, "target": None, "attempts": 3},
    counts={"WAITING": 0, "RUNNING": 2, "COMPLETE": 59, "PRUNED": 0, "FAIL": 1},
    narrowing={"rounds": 3, "trials_per_round": 40, "keep": 0.2, "expand": True},
    rounds=[a_round(0), a_round(1, learning_rate=(1e-3, 1e-1))],
)
TRAINING = a_trial(60, 0.5, reports=12, state="RUNNING", values=None)


def shown(snapshot, width=100):
    written = io.StringIO()
    Console(file=written, width=width).print(view(snapshot, "http://127.0.0.1:1234"))
    return written.getvalue()


def test_the_view_has_the_bar_the_best_the_ranges_of_each_round_what_runs_and_the_time_left():
    text = shown(Snapshot(RUNNING, [TRAINING], elapsed_seconds=30, seconds_left=31))

    for part in (
        "mnist  ACTIVE  maximized  2 of 3 rounds",
        "60/120 trials (1 failed)",
        "30 s, about 31 s left",
        "best so far  0.83  trial 7  learning_rate 0.0092",
        "1e-6 … 0.01",
        "0.001 … 0.1",
        "trial 60  epoch 12 of 50",
        "http://127.0.0.1:1234/dashboard",
    ):
        assert part in text


def test_the_view_stands_a_study_without_anything_yet():
    empty = a_study(
        state="ACTIVE", best=None, rounds=[a_round(0)], counts=dict.fromkeys(RUNNING["counts"], 0), objective=None
    )

    assert "none yet" in shown(Snapshot(empty, []))


def test_a_line_says_it_all_for_a_log_file():
    assert line(Snapshot(RUNNING, [], 30, 31)) == (
        "mnist: ACTIVE, 60/120 trials (1 failed), 2 of 3 rounds, best 0.83 (trial 7, maximized), "
        "2 running, about 31 s left"
    )


def test_without_a_terminal_there_are_plain_lines_only_when_something_happened():
    written = io.StringIO()
    console = Console(file=written, width=200)
    with LiveDisplay("http://127.0.0.1:1234", console) as display:
        for _ in range(5):
            display.show(Snapshot(RUNNING))
        display.show(Snapshot({**RUNNING, "state": "PAUSED"}))

    assert [text.split(",")[0] for text in written.getvalue().splitlines()] == ["mnist: ACTIVE", "mnist: PAUSED"]


def test_the_time_left_follows_the_pace_of_this_run():
    # 60 are finished, 20 of them in the 10 seconds we have watched: 60 more take 30 s
    assert seconds_left(RUNNING, elapsed=10, finished=20) == 30


def test_nobody_knows_the_time_left_before_a_trial_finished_or_without_a_limit():
    endless = {**RUNNING, "limits": {**RUNNING["limits"], "trials": None}}

    assert seconds_left(RUNNING, elapsed=10, finished=0) is None
    assert seconds_left(endless, elapsed=10, finished=5) is None
