"""Every route of the contract as a method; the HTTP transport below them is in `http_transport.py`."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

from hpo_service.client.answers import read_json
from hpo_service.client.event_stream import Event, parse_events
from hpo_service.client.http_transport import HttpTransport, pieces_of, without_none
from hpo_service.client.retries import NEVER, PATIENTLY, Retries
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import CategoricalParameter, FloatParameter, IntParameter, Params

SILENCE_SECONDS = 60.0  # read timeout of an event stream, on which the server sends at least a comment every 15 s
FINAL_STATES = frozenset({"COMPLETED", "STOPPED", "CANCELLED"})

ExportFormat = Literal["csv", "jsonl", "parquet"]


class ApiCalls:
    """One method per route; `__init__` takes the arguments of `Client`."""

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
        """labels: properties of this machine, sent with every ask, for studies that require them."""
        self.labels = dict(labels or {})
        self._transport = HttpTransport(server, token, timeout, retries, rng or random.Random())
        self.server = self._transport.server
        # Parameter definitions that the server has accepted, by study and parameter name; see objective_trial.py.
        self.definitions: dict[tuple[str, str], FloatParameter | IntParameter | CategoricalParameter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # Studies

    def create(self, body: Mapping[str, Any]) -> Json:
        return self._transport.json("POST", "/v1/studies", body)

    def study(self, study: str) -> Json:
        return self._transport.json("GET", _study(study))

    def study_and_etag(self, study: str) -> tuple[Json, str]:
        answer = self._transport.call("GET", _study(study))
        return read_json(answer), answer.headers.get("etag", "")

    def studies(self, state: str | None = None, page_size: int = 100) -> Iterator[Json]:
        return self._transport.pages("/v1/studies", {"state": state, "page_size": page_size})

    def patch(
        self,
        study: str,
        *,
        limits: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        if_match: str | None = None,
    ) -> Json:
        body = without_none(limits=limits, metadata=metadata)
        return self._transport.json("PATCH", _study(study), body, headers=without_none(**{"If-Match": if_match}))

    def delete(self, study: str, *, force: bool = False) -> None:
        self._transport.call("DELETE", _study(study) + ("?force=true" if force else ""))

    def pause(self, study: str) -> Json:
        return self._transport.json("POST", _study(study) + ":pause")

    def resume(self, study: str) -> Json:
        return self._transport.json("POST", _study(study) + ":resume")

    def stop(self, study: str) -> Json:
        return self._transport.json("POST", _study(study) + ":stop")

    def cancel(self, study: str) -> Json:
        return self._transport.json("POST", _study(study) + ":cancel")

    def narrow(self, study: str, keep: float | None = None) -> Json:
        """Start the next round. Not tried again when the answer is lost: it would narrow twice."""
        return self._transport.json("POST", _study(study) + ":narrow", without_none(keep=keep), repeatable=False)

    def confirm(self, study: str, top: int = 5, seeds: int = 5) -> Json:
        """Have the best trials trained again, so many times each with the same fresh seeds."""
        return self._transport.json("POST", _study(study) + ":confirm", {"top": top, "seeds": seeds})

    def test(self, study: str, ensemble: int = 1) -> Json:
        return self._transport.json("POST", _study(study) + ":test", {"ensemble": ensemble})

    def export(self, study: str, format: ExportFormat = "csv") -> Iterator[bytes]:
        """The trials as a file, piece by piece; raise BrokenOff where it ends before its end."""
        answer = self._transport.stream(f"{_study(study)}/trials:export?{urlencode({'format': format})}")
        return pieces_of(answer, "the export")

    def advice(self, study: str) -> list[Json]:
        """What there is to say of the study, most important first."""
        items: list[Json] = self._transport.json("GET", _study(study) + "/advice")["items"]
        return items

    def importances(self, study: str) -> dict[str, float | None]:
        shares: dict[str, float | None] = self._transport.json("GET", _study(study) + "/importances")["importances"]
        return shares

    def events(self, study: str, last_event_id: str | None = None) -> Iterator[Event]:
        """Follow a study: from now on, or after an event ("0": from the start). Reconnects where it broke off."""
        while True:
            headers = {"Accept": "text/event-stream", **without_none(**{"Last-Event-ID": last_event_id})}
            answer = self._transport.stream(_study(study) + "/events", headers=headers, read_timeout=SILENCE_SECONDS)
            with suppress(OSError):
                for event in parse_events(answer.pieces()):
                    last_event_id = event.id or last_event_id
                    yield event
            answer.close()
            time.sleep(self._transport.rng.uniform(0, self._transport.retries.initial))

    # Trials, for people

    def trials(
        self, study: str, *, state: str | None = None, order_by: str | None = None, page_size: int = 200
    ) -> Iterator[Json]:
        query = {"state": state, "order_by": order_by, "page_size": page_size}
        return self._transport.pages(_study(study) + "/trials", query)

    def trial(self, study: str, number: int) -> Json:
        return self._transport.json("GET", _trial(study, number))

    def attempts(self, study: str, number: int) -> list[Json]:
        items: list[Json] = self._transport.json("GET", _trial(study, number) + "/attempts")["items"]
        return items

    def stop_trial(self, study: str, number: int) -> Json:
        return self._transport.json("POST", _trial(study, number) + ":stop")

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
        added: list[Json] = self._transport.json("POST", f"{_study(study)}/trials:{verb}", body)["trials"]
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
            **without_none(objectives=objectives, labels=self.labels or None),
        }
        path = "/v1/trials:ask" if study is None else _study(study) + "/trials:ask"
        return self._transport.json("POST", path, body, read_timeout=self._transport.timeout + wait_seconds)

    def report(self, study: str, number: int, attempt: int, reports: Sequence[Mapping[str, Any]]) -> Json:
        body = {"attempt": attempt, "reports": list(reports)}
        return self._transport.json("POST", _trial(study, number) + ":report", body)

    def suggest(self, study: str, number: int, attempt: int, parameters: Mapping[str, Any]) -> Params:
        """The values of these parameters, each as in a search space; one that the trial does not have is left out."""
        body = {"attempt": attempt, "parameters": parameters}
        params: Params = self._transport.json("POST", _trial(study, number) + ":suggest", body)["params"]
        return params

    def heartbeat(self, study: str, number: int, attempt: int, *, dataset_sha256: str | None = None) -> Json:
        """dataset_sha256: of the data it is trained on; StudyStateConflict if the study is bound to other data."""
        body = {"attempt": attempt, **without_none(dataset_sha256=dataset_sha256)}
        return self._transport.json(
            "POST", _trial(study, number) + ":heartbeat", body, retries=self._transport.retries.for_heartbeats()
        )

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
        body = {"attempt": attempt, "state": state, **without_none(values=values, reason=reason, metrics=metrics)}
        if retry:
            body["retry"] = True
        if then_ask_for is not None:
            body["next"] = {"worker_id": then_ask_for, "request_id": new_request_id()}
        return self._transport.json("POST", _trial(study, number) + ":tell", body)

    def release(self, study: str, number: int, attempt: int, reason: str | None = None) -> Json:
        return self._transport.json(
            "POST", _trial(study, number) + ":release", {"attempt": attempt, **without_none(reason=reason)}
        )

    def batch(self, calls: Sequence[Mapping[str, Any]]) -> list[Json]:
        """Worker calls for many trials in one commit: [{status, body}] in order, refused ones among them."""
        results: list[Json] = self._transport.json("POST", "/v1/trials:batch", {"calls": list(calls)})["results"]
        return results

    def test_heartbeat(self, study: str, attempt: int, *, dataset_sha256: str | None = None) -> Json:
        body = {"attempt": attempt, **without_none(dataset_sha256=dataset_sha256)}
        return self._transport.json(
            "POST", _study(study) + "/test:heartbeat", body, retries=self._transport.retries.for_heartbeats()
        )

    def test_tell(self, study: str, attempt: int, state: str, **result: Any) -> Json:
        body = {"attempt": attempt, "state": state, **without_none(**result)}
        return self._transport.json("POST", _study(study) + "/test:tell", body)

    def test_release(self, study: str, attempt: int, reason: str | None = None) -> Json:
        return self._transport.json(
            "POST", _study(study) + "/test:release", {"attempt": attempt, **without_none(reason=reason)}
        )

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
                return self._transport.upload(path, what, len(what))
            with what.open("rb") as file:
                return self._transport.upload(path, file, os.fstat(file.fileno()).st_size)

        return self._transport.call_with_retries("PUT", send, retries)

    def artifacts(self, study: str, number: int | None) -> list[Json]:
        items: list[Json] = self._transport.json("GET", _artifacts(study, number))["items"]
        return items

    def artifact(self, study: str, number: int | None, name: str) -> Iterator[bytes]:
        """Its bytes, piece by piece. Raise NotFound; BrokenOff where it ends before its end."""
        return pieces_of(
            self._transport.stream(f"{_artifacts(study, number)}/{quote(name, safe='')}"), f"artifact {name!r}"
        )

    # Operations

    def workers(self) -> list[Json]:
        items: list[Json] = self._transport.json("GET", "/v1/workers")["items"]
        return items

    def drain(self, worker_id: str) -> Json:
        return self._transport.json("POST", f"/v1/workers/{quote(worker_id, safe='')}:drain")

    def version(self) -> Json:
        return self._transport.json("GET", "/version")

    def healthz(self) -> Json:
        return self._transport.json("GET", "/healthz", retries=NEVER)

    def readyz(self) -> Json:
        """What is ready; Unavailable when something is not."""
        return self._transport.json("GET", "/readyz", retries=NEVER)


def new_request_id() -> str:
    return uuid.uuid4().hex


def _study(study: str) -> str:
    return f"/v1/studies/{quote(study, safe='')}"


def _artifacts(study: str, number: int | None) -> str:
    return (f"{_study(study)}/test" if number is None else _trial(study, number)) + "/artifacts"


def _trial(study: str, number: int) -> str:
    return f"{_study(study)}/trials/{number}"
