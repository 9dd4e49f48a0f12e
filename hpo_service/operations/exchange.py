"""Takes calls from the event loop to the writer and brings the answers back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from hpo_service.domain.errors import HpoError
from hpo_service.store.database import Database
from hpo_service.store.writer import LARGEST_GROUP, Call
from hpo_service.store.writing_record import WritingRecord

Done = Callable[[Any, BaseException | None], None]

# More than a round of four callers takes on two cores; the event loop counts in whole milliseconds.
GATHERING_SECONDS = 0.002
TRIED_AGAIN = 16  # groups, until it is looked at anew whether callers have become quicker


class Exchange:
    """Takes calls from the event loop to the writer and brings the answers back.

    Those of one turn of the loop go together, and those of one group come together: waking a thread costs as much as
    a call's own work. If all of them are light they run at once, here; while the writer is at work, they wait.

    Those who have just been answered are given a moment to call again: else the callers fall into two halves that are
    written by turns, with twice as many commits. Where the writing is done here, and the callers take longer to come
    again than a commit takes, they are not waited for: the one half is written while the other is on its way.
    """

    def __init__(self) -> None:
        self._leaving: list[Call] = []
        self._all_light = True
        self._arrived: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing_in: int | None = None  # the event loop's thread, while it writes: it takes the answers itself
        self._expected = 0  # so many calls may soon be here
        self._gathering: asyncio.TimerHandle | None = None
        self._gathering_since = 0.0
        self._gathering_seconds = 0.0  # on the average of the last times
        self._groups = 0
        self.waiting = 0  # calls without an answer yet

    def submit(
        self,
        database: Database,
        work: Callable[[WritingRecord], Any],
        studies: Sequence[str],
        done: Done,
        *,
        light: bool,
        request_id: str | None,
    ) -> None:
        """In the event loop. done: takes the result and None, or None and the error, in the event loop too."""

        def arrived(result: Any, error: BaseException | None) -> None:
            self._arrived.append((done, result, error))

        self.waiting += 1
        if not self._leaving:
            self._database, self._loop = database, asyncio.get_running_loop()
            self._loop.call_soon(self._hand_over)
        self._leaving.append(database.call(work, studies, arrived, request_id))
        if not light:
            self._all_light = False
        if len(self._leaving) == self._expected and self._loop is not None:
            self._loop.call_soon(self._hand_over)

    def answered(self) -> None:
        """At the end of a group, in the thread that has run it."""
        if (self._arrived or self._leaving) and self._loop is not None and self._writing_in != threading.get_ident():
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._written_elsewhere)

    def _hand_over(self) -> None:
        if not self._leaving:
            return
        if self._all_light:
            if len(self._leaving) < self._expected:
                return  # they are handed over when more are here, or have not come
            self._end_gathering()
            some = self._leaving[:LARGEST_GROUP]  # others shall not have to wait for a crowd
            self._writing_in = threading.get_ident()
            begun = self._database.write_here(some, self._watch)
            self._writing_in = None
            if begun:
                del self._leaving[:begun]
                self._all_light = begun == len(some)
                if self._arrived and self._is_worth_gathering():
                    self._gather()
                self._give_answers()
                if self._leaving and self._loop is not None:
                    self._loop.call_soon(self._hand_over)
                return
            if self._database.is_writing:
                return  # they are handed over when it has finished
        calls, self._leaving, self._all_light = self._leaving, [], True
        try:
            self._database.write_all(calls)
        except HpoError as error:
            for call in calls:
                call.done(None, error)
            self._give_answers()

    def _watch(self, socket: int, writing: bool, heard: Callable[[], None]) -> _Watching:
        assert self._loop is not None

        def in_the_loop() -> None:
            self._writing_in = threading.get_ident()
            try:
                heard()
            finally:
                self._writing_in = None
                if self._arrived:
                    self._gather()
                self._hand_out()

        return _Watching(self._loop, socket, writing, in_the_loop)

    def _is_worth_gathering(self) -> bool:
        self._groups += 1
        return self._gathering_seconds <= self._database.commit_seconds or self._groups % TRIED_AGAIN == 0

    def _gather(self) -> None:
        """Let as many come together, for a moment, as are answered now and as are waiting."""
        assert self._loop is not None
        self._end_gathering()
        calls = len(self._arrived) + len(self._leaving)
        if calls > 1:
            self._expected, self._gathering_since = min(calls, LARGEST_GROUP), time.perf_counter()
            self._gathering = self._loop.call_later(GATHERING_SECONDS, self._hand_over_gathered)

    def _hand_over_gathered(self) -> None:
        self._end_gathering()
        self._hand_over()

    def _end_gathering(self) -> None:
        """They are here, or have not come."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._expected, self._gathering = 0, None
            took = time.perf_counter() - self._gathering_since
            too_long = 2 * self._database.commit_seconds  # how much too long does not matter: some will not come again
            self._gathering_seconds += 0.1 * (min(took, too_long) - self._gathering_seconds)

    def _written_elsewhere(self) -> None:
        if self._arrived and self._is_worth_gathering():
            self._gather()
        self._hand_out()

    def _hand_out(self) -> None:
        self._give_answers()
        self._hand_over()

    def _give_answers(self) -> None:
        while self._arrived:
            done, result, error = self._arrived.popleft()
            self.waiting -= 1
            done(result, error)


class _Watching:
    """A socket that the event loop watches."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: int, writing: bool, heard: Callable[[], None]) -> None:
        self._loop, self._socket, self._writing = loop, socket, writing
        loop.add_reader(socket, heard)
        if writing:
            loop.add_writer(socket, heard)

    def stop(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._writing:
            self._loop.remove_writer(self._socket)

    @property
    def is_over(self) -> bool:
        return not self._loop.is_running()
