"""One worker of the load: asks, reports, tells by plain HTTP, and writes what it did and what it was answered.

A process of its own with nothing but the standard library, so that many can be started and killed. Every line of its
history says when an HTTP call began or ended: `invoke`, then `ok`, `fail` (refused: it must have had no effect) or
`unknown` (no answer, or 503: it may have been done or not). A call without an `ok` or `fail` is repeated, as it was,
until it gets one. A worker that was killed leaves an `invoke` without an end: unknown too.

What it reports and tells follows from trial, attempt and step alone, so that anybody can check whose value it is.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any


def report_value(number: int, attempt: int, step: int) -> float:
    return number + attempt / 1024 + step / 1048576


def told_value(number: int, attempt: int) -> float:
    """Larger for some trials than for others, in no order, and never the same twice."""
    return (number * 7919 % 10007) + number / 16384 + attempt / 268435456


@dataclass(frozen=True)
class Orders:
    """What one incarnation of a worker is to do."""

    worker_id: str
    incarnation: int
    ports: list[int]
    study: str
    history: str
    host: str = "127.0.0.1"
    token: str = ""
    reports: int = 3
    twice: bool = False  # send every call a second time, whatever was answered
    think_seconds: float = 0.004
    timeout_seconds: float = 8.0
    wait_seconds: float = 1.0
    forgets_every: int = 0  # trials whose number is divisible by this are never heard of again
    fields: dict[str, Any] = field(default_factory=dict)


class Worker:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.random = random.Random(f"{orders.worker_id}/{orders.incarnation}")
        self._calls = self._asked = 0
        self._parent = os.getppid()
        self._file = os.open(orders.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def run(self) -> None:
        """Work until the study gives nothing out any more."""
        trials = f"/v1/studies/{self.orders.study}/trials"
        while True:
            body = {**self._ask(), "wait_seconds": self.orders.wait_seconds}
            status, answer = self._until_answered("ask", f"{trials}:ask", body)
            if status != 200:
                raise SystemExit(f"ask: {status} {answer}")
            if not answer["trials"] and answer["study_state"] not in ("ACTIVE", "PAUSED"):
                return
            held = answer["trials"]
            while held:
                trial = held.pop()
                held += self._train(f"{trials}/{trial['number']}", trial["number"], trial["attempt"])

    def _ask(self) -> dict[str, Any]:
        self._asked += 1
        return {
            "worker_id": self.orders.worker_id,
            "request_id": f"{self.orders.worker_id}.{self.orders.incarnation}.{self._asked}",
            "count": 2 if self.random.random() < 0.1 else 1,
        }

    def _train(self, path: str, number: int, attempt: int) -> list[dict[str, Any]]:
        """The trials that were asked for with the result."""
        if self.orders.forgets_every and number % self.orders.forgets_every == 0:
            return []
        steps = [{"step": step, "value": report_value(number, attempt, step)} for step in range(self.orders.reports)]
        chance = self.random.random()
        last_with_tell = chance < 0.2
        for step in steps[:-1] if last_with_tell else steps:
            self._think()
            status, _ = self._until_answered("report", f"{path}:report", {"attempt": attempt, "reports": [step]})
            if status != 200:
                return []
        self._think()
        tell = self._result(number, attempt)
        if chance > 0.97:
            self._until_answered("release", f"{path}:release", {"attempt": attempt})
        elif last_with_tell:
            common = {"study": self.orders.study, "number": number, "attempt": attempt}
            calls = [{**common, "call": "report", "reports": steps[-1:]}, {**common, "call": "tell", **tell}]
            self._until_answered("batch", "/v1/trials:batch", {"calls": calls})
        else:
            following = {"next": self._ask()} if chance < 0.6 else {}
            status, answer = self._until_answered("tell", f"{path}:tell", {"attempt": attempt, **tell, **following})
            if status == 200 and following:
                given: list[dict[str, Any]] = answer["next"]["trials"]
                return given
        return []

    def _result(self, number: int, attempt: int) -> dict[str, Any]:
        if number % 19 == 3:
            return {"state": "FAIL", "reason": f"diverged in attempt {attempt}"}
        state = "PRUNED" if number % 11 == 5 else "COMPLETE"
        return {"state": state, "values": [told_value(number, attempt)]}

    def _think(self) -> None:
        time.sleep(self.random.random() * 2 * self.orders.think_seconds)

    def _until_answered(self, op: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Repeat one call until it is done or refused, on whatever server answers."""
        self._calls += 1
        key = f"{self.orders.worker_id}.{self.orders.incarnation}.{self._calls}"
        tries = 0
        while True:
            if os.getppid() != self._parent:
                raise SystemExit("the drill is gone")
            outcome, status, answer = self._once(key, op, path, body)
            if outcome != "unknown":
                if self.orders.twice:
                    self._once(key, op, path, body)
                return status, answer
            tries += 1
            time.sleep(min(0.02 * 2**tries, 0.3) * self.random.random())

    def _once(self, key: str, op: str, path: str, body: dict[str, Any]) -> tuple[str, int, Any]:
        port = self.random.choice(self.orders.ports)
        self._write({"at": "invoke", "key": key, "op": op, "path": path, "body": body})
        status, text = self._send(port, path, json.dumps(body))
        answer: Any = json.loads(text) if text else None
        if status == 0 or status == 503:
            outcome = "unknown"
        elif op == "batch" and status in (200, 207):
            # One transaction, but each call in it may be refused by itself.
            outcome = "ok" if all(result["status"] == 200 for result in answer["results"]) else "mixed"
        else:
            outcome = "ok" if status == 200 else "fail"
        line: dict[str, Any] = {"at": outcome, "key": key, "status": status}
        if outcome == "ok" and op in ("ask", "tell"):
            given = answer if op == "ask" else answer.get("next")
            if given is not None:
                line["grants"] = [[trial["number"], trial["attempt"]] for trial in given["trials"]]
                line["next_digest"] = _digest(given)
            line["digest"] = _digest({name: value for name, value in answer.items() if name != "next"})
        if outcome == "mixed":
            line["statuses"] = [result["status"] for result in answer["results"]]
        if outcome == "fail" or status == 503:
            line["code"] = answer.get("code") if isinstance(answer, dict) else None
        self._write(line)
        return outcome, status, answer

    def _send(self, port: int, path: str, body: str) -> tuple[int, bytes]:
        """The status and the body of the answer; 0 when there was none."""
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection(self.orders.host, port, timeout=self.orders.timeout_seconds)
            self._connections[port] = connection
        try:
            headers = {"Content-Type": "application/json"}
            if self.orders.token:
                headers["Authorization"] = f"Bearer {self.orders.token}"
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            json.loads(text)  # an answer that was cut off is none
            return answer.status, text
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            return 0, b""

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps({"t": time.monotonic(), **line}, separators=(",", ":"))
        os.write(self._file, text.encode() + b"\n")


def _digest(answer: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:16]


if __name__ == "__main__":
    Worker(Orders(**json.loads(sys.argv[1]))).run()
