"""Groups that go ahead on PostgreSQL: sent whole, heard of by the event loop, answered once they are committed."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from hpo_service.domain.errors import NotFound, Unavailable
from hpo_service.domain.outage import SHORTEST_OUTAGE_SECONDS
from hpo_service.domain.study import StudySpec
from hpo_service.operations import asking, studies, workers
from hpo_service.operations.calls import Ask, Tell
from hpo_service.operations.reaper import begin
from hpo_service.operations.service import Service
from hpo_service.store import one_round_trip
from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.engine import database_url
from hpo_service.store.in_flight_batch import InFlightBatch
from hpo_service.store.outages import BEAT_SECONDS, CHECKS_OTHERS_SECONDS, TAKES_OVER_SECONDS
from hpo_service.store.study_lock import AGED_SECONDS, LATE_SECONDS
from hpo_service.store.write_batch import WriteBatch
from tests.patience import PATIENCE_SECONDS
from tests.store.test_outages import Elapsed

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


@pytest.fixture
def service(postgres_url: str) -> Iterator[Service]:
    opened = Service(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def other(postgres_url: str, service: Service) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else on the same database."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which calls have run."""
    names: list[str] = []
    run_one = BatchRunner._run_call

    def noted(self: Any, group: Any, call: Any) -> Any:
        names.append(threading.current_thread().name)
        return run_one(self, group, call)

    monkeypatch.setattr(BatchRunner, "_run_call", noted)
    return names


async def study(service: Service, **fields: Any) -> None:
    spec = {"name": "mine", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))
    for _ in range(2):  # the writer has the study in memory now, the clock, and who is to be sent home
        await asked(service)


def begun(service: Service, work: Any, request_id: str | None = None, name: str = "mine") -> asyncio.Future[Any]:
    """A short call on its way."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any, error: BaseException | None) -> None:
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)

    service.begin(work, [name], done, runs_in_loop=True, request_id=request_id)
    return answer


async def asked(service: Service, request_id: str | None = None, name: str = "mine") -> list[int]:
    """Ask, and return the numbers of the trials."""
    ask = Ask(worker_id="w", request_id=request_id or f"r{next(_requests)}")
    look = await begun(service, partial(asking.ask_in_transaction, service, name, ask), ask.request_id, name)
    return [trial["number"] for trial in look.answer["trials"]]


def told(service: Service, number: int) -> asyncio.Future[Any]:
    tell = Tell(attempt=1, state="COMPLETE", values=[0.5])
    return begun(service, workers.on_trial(service, "tell", "mine", number, tell).work)


def complete(other: psycopg.Connection[Any]) -> int:
    row = other.execute("SELECT count(*) FROM hpo_trials WHERE state = 'COMPLETE'").fetchone()
    assert row is not None
    count: int = row[0]
    return count


def test_short_calls_run_in_the_event_loop_and_are_committed_when_they_are_answered(service, other, ran):
    async def some() -> None:
        await study(service)
        ran.clear()
        assert await asked(service) == [2]
        for number in range(3):
            await told(service, number)
            assert complete(other) == number + 1

    asyncio.run(some())
    assert ran == ["MainThread"] * 4


@pytest.mark.slow
def test_the_event_loop_goes_on_while_another_holds_the_study(service, other, ran):
    async def held_for_a_while() -> tuple[int, list[int]]:
        await study(service)
        ran.clear()
        with other.transaction():
            other.execute("SELECT FROM hpo_studies FOR UPDATE")
            answer = asyncio.create_task(asked(service))
            turns, until = 0, time.monotonic() + AGED_SECONDS + 0.2
            while time.monotonic() < until:
                await asyncio.sleep(0.001)
                turns += 1
            assert not answer.done()
        return turns, await answer

    turns, numbers = asyncio.run(held_for_a_while())
    assert numbers == [2]
    assert turns > 50
    # The clock had gone on while the lock was waited for: the call has run again, on what was then true.
    assert ran == ["MainThread", "writer"]


def test_a_group_that_took_its_time_need_not_run_again(service, ran, monkeypatch):
    send = WriteBatch.send

    def slowly(self: Any) -> Any:
        time.sleep(4 * LATE_SECONDS)
        return send(self)

    async def slow() -> list[int]:
        await study(service)
        ran.clear()
        monkeypatch.setattr(WriteBatch, "send", slowly)
        return await asked(service)

    assert asyncio.run(slow()) == [2]
    assert ran == ["MainThread"]


@pytest.mark.parametrize("seconds", [-60.0, 60.0])
def test_a_group_that_went_ahead_of_a_clock_that_was_put_forward_or_back_runs_again(service, ran, seconds):
    async def put_forward_or_back() -> list[int]:
        await study(service)
        clock = service.database._cache.database_clock
        clock._shown += seconds
        clock._last += seconds
        ran.clear()
        return await asked(service)

    assert asyncio.run(put_forward_or_back()) == [2]
    assert ran == ["MainThread", "writer"]


def test_what_another_has_written_is_found_by_a_group_that_went_ahead(service, other, ran):
    async def overtaken() -> list[int]:
        await study(service, limits={"trials": 3})
        other.execute("UPDATE hpo_studies SET given_out = 3, next_number = 3, queued = 0, revision = revision + 1")
        ran.clear()
        return await asked(service)

    assert asyncio.run(overtaken()) == []
    assert ran == ["MainThread", "writer"]


def test_an_ask_that_was_answered_long_ago_gets_that_answer(service, ran):
    async def again() -> list[list[int]]:
        await study(service)
        first = await asked(service, "the same")
        await asked(service)
        return [first, await asked(service, "the same"), await asked(service)]

    assert asyncio.run(again()) == [[2], [2], [4]]


@pytest.mark.slow
def test_a_call_that_needs_the_database_takes_nothing_of_those_before_it_along(service, other, ran):
    async def together() -> list[Any]:
        await study(service)
        ran.clear()
        calls = [told(service, 0), told(service, 999), told(service, 1)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, missing, last = asyncio.run(together())
    assert (first["state"], last["state"]) == ("COMPLETE", "COMPLETE")
    assert isinstance(missing, NotFound)
    assert complete(other) == 2
    assert ran == ["MainThread", "MainThread", "writer", "writer"]


def test_a_connection_that_is_lost_in_flight_fails_its_calls_and_not_the_next(service, other):
    async def lost() -> list[int]:
        await study(service)
        with other.transaction():
            other.execute("SELECT FROM hpo_studies FOR UPDATE")
            answer = asyncio.create_task(asked(service))
            await asyncio.sleep(0.1)
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            with pytest.raises(Unavailable, match="the database cannot take the call now"):
                await answer
        return await asked(service)

    assert asyncio.run(lost()) == [2]


def test_calls_of_the_thread_get_their_turn_though_short_ones_never_cease(service):
    async def beside() -> float:
        await study(service)
        stopping = asyncio.Event()

        async def keep_asking() -> None:
            while not stopping.is_set():
                await asked(service)

        askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        began = time.monotonic()
        for _ in range(5):
            await asyncio.wait_for(service.write(lambda record: record.study("mine"), ["mine"]), 10)
        stopping.set()
        await asyncio.gather(*askers)
        return time.monotonic() - began

    assert asyncio.run(beside()) < 10


def test_a_batch_whose_event_loop_has_ended_is_completed_when_the_service_is_closed(postgres_url, other, monkeypatch):
    service = Service(postgres_url)
    watch = InFlightBatch.watch

    async def left_in_flight() -> None:
        await study(service)
        monkeypatch.setattr(InFlightBatch, "watch", lambda batch: None)  # the loop never hears of it
        answer = told(service, 0)
        while service.database._scheduler.thread.flight is None:
            await asyncio.sleep(0)
        assert not answer.done()

    asyncio.run(left_in_flight())
    monkeypatch.setattr(InFlightBatch, "watch", watch)
    delivered = service.database._scheduler._done
    closing = threading.Thread(target=service.close)
    closing.start()
    closing.join(PATIENCE_SECONDS)
    assert not closing.is_alive()
    assert complete(other) == 1
    assert [outcome.error for written in delivered for outcome in written.outcomes] == [None]


def test_what_a_socket_does_not_take_at_once_goes_when_it_does(postgres_url):
    """While the other side takes nothing: it waits for a lock."""
    engine = sa.create_engine(database_url(postgres_url))
    with psycopg.connect(postgres_url) as other, engine.connect() as connection:
        other.execute("SELECT pg_advisory_lock(7)")
        statements = [("SELECT 1 FROM pg_advisory_lock(7)", ()), *[("SELECT length(%s)", ("x" * 10**6,))] * 40]
        sent = one_round_trip.send(connection, statements)
        time.sleep(0.1)
        assert not sent.is_out
        assert not sent.receive_available()
        other.execute("SELECT pg_advisory_unlock(7)")
        assert sent.received()[1:] == [[(b"1000000",)]] * 40
        assert sent.is_out
    engine.dispose()


def test_callers_that_begin_apart_soon_fly_together(service, monkeypatch):
    rounds, sizes = 20, []
    run_optimistically = BatchRunner.run_optimistically

    def noted(self: Any, calls: Any) -> Any:
        sizes.append(len(calls))
        return run_optimistically(self, calls)

    async def keep_asking() -> None:
        for _ in range(rounds):
            await asked(service)

    async def two_and_two() -> None:
        await study(service)
        monkeypatch.setattr(BatchRunner, "run_optimistically", noted)
        first = [asyncio.create_task(keep_asking()) for _ in range(2)]
        while service.database._scheduler.thread.flight is None:
            await asyncio.sleep(0)
        await asyncio.gather(*first, keep_asking(), keep_asking())

    asyncio.run(two_and_two())
    assert sizes[0] == 2
    assert sizes.count(4) >= rounds - 3


def test_another_server_in_one_study_does_not_keep_a_server_from_going_ahead_in_the_next(service, other, ran):
    async def shared_and_own() -> None:
        await study(service)
        other.execute("UPDATE hpo_studies SET revision = revision + 1")
        await asked(service)
        spec = {"name": "own", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}}
        await studies.create(service, StudySpec.model_validate(spec))
        for name in ("own", "mine", "own"):
            ran.clear()
            await asked(service, name=name)
            threads.append(ran[-1])

    threads: list[str] = []
    asyncio.run(shared_and_own())
    assert threads == ["MainThread", "writer", "MainThread"]


@pytest.fixture
def elapsed(service: Service) -> Elapsed:
    """Of a server that has beaten, and has served for a while."""
    clock = service.database.uptime._elapsed = Elapsed()
    asyncio.run(begin(service))
    clock.now += TAKES_OVER_SECONDS
    asyncio.run(service.beat())
    return clock


def served_until(other: psycopg.Connection[Any]) -> float:
    row = other.execute("SELECT served_until FROM hpo_servers").fetchone()
    assert row is not None
    return float(row[0])


def test_a_batch_takes_the_servers_beat_along_when_one_is_due(service, other, elapsed):
    async def some() -> None:
        await study(service)
        before = served_until(other)
        await asked(service)
        assert served_until(other) == before, "none is due yet"
        elapsed.now += BEAT_SECONDS
        assert service.database.uptime.seconds_until_beat() == 0
        await asked(service)
        assert served_until(other) > before
        assert service.database.uptime.seconds_until_beat() == BEAT_SECONDS

    asyncio.run(some())


@pytest.mark.parametrize("seconds", [CHECKS_OTHERS_SECONDS, 2 * SHORTEST_OUTAGE_SECONDS])
def test_no_batch_takes_a_beat_along_that_has_more_to_say(service, other, elapsed, seconds):
    """What it has missed is recorded by a beat of its own, and every few seconds that looks after other servers."""

    async def some() -> None:
        await study(service)
        until = elapsed.now + seconds - BEAT_SECONDS
        while seconds == CHECKS_OTHERS_SECONDS and elapsed.now < until:
            elapsed.now += BEAT_SECONDS
            await asked(service)
        before = served_until(other)
        elapsed.now = until + BEAT_SECONDS
        await asked(service)
        assert served_until(other) == before
        assert service.database.uptime.seconds_until_beat() == 0
        await service.beat()
        assert served_until(other) > before

    asyncio.run(some())


def test_no_batch_waits_for_the_beats_row(service, other, elapsed, ran):
    """Another server that has it in hand, and is stopped, stops nobody."""

    async def some() -> None:
        await study(service)
        elapsed.now += BEAT_SECONDS
        ran.clear()
        with other.transaction():
            other.execute("SELECT FROM hpo_servers FOR UPDATE")
            assert await asked(service) == [2]
        assert ran == ["MainThread"]

    asyncio.run(some())


def test_on_a_full_disk_a_batch_runs_again_where_each_call_is_tried_by_itself(service, ran, monkeypatch):
    received = one_round_trip.RoundTrip.received
    errors = [sa.exc.OperationalError("COMMIT", (), psycopg.errors.DiskFull("no space left on device"))]

    def full_once(self: Any) -> Any:
        rows = received(self)
        if errors:
            raise errors.pop()
        return rows

    async def some() -> None:
        await study(service)
        ran.clear()
        with monkeypatch.context() as patch:
            patch.setattr(one_round_trip.RoundTrip, "received", full_once)
            patch.setattr(one_round_trip.RoundTrip, "receive_available", one_round_trip.RoundTrip.receive_available)
            assert await asked(service)
        assert ran == ["MainThread", "writer"]

    asyncio.run(some())


def test_an_ask_that_is_repeated_in_one_batch_has_its_answer_there_after_rows_were_written(service, monkeypatch):
    alone: list[int] = []
    each_alone = BatchRunner._each_alone

    def noted(self: Any, calls: Any) -> Any:
        alone.append(len(calls))
        return each_alone(self, calls)

    async def repeated() -> list[Any]:
        await study(service)
        monkeypatch.setattr(BatchRunner, "_each_alone", noted)
        ask = Ask(worker_id="w", request_id="twice")
        look = partial(asking.ask_in_transaction, service, "mine", ask)
        calls = [look, lambda record: record.sql().study("mine"), look]
        return await asyncio.gather(*(service.write(call, ["mine"], "twice") for call in calls))

    first, _, again = asyncio.run(repeated())
    assert first.answer["trials"][0]["number"] == again.answer["trials"][0]["number"]
    assert alone == []


def test_a_batch_whose_answer_cannot_be_waited_for_is_refused_and_the_next_one_is_written(service, monkeypatch):
    watch, faults = InFlightBatch.watch, [OSError("no such socket")]

    def fails_once(batch: InFlightBatch) -> None:
        if faults:
            raise faults.pop()
        watch(batch)

    async def asked_again() -> list[int]:
        await study(service)
        monkeypatch.setattr(InFlightBatch, "watch", fails_once)
        with pytest.raises(Unavailable, match="no such socket"):
            await asked(service)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asked(service)

    asyncio.run(asked_again())
    assert faults == []
