"""/readyz is open to anybody, so its check runs once a second at most, however many ask."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from hpo_service.api.readiness import GOOD_FOR_SECONDS, Readiness
from tests.patience import PATIENCE_SECONDS


class Database:
    """Says what it was told to say, when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.says: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def faults(self) -> list[str]:
        self.asked += 1
        assert self.may_answer.wait(PATIENCE_SECONDS)
        return list(self.says)


def test_those_who_ask_at_once_get_the_answer_of_one_check() -> None:
    async def ask() -> None:
        database = Database()
        database.may_answer.clear()
        readiness = Readiness(database.faults)
        asking = [asyncio.create_task(readiness.faults()) for _ in range(32)]
        leaving = asyncio.create_task(readiness.faults())
        await asyncio.sleep(0.05)
        leaving.cancel()
        database.says = ["the disk is full"]
        database.may_answer.set()
        assert await asyncio.gather(*asking) == [["the disk is full"]] * 32
        assert database.asked == 1

    asyncio.run(ask())


def test_an_answer_is_good_for_a_second_and_no_longer() -> None:
    async def ask() -> None:
        now = [100.0]
        database = Database()
        readiness = Readiness(database.faults, lambda: now[0])
        assert await readiness.faults() == []
        database.says = ["away"]
        now[0] += GOOD_FOR_SECONDS - 0.01
        assert await readiness.faults() == []
        now[0] += 0.01
        assert await readiness.faults() == ["away"]
        assert database.asked == 2

    asyncio.run(ask())


def test_a_check_that_fails_is_made_again_by_the_next() -> None:
    async def ask() -> None:
        answers: list[Any] = [RuntimeError("a fault of our own"), []]

        def check() -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            found: list[str] = answer
            return found

        readiness = Readiness(check)
        for _ in range(2):
            try:
                assert await readiness.faults() == []
            except RuntimeError:
                continue
        assert answers == []

    asyncio.run(ask())


def test_many_callers_cost_one_commit_a_second(own: Any) -> None:
    database = own.client.app.state.service.database
    asked: list[float] = []
    check = database.faults

    def counted() -> list[str]:
        asked.append(0.0)
        found: list[str] = check()
        return found

    own.client.app.state.readiness = Readiness(counted, lambda: 0.0)
    assert [own.get("/readyz").status_code for _ in range(50)] == [200] * 50
    assert len(asked) == 1
