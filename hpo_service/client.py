"""The Python SDK: every route of the contract as a method, and on top of them studies and trials to work with.

    with Client("http://127.0.0.1:8000") as hpo:
        study = hpo.create_study("mine", search_space={"lr": log_uniform(1e-5, 1e-1)})
        study.optimize(objective, n_trials=50)

The methods of `Client` take and return the JSON of the contract. What goes wrong is raised in the words of
`hpo_service.domain.errors`, and beside them:

HpoError
├── Refused             any other refusal; `code` says which
├── UnexpectedAnswer    whatever answered, it was not this service
└── Unreachable         nobody answered
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

import stamina
import urllib3
from pydantic_core import PydanticSerializationError, from_json, to_json
from urllib3.exceptions import HTTPError

from hpo_service.domain import errors
from hpo_service.domain.errors import (
    Fault,
    Forbidden,
    HpoError,
    Invalid,
    LeaseLost,
    NotFound,
    RateLimited,
    TrialFinished,
    Unauthenticated,
    Unavailable,
)
from hpo_service.domain.key import PREFIX, form_fault
from hpo_service.domain.search_space import Params, SearchSpace, choice, integer, log_uniform, uniform
from hpo_service.keep_alive import Answered, KeepAlive, NotConnected

__all__ = [
    "Client",
    "Event",
    "Forbidden",
    "HeldTrial",
    "RateLimited",
    "Refused",
    "RemoteStudy",
    "Retries",
    "Unauthenticated",
    "UnexpectedAnswer",
    "Unreachable",
    "choice",
    "conclusion",
    "in_one_line",
    "integer",
    "log_uniform",
    "new_worker_id",
    "uniform",
]

DEFAULT_SERVER = "http://127.0.0.1:8000"
SILENCE_SECONDS = 60.0  # of an event stream, which the server fills with a comment every 15 s
FINAL_STATES = frozenset({"COMPLETED", "STOPPED", "CANCELLED"})

T = TypeVar("T")
Json = dict[str, Any]
ExportFormat = Literal["csv", "jsonl", "parquet"]


class Refused(HpoError):
    """A refusal that has no class of its own; `code` is the contract's."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class UnexpectedAnswer(HpoError):
    code = "unexpected_answer"


class Unreachable(HpoError):
    code = "unreachable"


_ERRORS: Mapping[str, type[HpoError]] = {
    error.code: error
    for error in (
        NotFound,
        errors.StudyExists,
        errors.StudyStateConflict,
        errors.StudySealed,
        LeaseLost,
        TrialFinished,
        errors.ResultConflict,
        errors.PreconditionFailed,
        Unavailable,
        Unauthenticated,
        Forbidden,
        RateLimited,
    )
}


@dataclass(frozen=True)
class Retries:
    """How long a call is tried again: waits of a random share of initial × 2ⁿ, until the deadline has passed.

    Full jitter: workers that lost their server together come back one by one.
    """

    initial: float = 0.5
    longest: float = 5.0
    deadline: float = 60.0

    def wait(self, failures: int, retry_after: float, rng: random.Random) -> float:
        """Seconds to wait after so many failures, never less than the server asked for."""
        return retry_after + rng.uniform(0, min(self.longest, self.initial * 2.0 ** min(failures - 1, 60)))


NEVER = Retries(deadline=0)


class Event(NamedTuple):
    """One server-sent event: `kind` is trial, study or round, `data` the resource as it now reads."""

    id: str
    kind: str
    data: Json


_DONE = Answered(204, HTTPMessage(), b"")


class _Failure(Exception):
    """A call that failed, and whether the same call may be made again."""

    def __init__(self, error: HpoError, *, retry: bool, retry_after: float = 0.0) -> None:
        self.error, self.retry, self.retry_after = error, retry, retry_after


class _Backoff:
    """The decision after each failure, in the form stamina asks for: False, or the seconds to wait."""

    def __init__(self, retries: Retries, rng: random.Random, clock: Callable[[], float]) -> None:
        self.retries, self.rng, self.clock = retries, rng, clock
        self.failures, self.began = 0, clock()

    def __call__(self, failure: Exception) -> bool | float:
        if not isinstance(failure, _Failure) or not failure.retry:
            return False
        self.failures += 1
        wait = self.retries.wait(self.failures, failure.retry_after, self.rng)
        return wait if self.clock() - self.began + wait <= self.retries.deadline else False


class Client:
    """A connection to the service, safe to share between threads.

    server, token: HPO_SERVER and HPO_TOKEN, or the file that HPO_TOKEN_FILE names, when left out; timeout: seconds
    for one answer (a long poll adds its own); retries: for how long connection errors, 429 and 502 to 504 are tried
    again.
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        retries: Retries = Retries(),
        rng: random.Random | None = None,
    ) -> None:
        self.server = (server or os.environ.get("HPO_SERVER") or DEFAULT_SERVER).rstrip("/")
        if urlsplit(self.server).scheme not in ("http", "https") or not urlsplit(self.server).hostname:
            raise Invalid([Fault("server", f"{self.server!r} is not a URL like {DEFAULT_SERVER}")])
        self.timeout, self.retries, self.rng = timeout, retries, rng or random.Random()
        token = (token or os.environ.get("HPO_TOKEN") or _token_from_file()).strip()
        _check_token(token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kept = KeepAlive(self.server, timeout)
        self._streams = urllib3.PoolManager(num_pools=1, maxsize=8, retries=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._kept.close()
        self._streams.clear()

    # Studies

    def create_study(self, name: str, search_space: SearchSpace | Mapping[str, Any], **fields: Any) -> RemoteStudy:
        """Create a study, or open it if it was created with the same fields before. Fields as in the contract."""
        return RemoteStudy(self, self.create({"name": name, "search_space": search_space, **fields})["name"])

    def open_study(self, study: str) -> RemoteStudy:
        """An existing study to work with; NotFound if there is none of that name."""
        return RemoteStudy(self, self.study(study)["name"])

    def create(self, body: Mapping[str, Any]) -> Json:
        return self._json("POST", "/v1/studies", body)

    def study(self, study: str) -> Json:
        return self._json("GET", _study(study))

    def study_and_etag(self, study: str) -> tuple[Json, str]:
        answer = self._call("GET", _study(study))
        return _read(answer), answer.headers.get("ETag", "")

    def studies(self, state: str | None = None, page_size: int = 100) -> Iterator[Json]:
        return self._pages("/v1/studies", {"state": state, "page_size": page_size})

    def patch(
        self,
        study: str,
        *,
        limits: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        if_match: str | None = None,
    ) -> Json:
        body = _given(limits=limits, metadata=metadata)
        return self._json("PATCH", _study(study), body, headers=_given(**{"If-Match": if_match}))

    def delete(self, study: str, *, force: bool = False) -> None:
        self._call("DELETE", _study(study) + ("?force=true" if force else ""))

    def pause(self, study: str) -> Json:
        return self._json("POST", _study(study) + ":pause")

    def resume(self, study: str) -> Json:
        return self._json("POST", _study(study) + ":resume")

    def stop(self, study: str) -> Json:
        return self._json("POST", _study(study) + ":stop")

    def cancel(self, study: str) -> Json:
        return self._json("POST", _study(study) + ":cancel")

    def narrow(self, study: str, keep: float | None = None) -> Json:
        """Start the next round. Not tried again when the answer is lost: it would narrow twice."""
        return self._json("POST", _study(study) + ":narrow", _given(keep=keep), repeatable=False)

    def test(self, study: str, ensemble: int = 1) -> Json:
        return self._json("POST", _study(study) + ":test", {"ensemble": ensemble})

    def export(self, study: str, format: ExportFormat = "csv") -> Iterator[bytes]:
        """The trials as a file, piece by piece."""
        answer = self._stream(f"{_study(study)}/trials:export?{urlencode({'format': format})}")
        return _pieces(answer)

    def importances(self, study: str) -> dict[str, float]:
        shares: dict[str, float] = self._json("GET", _study(study) + "/importances")["importances"]
        return shares

    def events(self, study: str, last_event_id: str | None = None) -> Iterator[Event]:
        """Follow a study: from now on, or after an event ("0": from the start). Reconnects where it broke off."""
        while True:
            headers = {"Accept": "text/event-stream", **_given(**{"Last-Event-ID": last_event_id})}
            answer = self._stream(_study(study) + "/events", headers=headers, read_timeout=SILENCE_SECONDS)
            with suppress(HTTPError, OSError):
                for event in parse_events(answer.stream(65_536)):
                    last_event_id = event.id or last_event_id
                    yield event
            answer.close()
            time.sleep(self.rng.uniform(0, self.retries.initial))

    # Trials, for people

    def trials(
        self, study: str, *, state: str | None = None, order_by: str | None = None, page_size: int = 200
    ) -> Iterator[Json]:
        query = {"state": state, "order_by": order_by, "page_size": page_size}
        return self._pages(_study(study) + "/trials", query)

    def trial(self, study: str, number: int) -> Json:
        return self._json("GET", _trial(study, number))

    def attempts(self, study: str, number: int) -> list[Json]:
        items: list[Json] = self._json("GET", _trial(study, number) + "/attempts")["items"]
        return items

    def stop_trial(self, study: str, number: int) -> Json:
        return self._json("POST", _trial(study, number) + ":stop")

    def enqueue(self, study: str, trials: Sequence[Mapping[str, Any]], request_id: str | None = None) -> list[Json]:
        """Each of trials is {"params": {…}}; a missing param is sampled."""
        return self._add(study, "enqueue", trials, request_id)

    def import_trials(
        self, study: str, trials: Sequence[Mapping[str, Any]], request_id: str | None = None
    ) -> list[Json]:
        """Each of trials is {params, state, values?, reports?}: finished ones, from elsewhere."""
        return self._add(study, "import", trials, request_id)

    def _add(self, study: str, verb: str, trials: Sequence[Mapping[str, Any]], request_id: str | None) -> list[Json]:
        body = {"request_id": request_id or new_request_id(), "trials": list(trials)}
        added: list[Json] = self._json("POST", f"{_study(study)}/trials:{verb}", body)["trials"]
        return added

    # Trials, for workers

    def ask(
        self,
        worker_id: str,
        study: str | None = None,
        *,
        count: int = 1,
        wait_seconds: float = 0,
        objectives: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Json:
        """Ask one study, or any study whose objective kind is among `objectives`. Tried again, it is one ask."""
        body = {
            "worker_id": worker_id,
            "request_id": request_id or new_request_id(),
            "count": count,
            "wait_seconds": wait_seconds,
            **_given(objectives=objectives),
        }
        path = "/v1/trials:ask" if study is None else _study(study) + "/trials:ask"
        return self._json("POST", path, body, read_timeout=self.timeout + wait_seconds)

    def report(self, study: str, number: int, attempt: int, reports: Sequence[Mapping[str, Any]]) -> Json:
        return self._json("POST", _trial(study, number) + ":report", {"attempt": attempt, "reports": list(reports)})

    def heartbeat(self, study: str, number: int, attempt: int, *, dataset_sha256: str | None = None) -> Json:
        """dataset_sha256: of the data it is trained on; StudyStateConflict if the study is bound to other data."""
        body = {"attempt": attempt, **_given(dataset_sha256=dataset_sha256)}
        return self._json("POST", _trial(study, number) + ":heartbeat", body)

    def tell(
        self,
        study: str,
        number: int,
        attempt: int,
        state: str,
        *,
        values: Sequence[float] | None = None,
        reason: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        then_ask_for: str | None = None,
    ) -> Json:
        """then_ask_for: the worker that asks the same study for its next trial, in the same call.

        What it is given stands under "next" in the answer, in the form that `ask` returns.
        """
        body = {"attempt": attempt, "state": state, **_given(values=values, reason=reason, metrics=metrics)}
        if then_ask_for is not None:
            body["next"] = {"worker_id": then_ask_for, "request_id": new_request_id()}
        return self._json("POST", _trial(study, number) + ":tell", body)

    def release(self, study: str, number: int, attempt: int, reason: str | None = None) -> Json:
        return self._json("POST", _trial(study, number) + ":release", {"attempt": attempt, **_given(reason=reason)})

    def batch(self, calls: Sequence[Mapping[str, Any]]) -> list[Json]:
        """Worker calls for many trials in one commit: [{status, body}] in order, refused ones among them."""
        results: list[Json] = self._json("POST", "/v1/trials:batch", {"calls": list(calls)})["results"]
        return results

    def test_heartbeat(self, study: str, attempt: int, *, dataset_sha256: str | None = None) -> Json:
        body = {"attempt": attempt, **_given(dataset_sha256=dataset_sha256)}
        return self._json("POST", _study(study) + "/test:heartbeat", body)

    def test_tell(self, study: str, attempt: int, state: str, **result: Any) -> Json:
        body = {"attempt": attempt, "state": state, **_given(**result)}
        return self._json("POST", _study(study) + "/test:tell", body)

    def test_release(self, study: str, attempt: int, reason: str | None = None) -> Json:
        return self._json("POST", _study(study) + "/test:release", {"attempt": attempt, **_given(reason=reason)})

    # Operations

    def workers(self) -> list[Json]:
        items: list[Json] = self._json("GET", "/v1/workers")["items"]
        return items

    def drain(self, worker_id: str) -> Json:
        return self._json("POST", f"/v1/workers/{quote(worker_id, safe='')}:drain")

    def version(self) -> Json:
        return self._json("GET", "/version")

    def healthz(self) -> Json:
        return self._json("GET", "/healthz", retries=NEVER)

    def readyz(self) -> Json:
        """What is ready; Unavailable when something is not."""
        return self._json("GET", "/readyz", retries=NEVER)

    # The wire

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        token: str | None = None
        while True:
            page = self._json("GET", f"{path}?{urlencode(_given(**query, page_token=token))}")
            yield from page["items"]
            token = page["next_page_token"]
            if not token:
                return

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> Json:
        return _read(self._call(method, path, body, **how))

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
        repeatable: bool = True,
        retries: Retries | None = None,
    ) -> Answered:
        """Make the call until it is answered, refused, or out of time. The body is the same every time."""
        content = None if body is None else write_json(body)
        all_headers = {**self._headers, **(headers or {})}
        if content is not None:
            all_headers["Content-Type"] = "application/json"
        timeout = read_timeout or self.timeout

        def send() -> Answered:
            try:
                answer = self._kept.call(method, path, content, all_headers, timeout)
            except (HTTPException, OSError) as error:
                raise self._unreachable(error, retry=repeatable or isinstance(error, NotConnected)) from error
            if 200 <= answer.status < 300:
                return answer
            raise _failure(answer.status, answer.headers, answer.data)

        return self._persevere(method, send, retries)

    def _stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_timeout: float | None = None
    ) -> urllib3.BaseHTTPResponse:
        """The answer of a GET, to be read piece by piece."""

        def send() -> urllib3.BaseHTTPResponse:
            try:
                answer = self._streams.request(
                    "GET",
                    self.server + path,
                    headers={**self._headers, **(headers or {})},
                    timeout=urllib3.Timeout(connect=self.timeout, read=read_timeout or self.timeout),
                    redirect=False,
                    preload_content=False,
                )
                if 200 <= answer.status < 300:
                    return answer
                raise _failure(answer.status, answer.headers, answer.data)
            except (HTTPError, OSError) as error:
                raise self._unreachable(error, retry=True) from error

        return self._persevere("GET", send, None)

    def _unreachable(self, error: Exception, *, retry: bool) -> _Failure:
        return _Failure(Unreachable(f"{self.server} does not answer: {_why(error)}"), retry=retry)

    def _persevere(self, method: str, send: Callable[[], T], retries: Retries | None) -> T:
        """Send until it is answered, refused, or out of time."""
        backoff = _Backoff(retries or self.retries, self.rng, time.monotonic)
        first: _Failure | None = None
        try:
            return send()
        except _Failure as failure:
            first = failure
        try:
            for attempt in stamina.retry_context(on=backoff, attempts=None, timeout=None):
                with attempt:
                    if first is not None:  # the first attempt has been made: most calls need no more than that
                        failed, first = first, None
                        raise failed
                    try:
                        return send()
                    except _Failure as failure:
                        # The answer to the first DELETE was lost: it has done its work.
                        if method == "DELETE" and isinstance(failure.error, NotFound):
                            return cast(T, _DONE)
                        raise
        except _Failure as failure:
            raise failure.error from failure.__cause__
        raise AssertionError("stamina ends with an answer or an error")


def _token_from_file() -> str:
    name = os.environ.get("HPO_TOKEN_FILE")
    if not name:
        return ""
    try:
        token = Path(name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthenticated(f"HPO_TOKEN_FILE names {name}, which cannot be read: {in_one_line(error)}") from None
    if not token:
        raise Unauthenticated(f"HPO_TOKEN_FILE names {name}, which is empty")
    return token


def _check_token(token: str) -> None:
    """Tell a typo before anybody is asked. What is no key of ours may be one of a proxy before the server."""
    if token.startswith(PREFIX) and (fault := form_fault(token)) is not None:
        raise Unauthenticated(fault)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Unauthenticated("the key holds a character that no key has; copy it again")


@dataclass(frozen=True)
class RemoteStudy:
    """A study to search with: ask it for trials, or let it optimize an objective."""

    client: Client
    name: str

    def read(self) -> Json:
        return self.client.study(self.name)

    @property
    def best(self) -> Json | None:
        best: Json | None = self.read().get("best")
        return best

    def trials(self, *, state: str | None = None, order_by: str | None = None) -> Iterator[Json]:
        return self.client.trials(self.name, state=state, order_by=order_by)

    def ask(self, count: int = 1, *, wait_seconds: float = 0, worker_id: str | None = None) -> list[HeldTrial]:
        """Trials to train, held by this program until told, released, or silent for the length of their lease."""
        return self._ask(count, wait_seconds, worker_id)[0]

    def _ask(self, count: int, wait_seconds: float, worker_id: str | None) -> tuple[list[HeldTrial], bool]:
        """The trials, and whether there is any use in asking again."""
        answer = self.client.ask(worker_id or _this_program(), self.name, count=count, wait_seconds=wait_seconds)
        trials = self._held(answer)
        goes_on = answer["study_state"] in ("ACTIVE", "PAUSED") and not answer.get("drain")
        return trials, bool(trials) or goes_on

    def enqueue(self, *params: Mapping[str, Any]) -> list[Json]:
        return self.client.enqueue(self.name, [{"params": dict(each)} for each in params])

    def optimize(
        self,
        objective: Callable[[HeldTrial], float | Sequence[float] | None],
        n_trials: int | None = None,
        *,
        catch: tuple[type[Exception], ...] = (),
        worker_id: str | None = None,
    ) -> None:
        """Train trials until n_trials are done here or the study gives out no more.

        The lease is kept while the objective runs. An exception makes its trial FAIL, and is raised again
        unless it is one of `catch`. A result and the ask for the next trial go in one call.
        """
        worker = worker_id or _this_program()
        done, waiting = 0, list[HeldTrial]()
        while n_trials is None or done < n_trials:
            if not waiting:
                waiting, goes_on = self._ask(1, 20, worker)
                if not goes_on:
                    return
            if waiting:
                trial, done = waiting.pop(), done + 1
                is_last = done == n_trials
                with suppress(*catch), suppress(LeaseLost, TrialFinished):
                    told = trial.run(objective, then_ask_for=None if is_last else worker)
                    waiting = self._held(told["next"]) if "next" in told else []

    def _held(self, answer: Json) -> list[HeldTrial]:
        return [HeldTrial(self.client, given) for given in answer["trials"]]


class HeldTrial:
    """A trial whose lease this program holds.

    params: its hyperparameters; seed: for the objective's random numbers, the same in every attempt.
    """

    def __init__(self, client: Client, given: Json) -> None:
        self._client = client
        self.study: str = given["study"]
        self.number: int = given["number"]
        self.attempt: int = given["attempt"]
        self.params: Params = given["params"]
        self.seed: int = given["seed"]
        self.objective: Json | None = given["objective"]
        self.lease_seconds: float = given["lease"]["duration_seconds"]
        self.stop_reason: str | None = None
        self._last_value: float | None = None
        self._obeyed = False

    def __repr__(self) -> str:
        return f"<trial {self.number} of {self.study}, attempt {self.attempt}: {self.params}>"

    @property
    def should_stop(self) -> bool:
        """Whether the objective should return now: the trial is pruned, stopped or cancelled."""
        self._obeyed = self.stop_reason is not None
        return self._obeyed

    def report(self, step: int, value: float, metrics: Mapping[str, Any] | None = None) -> bool:
        """Report an intermediate value; return should_stop."""
        self._last_value = float(value)
        report = {"step": step, "value": self._last_value, **_given(metrics=metrics)}
        self._learn(self._client.report(self.study, self.number, self.attempt, [report]))
        return self.should_stop

    def heartbeat(self) -> None:
        self._learn(self._client.heartbeat(self.study, self.number, self.attempt))

    def _learn(self, answer: Json) -> None:
        if answer["should_stop"]:
            self.stop_reason = answer["reason"] or "stopped"

    def tell(
        self,
        value: float | Sequence[float] | None = None,
        *,
        state: str = "COMPLETE",
        reason: str | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Json:
        """Tell the result. The same result may be told again; another one is ResultConflict."""
        values = None if value is None else as_values(value)
        return self._client.tell(
            self.study, self.number, self.attempt, state, values=values, reason=reason, metrics=metrics
        )

    def release(self, reason: str | None = None) -> Json:
        """Hand the trial back, for somebody else to train."""
        return self._client.release(self.study, self.number, self.attempt, reason)

    def run(
        self,
        objective: Callable[[HeldTrial], float | Sequence[float] | None],
        *,
        then_ask_for: str | None = None,
    ) -> Json:
        """Train, with the lease kept, and tell what came out of it. then_ask_for: as in `Client.tell`."""
        try:
            with _HeartbeatThread(self):
                value = objective(self)
        except (LeaseLost, TrialFinished):
            raise
        except Exception as error:
            self.tell(state="FAIL", reason=in_one_line(error))
            raise
        except BaseException:
            with suppress(HpoError):
                self.release("interrupted")
            raise
        result = conclusion(value, self._last_value, self.stop_reason if self._obeyed else None)
        return self._client.tell(self.study, self.number, self.attempt, then_ask_for=then_ask_for, **result)


class _HeartbeatThread:
    """Keeps a lease while the with block runs: a heartbeat every third of its duration."""

    def __init__(self, trial: HeldTrial) -> None:
        self._trial = trial
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{trial.number}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        # Not joined: a heartbeat on its way does no harm, and the server may take its time.
        self._done.set()

    def _beat(self) -> None:
        while not self._done.wait(self._trial.lease_seconds / 3):
            try:
                self._trial.heartbeat()
            except (LeaseLost, TrialFinished):
                self._trial.stop_reason = "lease_lost"
                return
            except HpoError:
                continue


def new_request_id() -> str:
    return uuid.uuid4().hex


def new_worker_id() -> str:
    """host-pid-random, in printable ASCII: who holds a trial, for people who look for it."""
    host = "".join(letter if " " < letter <= "~" else "-" for letter in socket.gethostname())[:80]
    return f"{host or 'localhost'}-{os.getpid()}-{secrets.token_hex(3)}"


_worker_ids: dict[int, str] = {}  # by process: a fork is another worker


def _this_program() -> str:
    return _worker_ids.setdefault(os.getpid(), new_worker_id())


def conclusion(returned: float | Sequence[float] | None, last_report: float | None, obeyed: str | None) -> Json:
    """What to tell of an objective that has returned: the state, and its values or the reason.

    obeyed: why it was told to stop, if it looked; one that never looked has trained to its end.
    """
    if obeyed == "pruned":
        return {"state": "PRUNED"}
    if obeyed is not None:
        return {"state": "FAIL", "reason": obeyed}
    value = last_report if returned is None else returned
    if value is None:
        return {"state": "FAIL", "reason": "the objective returned no value and reported none"}
    return {"state": "COMPLETE", "values": as_values(value)}


def as_values(value: float | Sequence[float]) -> list[float]:
    """One value per direction, as the contract has them; NumPy's numbers are numbers."""
    if isinstance(value, Iterable) and not hasattr(value, "__float__"):
        return [float(each) for each in value]
    return [float(value)]


def write_json(body: Mapping[str, Any]) -> bytes:
    """JSON in which NaN and Infinity are strings, and NumPy's scalars and arrays what they stand for."""
    try:
        return to_json(body, inf_nan_mode="strings", fallback=_plain)
    except PydanticSerializationError as error:
        raise TypeError(str(error).removeprefix("Error serializing to JSON: TypeError: ")) from error


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.100} has no form in JSON")


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events from the bytes of a stream, cut anywhere (HTML standard, section 9.2)."""
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            yield Event(
                id=fields.get("id", [""])[-1],
                kind=fields.get("event", ["message"])[-1],
                data=from_json("\n".join(fields["data"])),
            )
        fields = {}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer.stream(65_536)
    except (HTTPError, OSError) as error:
        raise Unreachable(f"the export broke off: {_why(error)}") from error
    finally:
        answer.release_conn()


def _failure(status: int, headers: HTTPMessage | Mapping[str, str], content: bytes) -> _Failure:
    """What an answer that is no success means, and whether to try again."""
    problem = _problem(content)
    retry = status in (408, 429, 502, 503, 504) or (status == 409 and problem.get("retryable") is True)
    error = _error(status, problem)
    return _Failure(error, retry=retry, retry_after=_seconds(headers.get("Retry-After")) if retry else 0.0)


def _error(status: int, problem: Json) -> HpoError:
    code = problem.get("code")
    detail = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
    if not isinstance(code, str):
        unready = status in (502, 503, 504)
        return Unavailable(detail) if unready else UnexpectedAnswer(f"{detail}; is this the right server?")
    if code == Invalid.code:
        faults = [Fault(fault["pointer"], fault["detail"]) for fault in problem.get("errors") or []]
        return Invalid(faults or [Fault("", detail)])
    return _ERRORS[code](detail) if code in _ERRORS else Refused(code, detail)


def error_of(result: Json) -> HpoError:
    """The error that a refused call of a batch stands for: result is {status, body}."""
    return _error(result["status"], result["body"])


def _problem(content: bytes) -> Json:
    with suppress(ValueError):
        problem = from_json(content)
        if isinstance(problem, dict):
            return problem
    return {}


def _read(answer: Answered) -> Json:
    try:
        read = from_json(answer.data)
    except ValueError as error:
        _unexpected(error)
    return read if isinstance(read, dict) else _unexpected(None)


def _unexpected(cause: Exception | None) -> NoReturn:
    raise UnexpectedAnswer("the answer is not a JSON object; is this the right server?") from cause


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds: a number, or a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _study(study: str) -> str:
    return f"/v1/studies/{quote(study, safe='')}"


def _trial(study: str, number: int) -> str:
    return f"{_study(study)}/trials/{number}"


def _given(**fields: Any) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in fields.items() if value is not None}


def _why(error: BaseException) -> str:
    """The reason at the bottom: "Connection refused", say, and not how the HTTP library got there."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)


def in_one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:500] if said else type(error).__name__
