"""What changes in a study, as server-sent events: each one the resource as it now reads, with a rising id.

Of a trial with many reports an event carries the last ones, as a worker's answer does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial

from pydantic_core import to_json

from hpo_service.domain.errors import NotFound
from hpo_service.domain.sizes import CARRIED_REPORTS
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.operations.feeds import EncodedEvent, Page
from hpo_service.operations.service import Service
from hpo_service.reading.resources import round_resource, study_resource
from hpo_service.reading.trial_pieces import read_together, whole_trial
from hpo_service.store.record import Record

PAGE = 200
KEEP_ALIVE_SECONDS = 15.0


async def follow(service: Service, name: str, after: int | None) -> AsyncIterator[bytes]:
    """Events after that id, then as they come; from now on without one. Raise NotFound."""
    study = await service.read(name, lambda record, study: study)
    if after is not None and after > study.revision:
        after = 0  # it is of another study of this name, which was deleted: all of this one is new
    return _counted(service, _follow(service, study, study.revision if after is None else after))


async def _counted(service: Service, stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    service.streams += 1
    try:
        async with contextlib.aclosing(stream):
            async for part in stream:
                yield part
    finally:
        service.streams -= 1


async def _follow(service: Service, study: Study, after: int) -> AsyncGenerator[bytes, None]:
    async def read(after: int) -> Page:
        return await service.read(study.name, partial(_since, study_id=study.id, after=after))

    yield b"retry: 1000\n\n"
    with service.feeds.followed(study, read) as feed:
        service.change_poller.begin()
        while not service.is_shutting_down:
            news, sent = feed.news, b""
            found = feed.since(after)
            if found is None:  # further back than the feed goes
                try:
                    sent, after = _all_of(await read(after))
                except NotFound:
                    return
            elif found:
                sent, after = _all_of(Page(found, found[-1].revision, more=False))
            elif feed.ended:
                return
            else:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await news.wait()
                except TimeoutError:
                    sent = b": still here\n\n"
            if sent:
                yield sent  # all that is held while the reader takes its time, and counted (api/streams.py)


def _all_of(page: Page) -> tuple[bytes, int]:
    return b"".join(event.sent for event in page.events), page.upto


def _since(record: Record, study: Study, study_id: int, after: int) -> Page:
    """The next events in the order of their revisions."""
    if study.id != study_id:
        raise NotFound("the study was deleted")
    if study.revision <= after:
        return Page([], after, more=False)
    trials, more = record.trials.changed_since(study, after, PAGE)
    events = _with_last_reports(record, study, trials)
    more = more or len(events) < len(trials)
    upto = events[-1].revision if more else study.revision
    events += [
        _event(round_.revision, b"round", to_json(round_resource(round_)))
        for round_ in record.rounds(study)
        if after < round_.revision <= upto
    ]
    if after < study.touched <= upto:
        events.append(_event(study.touched, b"study", to_json(study_resource(record, study))))
    return Page(sorted(events, key=lambda event: event.revision), upto, more)


def _event(revision: int, kind: bytes, resource: bytes) -> EncodedEvent:
    return EncodedEvent(revision, b"event: %s\nid: %d\ndata: %s\n\n" % (kind, revision, resource))


def _with_last_reports(record: Record, study: Study, trials: Sequence[Trial]) -> list[EncodedEvent]:
    """The first of them, as many as are read at once, each with the last reports that fit into an event."""
    some = read_together(record, trials)
    texts = record.reports.texts_of(some) if len(some) > 1 else {}

    def last_ones(trial: Trial) -> list[bytes]:
        its = texts.get(trial.number, [])
        if len(some) > 1 and sum(map(len, its)) + len(its) <= CARRIED_REPORTS:
            return its
        return record.reports.last_texts(trial)

    return [_event(trial.revision, b"trial", whole_trial(study, trial, last_ones(trial))) for trial in some]
