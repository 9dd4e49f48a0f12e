"""One background thread sends the reports, results and heartbeats of all trials that this process trains.

Training never waits for it. While the server is away, what is to be sent stays in the outbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import accumulate

import structlog

from hpo_service.client import Client, Json, RateLimited, Unreachable
from hpo_service.domain.errors import Conflict, HpoError, Invalid, NotFound, Unavailable
from hpo_worker.outbox import Call, Outbox

CALLS_IN_A_BATCH = 1000
BYTES_IN_A_BATCH = 768 * 1024  # of the 1 MiB that a body may have
PAUSE_SECONDS = 0.5
TRANSIENT_ERRORS = (Unreachable, Unavailable, RateLimited)

CallResult = tuple[Call, int, Json]

log = structlog.get_logger()


class HeartbeatSender:
    """Daemon thread that sends the outbox's due calls. `failed`: the error that ended it; all jobs are lost then."""

    def __init__(self, client: Client, outbox: Outbox) -> None:
        self.client, self.outbox = client, outbox
        self.failed: HpoError | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._wait()
                send(self.client, self.outbox, time.monotonic())
        except HpoError as error:
            self.fail(error)
        except Exception as error:
            log.exception("the heartbeat thread ends")
            self.fail(Unavailable(f"the heartbeat thread has ended: {error}"))

    def fail(self, error: HpoError) -> None:
        with self.outbox.changed:
            self.failed = error
            for job in self.outbox.jobs:
                job.lost, job.is_resolved = error.code, True
            self.outbox.changed.notify_all()

    def _wait(self) -> None:
        with self.outbox.changed:
            while True:
                due = self.outbox.due_at()
                wait = None if due is None else due - time.monotonic()
                if wait is not None and wait <= 0:
                    return
                self.outbox.changed.wait(wait)


def send(client: Client, outbox: Outbox, now: float) -> None:
    """Make the calls that are due: one batch for the trials, a separate call for the sealed test."""
    calls = outbox.calls(now)
    try:
        answers = _make_batch(client, _first(calls))
        answers += [_make_test_call(client, call) for call in calls if call.job.number is None]
        refused = [str(body.get("detail")) for _, status, body in answers if status == 429 or status >= 500]
        for call, status, body in answers:
            if status == 429 or status >= 500:
                continue  # it stays due
            if status >= 300:
                said = {"code": body.get("code"), "detail": body.get("detail")}
                log.warning("refused", study=call.job.study, trial=call.job.number, call=call.verb, **said)
            outbox.take(call, status, body, now)
    except TRANSIENT_ERRORS as error:
        # The client has tried for as long as it may; what was not taken is still due.
        refused = [str(error)] * len(calls)
    if refused:
        log.warning("the server takes no reports; training goes on", error=refused[0], calls=len(refused))
        time.sleep(PAUSE_SECONDS)


def _first(calls: Sequence[Call]) -> list[Call]:
    """The first calls for trials that fit into one batch, by count and bytes; without those of the sealed test."""
    sizes = accumulate(call.size for call in calls)
    fitting = [call for call, size in zip(calls, sizes, strict=True) if size <= BYTES_IN_A_BATCH or call is calls[0]]
    return [call for call in fitting if call.job.number is not None][:CALLS_IN_A_BATCH]


def _make_batch(client: Client, batch: Sequence[Call]) -> list[CallResult]:
    if not batch:
        return []
    try:
        results = client.batch([call.in_batch() for call in batch])
    except Invalid as refusal:
        return _blamed(batch, refusal)
    return [(call, result["status"], result["body"]) for call, result in zip(batch, results, strict=True)]


def _blamed(batch: Sequence[Call], refusal: Invalid) -> list[CallResult]:
    """When a batch was refused as a whole: the calls that the refusal names, or all. The others stay due."""
    body = {"code": refusal.code, "detail": refusal.detail}
    named = {fault.pointer.split("/")[2] for fault in refusal.faults if fault.pointer.startswith("/calls/")}
    return [(call, 422, body) for place, call in enumerate(batch) if not named or str(place) in named]


def _make_test_call(client: Client, call: Call) -> CallResult:
    study, verb = call.job.study, call.verb
    try:
        if verb == "tell":
            return call, 200, client.test_tell(study, **call.body)
        return call, 200, client.test_heartbeat(study, call.job.attempt)
    except (Conflict, NotFound, Invalid) as refusal:
        return call, 409, {"code": refusal.code, "detail": refusal.detail}
    except TRANSIENT_ERRORS as error:  # the answers to the batch before are taken all the same
        return call, 503, {"detail": str(error)}
