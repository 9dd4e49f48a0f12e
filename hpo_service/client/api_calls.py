"""Every route of the contract as a method, and the wire below them: what is sent, and when it is sent again."""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, TypeVar, cast
from urllib.parse import quote, urlencode

from pydantic_core import PydanticSerializationError, to_json

from hpo_service.client.answers import (
    HALF_A_CHARACTER,
    BrokenOff,
    Unreachable,
    failure_of,
    in_one_line,
    read_json,
    root_reason,
)
from hpo_service.client.event_stream import Event, parse_events
from hpo_service.client.keep_alive import Answered, KeepAlive, NotConnected
from hpo_service.client.retries import NEVER, PATIENTLY, Backoff, Failure, Retries
from hpo_service.client.server_url import DEFAULT_SERVER, checked_server
from hpo_service.domain import nul
from hpo_service.domain.errors import NotFound, Unauthenticated
from hpo_service.domain.json_types import Json
from hpo_service.domain.key import PREFIX, form_fault
from hpo_service.domain.search_space import CategoricalParameter, FloatParameter, IntParameter, Params

if TYPE_CHECKING:
    from hpo_service.client.streamed_answers import Streamed, StreamedAnswers

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60.0  # of an event stream, which the server fills with a comment every 15 s
UPLOAD_SECONDS = 120.0  # of silence from a server that keeps an artifact on its disk, or in a bucket
FINAL_STATES = frozenset({"COMPLETED", "STOPPED", "CANCELLED"})

T = TypeVar("T")
ExportFormat = Literal["csv", "jsonl", "parquet"]


_DONE = Answered(204, (), b"")
# What a trial says must not keep it from its end: here a NUL, which the server refuses, is replaced.
_TOLD = (":report", ":tell", ":release", ":batch")


class ApiCalls:
    """A method a route; the keywords of `__init__` are those of `Client`."""

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 15.0,
        retries: Retries = PATIENTLY,
        rng: random.Random | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """labels: what this machine has, for studies that require it; every ask carries them."""
        self.labels = dict(labels or {})
        self.server = checked_server(server or os.environ.get("HPO_SERVER") or DEFAULT_SERVER)
        self.timeout, self.retries, self.rng = timeout, retries, rng or random.Random()
        token = (token or os.environ.get("HPO_TOKEN") or _token_from_file()).strip()
        _check_token(token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kept = KeepAlive(self.server, timeout)
        # Of parameters, by study and name, as the server has taken them; see objective_trial.py.
        self.definitions: dict[tuple[str, str], FloatParameter | IntParameter | CategoricalParameter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._kept.close()
        if "_streams" in self.__dict__:
            self._streams.close()

    @cached_property
    def _streams(self) -> StreamedAnswers:
        # imported with the first stream: urllib3 costs every program a quarter of what the SDK takes to import
        from hpo_service.client.streamed_answers import StreamedAnswers

        return StreamedAnswers(self.timeout)

    # Studies

    def create(self, body: Mapping[str, Any]) -> Json:
        return self._json("POST", "/v1/studies", body)

    def study(self, study: str) -> Json:
        return self._json("GET", _study(study))

    def study_and_etag(self, study: str) -> tuple[Json, str]:
        answer = self._call("GET", _study(study))
        return read_json(answer), answer.headers.get("etag", "")

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

    def confirm(self, study: str, top: int = 5, seeds: int = 5) -> Json:
        """Have the best trials trained again, so many times each with the same fresh seeds."""
        return self._json("POST", _study(study) + ":confirm", {"top": top, "seeds": seeds})

    def test(self, study: str, ensemble: int = 1) -> Json:
        return self._json("POST", _study(study) + ":test", {"ensemble": ensemble})

    def export(self, study: str, format: ExportFormat = "csv") -> Iterator[bytes]:
        """The trials as a file, piece by piece; raise BrokenOff where it ends before its end."""
        answer = self._stream(f"{_study(study)}/trials:export?{urlencode({'format': format})}")
        return _pieces(answer, "the export")

    def advice(self, study: str) -> list[Json]:
        """What there is to say of the study, most important first."""
        items: list[Json] = self._json("GET", _study(study) + "/advice")["items"]
        return items

    def importances(self, study: str) -> dict[str, float | None]:
        shares: dict[str, float | None] = self._json("GET", _study(study) + "/importances")["importances"]
        return shares

    def events(self, study: str, last_event_id: str | None = None) -> Iterator[Event]:
        """Follow a study: from now on, or after an event ("0": from the start). Reconnects where it broke off."""
        while True:
            headers = {"Accept": "text/event-stream", **_given(**{"Last-Event-ID": last_event_id})}
            answer = self._stream(_study(study) + "/events", headers=headers, read_timeout=SILENCE_SECONDS)
            with suppress(OSError):
                for event in parse_events(answer.pieces()):
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
        """Each of trials is {params, state, values?, reports?, reason?, metrics?}: finished ones, from elsewhere."""
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
            **_given(objectives=objectives, labels=self.labels or None),
        }
        path = "/v1/trials:ask" if study is None else _study(study) + "/trials:ask"
        return self._json("POST", path, body, read_timeout=self.timeout + wait_seconds)

    def report(self, study: str, number: int, attempt: int, reports: Sequence[Mapping[str, Any]]) -> Json:
        return self._json("POST", _trial(study, number) + ":report", {"attempt": attempt, "reports": list(reports)})

    def suggest(self, study: str, number: int, attempt: int, parameters: Mapping[str, Any]) -> Params:
        """The values of these parameters, each as in a search space; one that the trial does not have is left out."""
        body = {"attempt": attempt, "parameters": parameters}
        params: Params = self._json("POST", _trial(study, number) + ":suggest", body)["params"]
        return params

    def heartbeat(self, study: str, number: int, attempt: int, *, dataset_sha256: str | None = None) -> Json:
        """dataset_sha256: of the data it is trained on; StudyStateConflict if the study is bound to other data."""
        body = {"attempt": attempt, **_given(dataset_sha256=dataset_sha256)}
        return self._json("POST", _trial(study, number) + ":heartbeat", body, retries=self.retries.for_heartbeats())

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
        retry: bool = False,
        then_ask_for: str | None = None,
    ) -> Json:
        """retry: the machine has failed, and not the trial (only with FAIL): it is given out again.

        then_ask_for: the worker that asks the same study for its next trial, in the same call.

        What it is given stands under "next" in the answer, in the form that `ask` returns.
        """
        body = {"attempt": attempt, "state": state, **_given(values=values, reason=reason, metrics=metrics)}
        if retry:
            body["retry"] = True
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
        return self._json("POST", _study(study) + "/test:heartbeat", body, retries=self.retries.for_heartbeats())

    def test_tell(self, study: str, attempt: int, state: str, **result: Any) -> Json:
        body = {"attempt": attempt, "state": state, **_given(**result)}
        return self._json("POST", _study(study) + "/test:tell", body)

    def test_release(self, study: str, attempt: int, reason: str | None = None) -> Json:
        return self._json("POST", _study(study) + "/test:release", {"attempt": attempt, **_given(reason=reason)})

    # Artifacts; number: None for those of the sealed test

    def put_artifact(
        self,
        study: str,
        number: int | None,
        attempt: int,
        name: str,
        what: bytes | Path,
        *,
        retries: Retries | None = None,
    ) -> Json:
        """Keep these bytes, or this file's, under the name, in the place of what was kept there. Raise OSError."""
        path = f"{_artifacts(study, number)}/{quote(name, safe='')}?attempt={attempt}"

        def send() -> Json:
            if isinstance(what, bytes):
                return self._upload(path, what, len(what))
            with what.open("rb") as file:
                return self._upload(path, file, os.fstat(file.fileno()).st_size)

        return self._persevere("PUT", send, retries)

    def artifacts(self, study: str, number: int | None) -> list[Json]:
        items: list[Json] = self._json("GET", _artifacts(study, number))["items"]
        return items

    def artifact(self, study: str, number: int | None, name: str) -> Iterator[bytes]:
        """Its bytes, piece by piece. Raise NotFound; BrokenOff where it ends before its end."""
        return _pieces(self._stream(f"{_artifacts(study, number)}/{quote(name, safe='')}"), f"artifact {name!r}")

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
        return read_json(self._call(method, path, body, **how))

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
        if content is not None and path.endswith(_TOLD):
            content = nul.replaced(content)
        all_headers = {**self._headers, **(headers or {})}
        if content is not None:
            all_headers["Content-Type"] = "application/json"
        timeout = read_timeout or self.timeout

        def send() -> Answered:
            try:
                answer = self._kept.call(method, path, content, all_headers, timeout)
            except OSError as error:
                raise self._unreachable(error, retry=repeatable or isinstance(error, NotConnected)) from error
            if 200 <= answer.status < 300:
                return answer
            raise failure_of(answer.status, answer.headers, answer.data)

        return self._persevere(method, send, retries)

    def _stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_timeout: float | None = None
    ) -> Streamed:
        """The answer of a GET, to be read piece by piece."""

        all_headers = {**self._headers, **(headers or {})}

        def send() -> Streamed:
            try:
                answer = self._streams.get(self.server + path, all_headers, read_timeout or self.timeout)
                if 200 <= answer.status < 300:
                    return answer
                raise failure_of(answer.status, answer.headers, answer.whole())
            except OSError as error:
                raise self._unreachable(error, retry=True) from error

        return self._persevere("GET", send, None)

    def _upload(self, path: str, content: bytes | BinaryIO, size: int) -> Json:
        """Send it once. Raise Failure."""
        headers = {**self._headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            answer = self._streams.put(self.server + path, headers, content, UPLOAD_SECONDS)
        except OSError as error:
            raise self._unreachable(error, retry=True) from error
        if 200 <= answer.status < 300:
            return read_json(answer)
        raise failure_of(answer.status, answer.headers, answer.data)

    def _unreachable(self, error: Exception, *, retry: bool) -> Failure:
        return Failure(Unreachable(f"{self.server} does not answer: {root_reason(error)}"), retry=retry)

    def _persevere(self, method: str, send: Callable[[], T], retries: Retries | None) -> T:
        """Send until it is answered, refused, or out of time."""
        backoff = Backoff(retries or self.retries, self.rng, time.monotonic)
        while True:
            try:
                return send()
            except Failure as failure:
                # The answer to the first DELETE was lost: it has done its work.
                if backoff.failures and method == "DELETE" and isinstance(failure.error, NotFound):
                    return cast(T, _DONE)
                wait = backoff.after(failure)
                if wait is None:
                    raise failure.error from failure.__cause__
                if backoff.is_news:
                    log.warning("%s; trying again in %.1f s", failure.error.detail.rstrip("."), wait)
            time.sleep(wait)


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


def new_request_id() -> str:
    return uuid.uuid4().hex


def write_json(body: Mapping[str, Any]) -> bytes:
    """JSON in which NaN and Infinity are strings, and NumPy's scalars and arrays what they stand for.

    Half surrogate pairs, as Python has them for the undecodable bytes of a file's name, become �. Raise TypeError.
    """
    try:
        return to_json(body, inf_nan_mode="strings", fallback=_plain)
    except PydanticSerializationError as error:
        whole = _with_whole_texts(body)
        if whole != body:
            return write_json(whole)
        raise TypeError(str(error).removeprefix("Error serializing to JSON: TypeError: ")) from error


def _with_whole_texts(value: Any) -> Any:
    if isinstance(value, str):
        return HALF_A_CHARACTER.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_with_whole_texts(name): _with_whole_texts(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_whole_texts(each) for each in value]
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.100} has no form in JSON")


def _pieces(answer: Streamed, what: str) -> Iterator[bytes]:
    try:
        yield from answer.pieces()
    except OSError as error:
        raise BrokenOff(
            f"{what} broke off before its end ({root_reason(error)}): the study was deleted meanwhile, or the "
            "server or the network between failed. What has come is not all of it"
        ) from error
    finally:
        answer.let_go()


def _study(study: str) -> str:
    return f"/v1/studies/{quote(study, safe='')}"


def _artifacts(study: str, number: int | None) -> str:
    return (f"{_study(study)}/test" if number is None else _trial(study, number)) + "/artifacts"


def _trial(study: str, number: int) -> str:
    return f"{_study(study)}/trials/{number}"


def _given(**fields: Any) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in fields.items() if value is not None}
