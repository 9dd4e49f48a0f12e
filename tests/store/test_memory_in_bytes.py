"""What the writer and the tuners remember is bounded in bytes, over all studies; what they let go of is read again."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies, tuners
from hpo_service.operations.calls import Ask, Heartbeat, Reports, Tell
from hpo_service.operations.service import Service
from hpo_service.store import study_cache
from hpo_service.tuning.tuner import BYTES_A_REPORT, BYTES_A_TRIAL
from tests import worker_calls

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
KIB = 2**10
_requests = itertools.count()


async def create(service: Service, name: str, **fields: Any) -> None:
    spec = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))


async def ask(service: Service, name: str) -> int:
    asked = Ask(worker_id="w", request_id=f"r{next(_requests)}")
    (trial,) = (await worker_calls.ask_study(service, name, asked))["trials"]
    number: int = trial["number"]
    return number


async def report(service: Service, name: str, number: int, steps: range, kib: int) -> None:
    some = [{"step": step, "value": 0.5, "metrics": {"text": "x" * (kib * KIB)}} for step in steps]
    await worker_calls.report(service, name, number, Reports.model_validate({"attempt": 1, "reports": some}))


async def tell(service: Service, name: str, number: int, kib: int) -> Any:
    metrics = {"text": "x" * (kib * KIB)}
    return await worker_calls.tell(
        service, name, number, Tell(attempt=1, state="COMPLETE", values=[0.5], metrics=metrics)
    )


@pytest.mark.slow
def test_all_studies_together_take_no_more_than_they_shall(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_cache, "MOST_BYTES", 400 * KIB)
    memory = service.database._cache

    async def work() -> None:
        for name in ("a", "b", "c", "d"):
            await create(service, name)
            for _ in range(8):
                number = await ask(service, name)
                await report(service, name, number, range(3), kib=10)
                await tell(service, name, number, kib=10)
                assert memory.weight <= 400 * KIB
                assert memory.weight == sum(cached.weight for cached in memory.studies.values())
        assert list(memory.ids)[-1] == "d"
        assert "a" not in memory.ids  # the least recently written
        # a repeated tell of a trial that is not in memory any more is answered as the first time
        assert await tell(service, "a", 0, kib=10) == await tell(service, "a", 0, kib=10)

    asyncio.run(work())


@pytest.mark.slow
def test_one_study_alone_lets_go_of_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_cache, "MOST_BYTES", 100 * KIB)
    memory = service.database._cache

    async def work() -> Any:
        await create(service, "a")
        first = await ask(service, "a")
        await report(service, "a", first, range(4), kib=10)
        for _ in range(8):
            await report(service, "a", await ask(service, "a"), range(4), kib=10)
            assert memory.weight <= 100 * KIB
        await report(service, "a", first, range(4, 6), kib=10)
        return await tell(service, "a", first, kib=1)

    assert [each["step"] for each in asyncio.run(work())["reports"]] == list(range(6))


def test_a_refused_call_leaves_the_count_of_bytes_as_it_was(service: Service) -> None:
    memory = service.database._cache

    async def work() -> None:
        await create(service, "a")
        number = await ask(service, "a")
        await report(service, "a", number, range(3), kib=10)
        before = memory.weight
        with pytest.raises(Exception, match="does not hold"):
            await worker_calls.report(service, "a", number, Reports.model_validate({"attempt": 7, "reports": []}))
        await worker_calls.heartbeat(service, "a", number, Heartbeat(attempt=1))
        assert memory.weight == before

    asyncio.run(work())


@pytest.mark.slow
def test_the_tuners_together_take_no_more_than_they_shall(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        for name in ("a", "b", "c"):
            await create(service, name, sampler={"name": "tpe", "seed": 1})
            for _ in range(5):
                await tell(service, name, await ask(service, name), kib=0)
        assert len(service.tuners._entries) == 3
        weights = [entry.weight for entry in service.tuners._entries.values()]
        assert service.tuners._weight == sum(weights)
        monkeypatch.setattr(tuners, "MOST_BYTES", weights[0] + weights[1])
        await ask(service, "a")
        assert len(service.tuners._entries) == 2
        assert service.tuners._weight <= weights[0] + weights[1] + BYTES_A_TRIAL
        await ask(service, "b")

    asyncio.run(work())


def test_a_history_that_is_read_anew_counts_once(service: Service) -> None:
    async def work() -> list[int]:
        await create(service, "a", sampler={"name": "tpe", "seed": 1}, pruner={"name": "median"})
        number = await ask(service, "a")
        await report(service, "a", number, range(50), kib=0)
        await tell(service, "a", number, kib=0)
        study = service.database.read(lambda record: record.study("a"))
        kept = []

        def adopt(known: Any, _record: Any) -> None:
            service.tuners.adopt(study, *known)

        for _ in range(3):
            known = await service.long_draws.history(study, draws=True)
            service.tuners._entries[study.id].seen = 0  # as if it knew nothing
            await service.write(partial(adopt, known))
            kept.append(service.tuners._weight)
        return kept

    first, *others = asyncio.run(work())
    assert others == [first] * 2
    assert first > BYTES_A_TRIAL + 50 * BYTES_A_REPORT


def test_a_study_that_is_only_looked_at_counts_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_at(name: str, record: Any) -> None:
        record.rounds(record.study(name))

    async def work() -> None:
        for name in ("a", "b", "c"):
            await create(service, name, metadata={"text": "x" * 20 * KIB})
        memory = service.database._cache
        memory.forget_all()
        monkeypatch.setattr(study_cache, "MOST_BYTES", 150 * KIB)
        for name in ("a", "b", "c"):
            await service.write(partial(look_at, name), [name])
        assert len(memory.studies) == 1
        assert memory.weight == sum(cached.weight for cached in memory.studies.values()) > 0

    asyncio.run(work())
