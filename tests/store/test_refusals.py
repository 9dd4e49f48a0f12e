"""Time in which a study's calls were refused for want of the database counts in no lease of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hpo_service.domain.errors import DrawFailed, StudyHeld, TrialFinished, Unavailable
from hpo_service.domain.outage import Outage
from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies
from hpo_service.operations.calls import Ask, Heartbeat, Reports
from hpo_service.operations.reaper import begin, reap_once
from hpo_service.operations.service import Service
from hpo_service.store import upgrade
from hpo_service.store.engine import WrittenMeanwhile
from hpo_service.store.refusals import MOST_OF_A_STUDY, MOST_STUDIES, TRIED_AGAIN_SECONDS, Refusals
from hpo_service.store.write_call import Outcome, Parts, WriteCall, is_refused
from tests import worker_calls

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
LEASE = 3


@pytest.fixture
def elapsed() -> list[float]:
    return [100.0]


@pytest.fixture
def refusals(elapsed: list[float]) -> Refusals:
    return Refusals(lambda: elapsed[0])


def test_what_is_refused_again_and_again_is_one_outage_from_the_first_call_on(refusals, elapsed):
    for _ in range(4):
        refusals.note("mine", 0.5)
        elapsed[0] += 1.0
    elapsed[0] += 10.0
    assert refusals.of("mine", 1013.5) == [Outage(999.0, 1002.5)]
    assert refusals.of("other", 1013.5) == []


def test_it_goes_on_until_the_next_call_can_be_here(refusals, elapsed):
    refusals.note("mine", 0.0)
    elapsed[0] += TRIED_AGAIN_SECONDS
    assert refusals.of("mine", 1000.0) == [Outage(1000.0 - TRIED_AGAIN_SECONDS, 1000.0)]


def test_it_is_over_once_a_trial_of_the_study_was_written(refusals, elapsed):
    """One call that is refused for its own sake, again and again, keeps no dead worker's lease."""
    for _ in range(3):
        refusals.note("mine", 0.25)
        refusals.end("mine")
        elapsed[0] += 1.0
    assert refusals.of("mine", 1003.0) == [Outage(999.75, 1000.0), Outage(1000.75, 1001.0), Outage(1001.75, 1002.0)]


def test_a_call_that_came_before_the_others_and_is_refused_after_them_counts_from_its_coming(refusals, elapsed):
    refusals.note("mine", 0.5)
    elapsed[0] += 1.0
    refusals.note("mine", 8.0)
    elapsed[0] += 9.0
    assert refusals.of("mine", 1010.0) == [Outage(993.0, 1001.0)]


def test_few_are_kept_of_few_studies(refusals, elapsed):
    for _ in range(3 * MOST_OF_A_STUDY):
        refusals.note("mine", 0.0)
        elapsed[0] += 10 * TRIED_AGAIN_SECONDS
    assert len(refusals.of("mine", 1000.0)) == MOST_OF_A_STUDY
    for number in range(MOST_STUDIES):
        refusals.note(f"s{number}", 0.0)
    assert refusals.of("mine", 1000.0) == []


class Served:
    """A server on PostgreSQL, and a worker that tries again within a second whatever it is answered."""

    def __init__(self, service: Service, elapsed: list[float], clock: Any) -> None:
        self.service, self._elapsed, self._clock = service, elapsed, clock
        service.database.uptime._elapsed = lambda: elapsed[0]
        asyncio.run(begin(service))
        spec = {"name": "mine", "search_space": SPACE, "lease_seconds": LEASE, "limits": {"attempts": 1}}
        asyncio.run(studies.create(service, StudySpec.model_validate(spec)))
        assert asyncio.run(worker_calls.ask_study(service, "mine", Ask(worker_id="w", request_id="r")))["trials"]

    def heartbeats(self, seconds: int) -> list[str]:
        """What comes of one a second, beside the server's beats and its reaper."""
        return [asyncio.run(self._heartbeat()) for _ in range(seconds)]

    async def second(self) -> None:
        self._clock.turn(1.0)
        self._elapsed[0] += 1.0
        await self.service.beat()
        with contextlib.suppress(Unavailable):
            await reap_once(self.service)

    async def _heartbeat(self) -> str:
        await self.second()
        try:
            await worker_calls.heartbeat(self.service, "mine", 0, Heartbeat(attempt=1))
        except Unavailable:
            return "refused"
        return "kept"


@pytest.fixture
def served(postgres_url: str, elapsed: list[float], clock: Any) -> Iterator[Served]:
    upgrade(postgres_url)
    service = Service(postgres_url, clock)
    yield Served(service, elapsed, clock)
    service.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM hpo_studies FOR UPDATE",
        "LOCK TABLE hpo_trials IN SHARE MODE",
        "LOCK TABLE hpo_studies IN SHARE MODE",
    ],
)
def test_who_holds_what_heartbeats_need_ends_no_lease(served: Served, postgres_url: str, statement: str) -> None:
    assert served.heartbeats(2) == ["kept"] * 2
    with psycopg.connect(postgres_url) as other:
        other.execute(statement)
        assert served.heartbeats(2 * LEASE) == ["refused"] * 2 * LEASE
    assert served.heartbeats(2 * LEASE) == ["kept"] * 2 * LEASE


@pytest.mark.slow
def test_a_dead_workers_lease_ends_once_nobody_is_refused(served: Served, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE hpo_trials IN SHARE MODE")
        assert served.heartbeats(LEASE) == ["refused"] * LEASE
    for _ in range(2 * LEASE + 1):
        asyncio.run(served.second())
    with pytest.raises(TrialFinished):
        asyncio.run(worker_calls.heartbeat(served.service, "mine", 0, Heartbeat(attempt=1)))


def test_on_a_nearly_full_disk_what_is_large_takes_no_heartbeat_along(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/hpo.db")
    service = Service(f"sqlite:///{tmp_path}/hpo.db")

    async def both() -> tuple[Any, Any]:
        spec = {"name": "mine", "search_space": SPACE}
        await studies.create(service, StudySpec.model_validate(spec))
        await worker_calls.ask_study(service, "mine", Ask(worker_id="w", request_id="r", count=2))
        few = "PRAGMA max_page_count = 1"  # the least there can be: as many as there are
        await service.write(lambda record: record.sql()._db.exec_driver_sql(few).scalar())
        large = Reports.model_validate(
            {"attempt": 1, "reports": [{"step": 1, "value": 0.5, "metrics": {"x": "y" * 9000}}]}
        )
        calls = (
            worker_calls.report(service, "mine", 0, large),
            worker_calls.heartbeat(service, "mine", 1, Heartbeat(attempt=1)),
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    refused, kept = asyncio.run(both())
    service.close()
    assert isinstance(refused, Unavailable)
    assert kept["should_stop"] is False


def test_a_part_of_a_batch_that_was_refused_counts_and_one_that_was_kept_does_not() -> None:
    def refused(*errors: Exception | None) -> bool:
        call = WriteCall(Parts([lambda _: None] * len(errors)), ["mine"], lambda _: None)
        return is_refused(call, Outcome([Outcome(None, error) for error in errors], None))

    assert refused(None, Unavailable("locked"))
    assert refused(StudyHeld("held"))
    assert not refused(None, None)
    assert not refused(DrawFailed("too slow"), WrittenMeanwhile("twice"))
