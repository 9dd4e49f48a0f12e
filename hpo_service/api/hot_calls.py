"""The calls that workers make all day, past the framework: the same models, operations and errors for less.

Only an ordinary call that succeeds, or that the domain refuses, is answered here. Whatever is out of the ordinary
(a body that is no JSON or breaks a rule, a worker not heard of before, an ask that has to wait, a fault) is declined:
the application then takes the same request from its first byte, and says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import State

from hpo_service.api.http import LARGEST_BODY, check_finite
from hpo_service.api.parameters import STUDY_NAME
from hpo_service.api.problems import problem_of
from hpo_service.domain import nul
from hpo_service.domain.errors import HpoError
from hpo_service.operations import workers
from hpo_service.operations.calls import Ask, Heartbeat, Reports, Tell
from hpo_service.operations.service import Service

_PATH = re.compile(rf"/v1/studies/({STUDY_NAME})/trials(?:/([0-9]{{1,9}}):(report|heartbeat|tell)|:(ask))".encode())
JSON_TYPE = (b"content-type", b"application/json")


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class HotCall(NamedTuple):
    """What a path asks for. number: of the trial; 0 for an ask. route: the application's own for this call."""

    study: str
    number: int
    verb: str

    @classmethod
    def of(cls, path: bytes) -> HotCall | None:
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        study, number, verb, ask = match.groups()
        return cls(study.decode(), int(number or 0), (verb or ask).decode())

    @property
    def route(self) -> str:
        return "ask_study" if self.verb == "ask" else self.verb


_MODELS: Mapping[str, type[BaseModel]] = {"ask": Ask, "report": Reports, "heartbeat": Heartbeat, "tell": Tell}


class HotCalls:
    def __init__(self, state: State) -> None:
        """state: the application's."""
        self._state = state

    def begin(self, call: HotCall, content: bytes, answered: Callable[[Answer | None], None]) -> bool:
        """Begin the call. Return False where the application has to take it.

        answered: takes the answer, later and in the event loop; None where the application has to take it after all.
        """
        body = _body(_MODELS[call.verb], content)
        if body is None:
            return False
        service: Service = self._state.service
        if isinstance(body, Ask):
            return _begin_ask(service, call.study, body, answered)

        def done(result: Any, error: BaseException | None) -> None:
            answered(_answer(result, error))

        following = body.next if isinstance(body, Tell) else None
        if following is not None and not service.knows(following.worker_id):
            return False
        # Operations are looked up in their module at each call: one of each, for both ways.
        work = getattr(workers, f"{call.verb}_work")(service, call.study, call.number, body)
        service.begin(
            work,
            (call.study,),
            done,
            light=service.is_light(call.study),
            request_id=following.request_id if following is not None else None,
        )
        return True


def _begin_ask(service: Service, study: str, ask: Ask, answered: Callable[[Answer | None], None]) -> bool:
    if not service.knows(ask.worker_id):
        return False

    def done(look: Any, error: BaseException | None) -> None:
        if error is None and not look.final and ask.wait_seconds > 0 and not service.leaving:
            answered(None)
        else:
            answered(_answer(look and look.answer, error))

    service.begin(
        workers.ask_work(service, study, ask),
        (study,),
        done,
        light=service.is_light(study),
        request_id=ask.request_id,
    )
    return True


def _answer(result: Any, error: BaseException | None) -> Answer | None:
    if error is None:
        body = to_json(result)
        return Answer(200, [JSON_TYPE, (b"content-length", b"%d" % len(body))], body)
    if isinstance(error, HpoError):
        problem = problem_of(error)
        return Answer(problem.status_code, problem.raw_headers, bytes(problem.body))
    return None


def _body(model: type[BaseModel], content: bytes) -> Any:
    """The body of the call, or None where the application shall say what is wrong with it."""
    if len(content) > LARGEST_BODY or nul.ESCAPE in content:
        return None
    try:
        document = from_json(content, allow_inf_nan=False)
        check_finite(document)
        return model.model_validate(document)
    except (ValueError, ValidationError):
        return None
