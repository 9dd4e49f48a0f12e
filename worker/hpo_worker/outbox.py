"""What a worker still has to send: reports and results by trial, kept until the server has taken them.

No I/O here: `Outbox.calls` returns what is due, `heartbeat.send` sends it, `Outbox.take` processes the answers. Times
are a monotonic clock's seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpo_service.client import Json, write_json

LONGEST_FLUSH = 1.0
FLUSH_WHEN_PRUNED = 0.1  # until its report arrives, a trial that is to be pruned trains on
REPORTS_IN_A_CALL = 200
BYTES_IN_A_CALL = 256 * 1024  # of the 1 MiB that a body may have
GONE = frozenset({"lease_lost", "trial_finished", "result_conflict", "not_found"})


def flush_interval(lease_seconds: float, *, pruned: bool) -> float:
    """Seconds for which the reports of fast epochs are collected into one call."""
    return min(FLUSH_WHEN_PRUNED if pruned else LONGEST_FLUSH, lease_seconds / 3)


class QueuedReport(NamedTuple):
    """An intermediate value in the form in which it is sent, and its size in bytes."""

    body: Json
    size: int


@dataclass(eq=False)
class HeldJob:
    """A trial this worker holds, or the sealed test (`number` is None then).

    reports: not yet sent, by step; reported: whether there was any; result: the body of its tell once it is known;
    told: the trial as the server returned it for the tell; lost: the error code by which the trial was lost;
    is_resolved: nothing is left to send, since the result was taken, or the trial was lost or dropped.
    """

    study: str
    number: int | None
    attempt: int
    lease_seconds: float
    flush_seconds: float
    renewed_at: float
    sent_at: float
    dataset_sha256: str | None = None  # of the dataset that the built-in network trains it on
    reports: dict[int, QueuedReport] = field(default_factory=dict)
    reported: bool = False
    result: Json | None = None
    told: Json | None = None
    stop_reason: str | None = None
    lost: str | None = None
    is_resolved: bool = False

    def due_at(self) -> float:
        """When the next call about it is to be made."""
        if self.result is not None:
            return self.sent_at
        beat = self.renewed_at + self.lease_seconds / 3
        return min(beat, self.sent_at + self.flush_seconds) if self.reports else beat


@dataclass(frozen=True)
class Call:
    """One worker call: `verb` is report, heartbeat or tell; `reports` those that it carries."""

    job: HeldJob
    verb: str
    body: Json
    size: int = 200
    reports: tuple[QueuedReport, ...] = ()

    def in_batch(self) -> Json:
        return {"study": self.job.study, "number": self.job.number, "call": self.verb, **self.body}


class Outbox:
    """The jobs this worker holds. The training thread puts in, the heartbeat thread takes out."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: list[HeldJob] = []

    def hold(self, job: HeldJob) -> None:
        with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()

    def report(self, job: HeldJob, step: int, value: float, metrics: Mapping[str, Any] | None = None) -> None:
        """Queue a report; raise TypeError or ValueError for metrics that no report can carry."""
        body: Json = {"step": step, "value": value} | ({"metrics": dict(metrics)} if metrics else {})
        size = check_size(f"the metrics of step {step}", body)
        with self.changed:
            job.reports[step] = QueuedReport(body, size)
            job.reported = True
            self.changed.notify_all()

    def finish(self, job: HeldJob, result: Json) -> None:
        """Queue the result; it is told after the reports."""
        with self.changed:
            job.result = result
            self.changed.notify_all()

    def drop(self, job: HeldJob) -> None:
        with self.changed:
            job.is_resolved = True
            self._forget_resolved()

    def wait_until_resolved(self, job: HeldJob) -> None:
        with self.changed:
            self.changed.wait_for(lambda: job.is_resolved)

    def due_at(self) -> float | None:
        """When the next call is to be made; None: nothing is held."""
        return min((job.due_at() for job in self.jobs), default=None)

    def calls(self, now: float) -> list[Call]:
        """The calls that are due, in the order in which they are to be made."""
        with self.changed:
            return [call for job in self.jobs if job.due_at() <= now for call in _calls(job)]

    def take(self, call: Call, status: int, body: Json, sent_at: float) -> None:
        """Process the answer to a call that was made at `sent_at`."""
        with self.changed:
            _take(call, status, body, sent_at)
            self._forget_resolved()

    def _forget_resolved(self) -> None:
        self.jobs = [job for job in self.jobs if not job.is_resolved]
        self.changed.notify_all()


def check_size(what: str, body: Mapping[str, Any]) -> int:
    """The size in bytes as it will be sent. Raise TypeError for what has no form in JSON, ValueError for too much."""
    size = len(write_json(body))
    if size > BYTES_IN_A_CALL:
        raise ValueError(f"{what} take {size} bytes; at most {BYTES_IN_A_CALL} are sent")
    return size


def _calls(job: HeldJob) -> list[Call]:
    attempt: Json = {"attempt": job.attempt}
    trained: Json = attempt if job.dataset_sha256 is None else {**attempt, "dataset_sha256": job.dataset_sha256}
    calls = [
        Call(
            job,
            "report",
            {**trained, "reports": [report.body for report in some]},
            sum(report.size for report in some),
            tuple(some),
        )
        for some in _portions(job)
    ]
    if job.result is not None:
        calls.append(Call(job, "tell", {**trained, **job.result}))
    return calls or [Call(job, "heartbeat", attempt)]


def _portions(job: HeldJob) -> Iterator[list[QueuedReport]]:
    portion: list[QueuedReport] = []
    size = 0
    for report in job.reports.values():
        if portion and (len(portion) == REPORTS_IN_A_CALL or size + report.size > BYTES_IN_A_CALL):
            yield portion
            portion, size = [], 0
        portion.append(report)
        size += report.size
    if portion:
        yield portion


def _take(call: Call, status: int, body: Json, sent_at: float) -> None:
    job = call.job
    job.sent_at = sent_at
    # Once there is a result, only the answer to the tell decides: a report that is sent again, because the answer
    # to report and tell was lost, is refused since this very tell has finished the trial.
    decides = call.verb == "tell" or job.result is None
    if decides and status >= 300 and body.get("code") in GONE:
        job.lost, job.is_resolved = str(body["code"]), True
    elif call.verb == "tell":
        _take_tell(job, status, body)
    else:
        _drop_sent_reports(call)
        if status < 300:
            job.renewed_at = sent_at
            if body["should_stop"]:
                job.stop_reason = body["reason"] or "stopped"


def _drop_sent_reports(call: Call) -> None:
    """Drop the reports that were sent, refused ones too. One that was replaced for its step meanwhile stays queued."""
    for report in call.reports:
        step = report.body["step"]
        if call.job.reports.get(step) is report:
            del call.job.reports[step]


def _take_tell(job: HeldJob, status: int, body: Json) -> None:
    if status < 300:
        job.told, job.is_resolved = body, True
    elif job.result is not None and job.result["state"] == "FAIL":
        job.lost, job.is_resolved = str(body.get("code")), True
    else:
        # The result breaks a rule of the contract: the wrong number of values, say.
        job.result = {"state": "FAIL", "reason": str(body.get("detail"))[:500]}
