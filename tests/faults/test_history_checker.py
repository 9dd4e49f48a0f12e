"""The checker itself: a sound history passes, and every way to lose, double or make up something is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drills.histories import read_histories
from drills.history_checker import Checker, RecordRead

Lines = list[dict[str, Any]]


def exchange(when: float, key: str, path: str, body: dict[str, Any], **answer: Any) -> Lines:
    """One request and its answer, half a second later."""
    op = path.rsplit(":", 1)[-1]
    return [
        {"t": when, "at": "invoke", "key": key, "op": op, "path": path, "body": body},
        {"t": when + 0.5, "key": key, "at": "ok", "status": 200, **answer},
    ]


def asked(when: float, key: str, *grants: tuple[int, int]) -> Lines:
    body = {"worker_id": key.split(".")[0], "request_id": key, "count": 1}
    given = [list(grant) for grant in grants]
    return exchange(when, key, "/v1/studies/s/trials:ask", body, grants=given, digest=str(given))


def reported(when: float, key: str, number: int, attempt: int, value: float) -> Lines:
    body = {"attempt": attempt, "reports": [{"step": 0, "value": value}]}
    return exchange(when, key, f"/v1/studies/s/trials/{number}:report", body)


def told(when: float, key: str, number: int, attempt: int, value: float, **answer: Any) -> Lines:
    body = {"attempt": attempt, "state": "COMPLETE", "values": [value]}
    return exchange(when, key, f"/v1/studies/s/trials/{number}:tell", body, **{"digest": f"{value}", **answer})


def a_sound_history() -> Lines:
    """w1 dies in trial 0 at t = 2; its lease of 1 s runs out; w2 finishes both trials."""
    return [
        *asked(0, "w1.1.1", (0, 1)),
        *reported(1, "w1.1.2", 0, 1, 0.1),
        *asked(1, "w2.1.1", (1, 1)),
        *told(2, "w2.1.2", 1, 1, 11.0),
        *asked(4, "w2.1.3", (0, 2)),
        *reported(5, "w2.1.4", 0, 2, 0.2),
        *told(6, "w2.1.5", 0, 2, 10.0),
        *asked(7, "w2.1.6"),
    ]


def a_sound_record() -> RecordRead:
    def trial(number: int, attempt: int, value: float, reports: Lines) -> dict[str, Any]:
        return {
            "number": number,
            "state": "COMPLETE",
            "values": [value],
            "attempt": attempt,
            "reason": None,
            "params": {"x": value},
            "reports": reports,
        }

    return RecordRead(
        study={
            "state": "COMPLETED",
            "limits": {"trials": 2, "attempts": 3},
            "lease_seconds": 1,
            "counts": {"WAITING": 0, "RUNNING": 0, "COMPLETE": 2, "PRUNED": 0, "FAIL": 0},
            "best": {"number": 1, "values": [11.0]},
        },
        trials=[trial(0, 2, 10.0, [{"step": 0, "value": 0.2}]), trial(1, 1, 11.0, [])],
        attempts={
            0: [
                {"attempt": 1, "worker_id": "w1", "end": "expired"},
                {"attempt": 2, "worker_id": "w2", "end": "told"},
            ],
            1: [{"attempt": 1, "worker_id": "w2", "end": "told"}],
        },
        exported=[{"number": 0}, {"number": 1}],
    )


def violations(folder: Path, lines: Lines, record: RecordRead) -> list[str]:
    paths = []
    for worker in ("w1", "w2", "w3"):
        paths.append(folder / f"{worker}.jsonl")
        its = sorted((line for line in lines if line["key"].startswith(worker)), key=lambda line: line["t"])
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in its))
    return Checker(read_histories(paths), record).violations()


def test_a_sound_history_passes(tmp_path: Path) -> None:
    assert violations(tmp_path, a_sound_history(), a_sound_record()) == []


def test_a_call_without_an_answer_may_be_there_or_not(tmp_path: Path) -> None:
    lines = [line for line in a_sound_history() if not (line["key"] == "w2.1.4" and line["at"] == "ok")]
    there, absent = a_sound_record(), a_sound_record()
    absent.trials[0]["reports"] = []
    assert violations(tmp_path, lines, there) == []
    assert violations(tmp_path, lines, absent) == []


def _record(change: Callable[[RecordRead], object]) -> Callable[[Lines, RecordRead], object]:
    return lambda _lines, record: change(record)


def _lines(*more: Lines) -> Callable[[Lines, RecordRead], object]:
    return lambda lines, _record: [lines.extend(some) for some in more]


WRONGS: dict[str, tuple[str, Callable[[Lines, RecordRead], object]]] = {
    "another value": (
        "acknowledged results are recorded",
        _record(lambda record: record.trials[1].update(values=[12.0])),
    ),
    "a trial gone": (
        "acknowledged results are recorded",
        _record(lambda record: (record.trials.pop(), record.attempts.pop(1))),
    ),
    "a report gone": (
        "acknowledged reports are recorded",
        _record(lambda record: record.trials[0].update(reports=[])),
    ),
    "two results": ("no trial has two acknowledged results", _lines(told(7, "w3.1.1", 1, 1, 13.0))),
    "one attempt to two": ("no attempt is given to two requests", _lines(asked(1.2, "w3.1.1", (1, 1)))),
    "a grant gone": ("acknowledged grants are recorded", _lines(asked(8, "w3.1.1", (5, 1)))),
    "a grant from nowhere": (
        "acknowledged grants are recorded",
        _record(lambda record: record.attempts[1].append({"attempt": 2, "worker_id": "w3", "end": None})),
    ),
    "a gap": (
        "numbers have no gap",
        _record(
            lambda record: (record.trials[1].update(number=3), record.attempts.update({3: record.attempts.pop(1)}))
        ),
    ),
    "left running": (
        "nothing is left unfinished",
        _record(lambda record: record.trials[1].update(state="RUNNING", values=None)),
    ),
    "one too many": ("limits are kept", _record(lambda record: record.study["limits"].update(trials=1))),
    "too many attempts": ("limits are kept", _record(lambda record: record.study["limits"].update(attempts=1))),
    "not the best": (
        "best is the best",
        _record(lambda record: record.study["best"].update(number=0, values=[10.0])),
    ),
    "a report of an earlier attempt": (
        "calls took effect wholly or not at all",
        _record(lambda record: record.trials[0].update(reports=[{"step": 0, "value": 0.1}])),
    ),
    "a result that nobody told": (
        "calls took effect wholly or not at all",
        _record(lambda record: record.trials[0].update(values=[10.5])),
    ),
    "a wrong count": (
        "each result counts once",
        _record(lambda record: record.study["counts"].update(COMPLETE=3)),
    ),
    "a row twice": ("each result counts once", _record(lambda record: record.exported.append({"number": 1}))),
    "a draw twice": (
        "each result counts once",
        _record(lambda record: record.trials[0].update(params=record.trials[1]["params"])),
    ),
    "a stale report": ("a stale holder is refused", _lines(reported(5, "w1.1.3", 0, 1, 0.1))),
    "stolen": ("no lease ends early", _lines(reported(3.7, "w1.1.3", 0, 1, 0.1))),
    "another answer": (
        "a repeated call gets the same answer",
        _lines(told(6.8, "w2.1.5", 0, 2, 10.0, digest="another")),
    ),
    "a repetition refused": (
        "a repeated call gets the same answer",
        _lines(told(6.8, "w2.1.5", 0, 2, 10.0, at="fail", status=409)),
    ),
    "done, unanswered, and refused when repeated": (
        "a repeated call gets the same answer",
        lambda lines, _record: (
            lines.remove(next(line for line in lines if line["key"] == "w2.1.5" and line["at"] == "ok")),
            lines.extend(told(6.8, "w2.1.5", 0, 2, 10.0, at="fail", status=409)),
        ),
    ),
    "a 500": ("every answer is documented", _lines(told(8, "w3.1.1", 1, 1, 11.0, at="fail", status=500))),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_wrong_is_found(wrong: str, tmp_path: Path) -> None:
    check, change = WRONGS[wrong]
    lines, record = a_sound_history(), copy.deepcopy(a_sound_record())
    change(lines, record)
    assert check in {violation.split(":")[0] for violation in violations(tmp_path, lines, record)}
