"""Asks that wait for a trial, and what wakes them.

A change of a study wakes asks that wait for it, no more of them than it may have trials to give, and asks that wait for
any study of a kind that they can train. Waiting holds no thread and no database connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpo_service.domain import labels
from hpo_service.domain.study import Study
from hpo_service.store.record import StudyChange

EVERYBODY = 2**31


@dataclass(eq=False)
class Waiter:
    worker_id: str
    request_id: str
    was_served: bool = False
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def clear_wakeup(self) -> None:
        """Called before a try, so that a change during the try wakes this waiter again."""
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    @property
    def is_awake(self) -> bool:
        """Whether it was woken since the last `clear_wakeup`."""
        return self._woken.is_set()

    async def wait(self, seconds: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes just after the wake-up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


class AnyStudy(NamedTuple):
    """kinds: of objective; None: all. only: the studies that the caller's key is bound to; None: all.

    has: the labels of the worker.
    """

    kinds: frozenset[str] | None
    only: frozenset[str] | None
    has: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, kinds: Collection[str] | None, only: Collection[str] | None, has: Mapping[str, str]) -> AnyStudy:
        return cls(
            None if kinds is None else frozenset(kinds),
            None if only is None else frozenset(only),
            frozenset(has.items()),
        )

    def admits(self, study: Study) -> bool:
        kind = study.spec.kind
        if kind is None or (self.only is not None and study.name not in self.only):
            return False
        return (self.kinds is None or kind in self.kinds) and labels.fit(dict(self.has), study.spec.requires)


class WaitingList:
    """The waiters of one study, or of one AnyStudy, the first come first."""

    def __init__(self) -> None:
        self.waiters: dict[Waiter, None] = {}

    def wake(self, count: int) -> None:
        """Wake the first `count` of them, or all; those that are awake already count."""
        for waiter in self.waiters:
            if count <= 0:
                return
            waiter.wake()
            count -= 1


class WaitingAsks:
    def __init__(self) -> None:
        self._of_study: dict[str, WaitingList] = {}
        self._of_any: dict[AnyStudy, WaitingList] = {}
        self._last: dict[str, StudyChange] = {}  # of each study that is waited for

    def __bool__(self) -> bool:
        return bool(self._of_study or self._of_any)

    @property
    def studies(self) -> list[str]:
        """The names of those that somebody waits for."""
        return list(self._of_study)

    @property
    def kinds_of_any(self) -> list[AnyStudy]:
        return list(self._of_any)

    @contextlib.contextmanager
    def entered(self, awaited: str | AnyStudy, worker_id: str, request_id: str) -> Iterator[Waiter]:
        """Enter before trying, so that no change after the try is missed. awaited: a study by its name, or any."""
        lists: dict[Any, WaitingList] = self._of_study if isinstance(awaited, str) else self._of_any
        waiting = lists.setdefault(awaited, WaitingList())
        waiter = Waiter(worker_id, request_id)
        waiting.waiters[waiter] = None
        try:
            yield waiter
            goes_on = waiter.was_served or waiter.is_awake
        except BaseException:
            goes_on = True
            raise
        finally:
            del waiting.waiters[waiter]
            if goes_on:
                self._pass_on(awaited, waiting, waiter)
            if not waiting.waiters:
                del lists[awaited]
                if isinstance(awaited, str):
                    self._last.pop(awaited, None)

    def _pass_on(self, awaited: str | AnyStudy, waiting: WaitingList, gone: Waiter) -> None:
        """Wake the next waiters after one that was served, or was woken and left without trying."""
        if isinstance(awaited, AnyStudy):
            waiting.wake(1)
            return
        last = self._last.get(awaited)
        if last is not None:
            self._wake_those_of(awaited, last)
        for other in waiting.waiters:
            if gone.was_served and other.request_id == gone.request_id:
                other.wake()  # the call was repeated: it has its answer now

    def notify(self, change: StudyChange) -> None:
        study = change.study
        if study.name in self._of_study:
            self._last[study.name] = change
            self._wake_those_of(study.name, change)
        if self._of_any and study.spec.kind is not None:
            count = 1 if study.sealed else study.may_give(change.round)
            for awaited, waiting in self._of_any.items():
                if count and awaited.admits(study):
                    waiting.wake(count)

    def _wake_those_of(self, name: str, change: StudyChange) -> None:
        study = change.study
        gives_nothing = study.sealed or not study.state.waits
        self._of_study[name].wake(EVERYBODY if gives_nothing else study.may_give(change.round))

    def deleted(self, name: str) -> None:
        """The study was deleted."""
        if name in self._of_study:
            self._of_study[name].wake(EVERYBODY)

    def wake_any(self, awaited: AnyStudy, count: int) -> None:
        """Wake so many waiters for any study: so many studies may have trials for them."""
        if awaited in self._of_any:
            self._of_any[awaited].wake(count)

    def wake_draining(self, workers: Collection[str]) -> None:
        """Wake the asks of these workers, so that they are told to stop."""
        for waiter in self._all():
            if waiter.worker_id in workers:
                waiter.wake()

    def wake_all(self) -> None:
        for waiter in self._all():
            waiter.wake()

    def _all(self) -> Iterator[Waiter]:
        for waiting in (*self._of_study.values(), *self._of_any.values()):
            yield from waiting.waiters
