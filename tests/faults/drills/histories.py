"""What the workers saw: their histories, read back as calls with an outcome each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """
    OK        acknowledged at least once
    UNKNOWN   never acknowledged, and not every try was refused: done or not, but not in part
    REFUSED   every try was refused: it must have had no effect
    """

    OK = "ok"
    UNKNOWN = "unknown"
    REFUSED = "refused"


@dataclass
class Try:
    """One HTTP request. ended and at are None and "invoke" for one whose worker was killed."""

    began: float
    ended: float | None = None
    at: str = "invoke"
    line: dict[str, Any] = field(default_factory=dict)


@dataclass
class Call:
    """One call, sent once or more; a call inside a batch has the tries of its batch."""

    key: str
    op: str
    worker_id: str
    body: dict[str, Any]
    number: int | None
    tries: list[Try]
    in_batch: int | None = None

    @property
    def attempt(self) -> int:
        attempt: int = self.body["attempt"]
        return attempt

    @property
    def outcome(self) -> Outcome:
        if any(self.succeeded(one) for one in self.tries):
            return Outcome.OK
        if all(self.refused(one) for one in self.tries):
            return Outcome.REFUSED
        return Outcome.UNKNOWN

    def succeeded(self, one: Try) -> bool:
        if one.at == "mixed" and self.in_batch is not None:
            return bool(one.line["statuses"][self.in_batch] == 200)
        return one.at == "ok"

    def refused(self, one: Try) -> bool:
        return one.at == "fail" or (one.at == "mixed" and not self.succeeded(one))


@dataclass
class History:
    calls: list[Call]
    statuses: dict[int, int]

    def of(self, *ops: str) -> Iterator[Call]:
        return (call for call in self.calls if call.op in ops)

    @property
    def acknowledged(self) -> int:
        return sum(call.outcome is Outcome.OK for call in self.calls)

    @property
    def unknown(self) -> int:
        return sum(call.outcome is Outcome.UNKNOWN for call in self.calls)

    @property
    def retried(self) -> int:
        return sum(len(call.tries) > 1 for call in self.calls)


def read_histories(paths: Iterable[Path]) -> History:
    calls: dict[str, Call] = {}
    statuses: dict[int, int] = {}
    for path in paths:
        for line in _lines(path):
            key = line["key"]
            if line["at"] == "invoke":
                if key not in calls:
                    calls[key] = Call(key, line["op"], key.split(".")[0], line["body"], _number(line["path"]), [])
                calls[key].tries.append(Try(line["t"]))
            else:
                last = calls[key].tries[-1]
                last.ended, last.at, last.line = line["t"], line["at"], line
                statuses[line["status"]] = statuses.get(line["status"], 0) + 1
    return History([one for call in calls.values() for one in _taken_apart(call)], statuses)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a worker killed while it wrote


def _number(path: str) -> int | None:
    verb = path.rsplit("/", 1)[-1].split(":")[0]
    return int(verb) if verb.isdigit() else None


def _taken_apart(call: Call) -> Iterator[Call]:
    if call.op == "tell" and "next" in call.body:
        result, ask = dict(call.body), call.body["next"]
        del result["next"]
        yield replace(call, body=result)
        tries = [replace(one, line={**one.line, "digest": one.line.get("next_digest")}) for one in call.tries]
        yield Call(f"{call.key}.next", "ask", call.worker_id, ask, None, tries)
        return
    if call.op != "batch":
        yield call
        return
    for index, body in enumerate(call.body["calls"]):
        yield Call(call.key, body["call"], call.worker_id, body, body["number"], call.tries, in_batch=index)
