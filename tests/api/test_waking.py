"""Who waits is woken by what concerns him, and by no more: asks by their study, streams by one reading for all."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import StudySpec
from hpo_service.operations import asking, events, known_workers, studies
from hpo_service.operations.calls import Ask, Heartbeat, Tell
from hpo_service.operations.service import Service
from tests import worker_calls
from tests.patience import PATIENCE_SECONDS

LONG = 10 * PATIENCE_SECONDS  # at the end of a wait there is a look, too: no test may be saved by that
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


class Busy(Service):
    """Counts what its calls have written, and what was read for them."""

    writes = 0
    looks = 0

    def _submit(self, *call: Any, **how: Any) -> None:
        self.writes += 1
        super()._submit(*call, **how)

    async def _read_studies_to_ask(self, wanted: Any) -> Any:
        self.looks += 1
        return await super()._read_studies_to_ask(wanted)


@pytest.fixture
def run(database_url: str) -> Callable[..., Any]:
    """Run a test on some servers of one database: one on SQLite, as many as it takes on PostgreSQL."""

    def run_on(test: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        async def tested() -> Any:
            servers = 1 if database_url.startswith("sqlite") else test.__code__.co_argcount
            opened = [await asyncio.to_thread(Busy, database_url) for _ in range(servers)]
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return await test(*[opened[k % servers] for k in range(test.__code__.co_argcount)])
            finally:
                for service in opened:
                    service.begin_shutdown()
                await asyncio.sleep(0)
                for service in opened:
                    await asyncio.to_thread(service.close)

        return asyncio.run(tested())

    return run_on


async def created(service: Service, name: str = "s", **fields: Any) -> None:
    spec = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))


async def asked(service: Service, name: str | None = "s", wait: float = 0, **fields: Any) -> Any:
    ask = Ask(**{"worker_id": "w", "request_id": f"wake-{next(_requests)}", **fields})
    ask = ask.model_copy(update={"wait_seconds": wait})  # longer than a caller may
    if name is None:
        return await asking.ask_any(service, ask)
    return await worker_calls.ask_study(service, name, ask)


async def told(service: Service, number: int, name: str = "s") -> None:
    await worker_calls.tell(service, name, number, Tell(attempt=1, state="COMPLETE", values=[0.5]))


async def settled(service: Busy) -> None:
    """Until nothing is written or looked at any more but by the clock."""
    before = -1
    while before != service.writes + service.looks:
        before = service.writes + service.looks
        await asyncio.sleep(0.2)


@asynccontextmanager
async def waiting(service: Busy, count: int, name: str | None = "s", **fields: Any) -> AsyncIterator[list[Any]]:
    """So many asks that wait by now."""
    tasks = [asyncio.create_task(asked(service, name, LONG, **fields)) for _ in range(count)]
    await settled(service)
    assert not any(task.done() for task in tasks)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
def test_a_change_of_one_study_wakes_nobody_who_waits_for_another(run):
    async def test(service: Busy) -> None:
        await created(service, "busy")
        await created(service, "paused")
        await created(service, "full", limits={"running": 1})
        await studies.act(service, "paused", "pause")
        await asked(service, "full")
        async with waiting(service, 30, "paused"), waiting(service, 30, "full"), waiting(service, 30, None):
            before, looks = service.writes, service.looks
            for number in range(20):
                await asked(service, "busy")
                await told(service, number, "busy")
            await settled(service)
            assert service.writes - before <= 40 + 4  # the calls themselves, and who was heard of
            assert service.looks - looks <= 4 * 2  # on PostgreSQL by the clock, for another server's sake

    run(test)


class PausedWriter:
    """The write lock; the writer thread stands still once, right after it has released it."""

    def __init__(self, lock: Any) -> None:
        self.acquire, self.locked, self._release = lock.acquire, lock.locked, lock.release
        self.was_released, self.go_on = threading.Event(), threading.Event()

    def release(self) -> None:
        self._release()
        if threading.current_thread().name == "writer" and not self.was_released.is_set():
            self.was_released.set()
            self.go_on.wait(PATIENCE_SECONDS)


def test_an_ask_hears_of_a_change_that_is_committed_before_its_own_outcome_is_delivered(run):
    async def test(service: Busy) -> None:
        await created(service, limits={"running": 1})
        await asked(service)
        runner = service.database._runner
        lock = PausedWriter(runner.write_lock)
        runner.write_lock = lock  # type: ignore[assignment]
        ask = Ask(worker_id="w", request_id="second").model_copy(update={"wait_seconds": LONG})
        call = asking.ask_study(service, "s", ask)._replace(runs_in_loop=False)  # in the writer thread
        second = asyncio.create_task(call.answer(service))
        await asyncio.to_thread(lock.was_released.wait, PATIENCE_SECONDS)
        await told(service, 0)  # in the event loop, which another batch's outcomes do not reach yet
        lock.go_on.set()
        assert [trial["number"] for trial in (await second)["trials"]] == [1]

    run(test)


@pytest.mark.slow
def test_no_more_are_woken_than_wake_any(run):
    async def test(service: Busy) -> None:
        await created(service, limits={"running": 2})
        await asked(service)
        await asked(service)
        async with waiting(service, 40) as tasks:
            for number in range(3):
                before = service.writes
                await told(service, number)
                await settled(service)
                assert sum(task.done() for task in tasks) == number + 1
                assert service.writes - before <= 1 + 3

    run(test)


@pytest.mark.slow
def test_of_many_that_wait_for_any_study_each_gets_one_and_they_look_together(run):
    async def test(service: Busy) -> None:
        async with waiting(service, 40, None) as tasks:
            looks = service.looks
            for name in ("a", "b", "c"):
                await created(service, name, objective={"kind": "k"}, limits={"running": 5})
            while sum(task.done() for task in tasks) < 15:
                await asyncio.sleep(0.02)
            await settled(service)
            given = [task.result()["trials"][0]["study"] for task in tasks if task.done()]
            assert sorted(given) == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
            assert service.looks - looks <= 30

    run(test)


@pytest.mark.slow
def test_a_worker_that_hung_up_leaves_the_trial_to_the_next(run):
    async def test(service: Busy) -> None:
        await created(service, limits={"running": 1})
        await asked(service)

        async def left() -> bool:
            return True

        ask = Ask(worker_id="gone", request_id="gone", wait_seconds=30)
        gone = asyncio.create_task(worker_calls.ask_study(service, "s", ask, left))
        await settled(service)
        async with waiting(service, 3) as tasks:
            await told(service, 0)
            assert (await gone)["trials"] == []
            while not any(task.done() for task in tasks):
                await asyncio.sleep(0.02)
            await settled(service)
            assert sum(task.done() for task in tasks) == 1

    run(test)


@pytest.mark.slow
def test_a_waiter_that_is_cancelled_when_it_was_woken_leaves_the_trial_to_the_next(run):
    async def test(service: Busy) -> None:
        await created(service, objective={"kind": "k"}, limits={"running": 1})
        await asked(service)
        first = asyncio.create_task(asked(service, None, LONG))  # of one study, nobody but the server's end cancels it
        await settled(service)
        async with waiting(service, 2, None) as tasks:
            (those,) = service.asks._of_any.values()
            next(iter(those.waiters)).wake()
            await asyncio.sleep(0)
            first.cancel()
            await told(service, 0)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert [trial["number"] for task in done for trial in task.result()["trials"]] == [1]
            assert first.cancelled()

    run(test)


@pytest.mark.slow
def test_the_same_ask_sent_twice_gets_the_same_answer_twice(run):
    async def test(service: Busy) -> None:
        await created(service, limits={"running": 1})
        await asked(service)
        async with waiting(service, 2, request_id="twice") as tasks:
            await told(service, 0)
            first, second = await asyncio.gather(*tasks)
            assert first == second
            assert first["trials"][0]["number"] == 1

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s", None])
def test_what_another_server_does_wakes_too(run, name):
    async def test(service: Busy, other: Busy) -> None:
        await created(service, objective={"kind": "k"})
        await studies.act(service, "s", "pause")
        async with waiting(service, 3, name) as tasks:
            await studies.act(other, "s", "resume")
            given = await asyncio.gather(*tasks)
            assert sorted(one["trials"][0]["number"] for one in given) == [0, 1, 2]

    run(test)


@pytest.mark.slow
def test_a_study_that_is_deleted_there_sends_home_who_waits_here(run):
    async def test(service: Busy, other: Busy) -> None:
        await created(service, limits={"running": 1})
        await asked(service)
        async with waiting(service, 2) as tasks:
            await studies.delete(other, "s", force=True)
            for task in tasks:
                with pytest.raises(NotFound):
                    await task

    run(test)


@pytest.mark.slow
def test_a_worker_drained_there_is_answered_here(run):
    async def test(service: Busy, other: Busy) -> None:
        await created(service, limits={"running": 1})
        await asked(service, worker_id="mine")
        async with waiting(service, 1, worker_id="mine") as (task,):
            await known_workers.drain(other, "mine")
            assert (await task)["drain"]

    run(test)


@pytest.mark.slow
def test_a_lease_that_runs_out_wakes_though_nothing_else_happens(run):
    async def test(service: Busy) -> None:
        await created(service, limits={"trials": 1}, lease_seconds=1)
        await asked(service)
        async with waiting(service, 2) as tasks:
            while not any(task.done() for task in tasks):
                await asyncio.sleep(0.05)
            (done,) = [task for task in tasks if task.done()]
            assert done.result()["trials"][0]["attempt"] == 2

    run(test)


async def revisions(stream: AsyncIterator[bytes], upto: int) -> list[int]:
    """The ids of the events, until one has this."""
    found: list[int] = []
    while not found or found[-1] < upto:
        some = await anext(stream)
        found += [int(line.removeprefix(b"id: ")) for line in some.splitlines() if line.startswith(b"id: ")]
    return found


@pytest.mark.slow
def test_those_who_follow_a_study_get_the_same_events_read_once_for_all(run, monkeypatch):
    reads = 0
    since = events._since

    def counted(*arguments: Any, **fields: Any) -> Any:
        nonlocal reads
        reads += 1
        return since(*arguments, **fields)

    monkeypatch.setattr(events, "_since", counted)

    async def test(service: Busy, other: Busy) -> None:
        await created(service)
        await created(service, "another")
        for _ in range(5):
            await asked(service)
        streams = [await events.follow(service, "s", None) for _ in range(20)]
        for stream in streams:
            assert (await anext(stream)).startswith(b"retry")
        following = [asyncio.create_task(revisions(stream, 10)) for stream in streams]
        await asyncio.sleep(0.3)
        before = reads
        await worker_calls.heartbeat(service, "s", 0, Heartbeat(attempt=1))
        for number in range(3):
            await told(other, number)
            await asked(service, "another")
        study = await service.read("s", lambda record, study: study)
        last = study.revision
        found = await asyncio.gather(*following) if last >= 10 else []
        assert all(one == found[0] for one in found)
        assert reads - before < 20
        late = await events.follow(service, "s", 0)
        assert sorted(set(found[0])) == found[0]
        assert (await revisions(late, last))[-1] == last
        for stream in (*streams, late):
            await stream.aclose()  # type: ignore[attr-defined]
        assert not service.feeds

    run(test)


def test_who_follows_is_not_held_when_the_study_goes_or_the_server(run):
    async def test(service: Busy) -> None:
        await created(service)
        await created(service, "stays")
        gone, left = await events.follow(service, "s", None), await events.follow(service, "stays", None)
        for stream in (gone, left):
            await anext(stream)
        ends = [asyncio.create_task(anext(stream, None)) for stream in (gone, left)]
        await asyncio.sleep(0.2)
        await studies.delete(service, "s", force=False)
        assert await ends[0] is None
        service.begin_shutdown()
        assert await ends[1] is None

    run(test)
