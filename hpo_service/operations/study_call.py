"""A call on one study that one transaction answers, as most calls of workers are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from hpo_service.domain.json_types import Json
from hpo_service.operations.service import Answered, Service, set_answer
from hpo_service.store.transaction import Transaction

CallerLeft = Callable[[], Awaitable[bool]]


async def never() -> bool:
    return False


class StudyCall(NamedTuple):
    """work: what the call does, and returns as its answer. request_id: of an ask.

    runs_in_loop: it needs nothing but what is in memory, if the study and its tuner are there.

    finish: called in the event loop right after the commit, with a function that tells whether the caller has left, and
    with the transaction's result. It returns the answer, or a coroutine that does.
    """

    study: str
    work: Callable[[Transaction], Any]
    request_id: str | None = None
    finish: Callable[[CallerLeft, Any], Json | Coroutine[Any, Any, Json]] | None = None
    runs_in_loop: bool = True

    def begin(self, service: Service, answered: Answered, caller_left: CallerLeft = never) -> None:
        """Begin the call. answered: takes the answer and None, or None and the error, later in the event loop."""
        service.begin(
            self.work,
            (self.study,),
            answered,
            runs_in_loop=self.runs_in_loop and service.can_run_in_loop(self.study),
            request_id=self.request_id,
            finish=None if self.finish is None else partial(self.finish, caller_left),
        )

    async def answer(self, service: Service, caller_left: CallerLeft = never) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.begin(service, partial(set_answer, answer), caller_left)
        return await answer
