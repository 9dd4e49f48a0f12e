"""What changes in a study, as server-sent events: each one the resource as it now reads, with a rising id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from pydantic_core import to_json

from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import Study
from hpo_service.operations.feeds import Event, Page
from hpo_service.operations.resources import round_resource, study_resource, trial_resources
from hpo_service.operations.service import Service
from hpo_service.store.record import Record

PAGE = 200
KEEP_ALIVE_SECONDS = 15.0


async def follow(service: Service, name: str, after: int | None) -> AsyncIterator[bytes]:
    """Events after that id, then as they come; from now on without one. Raise NotFound."""
    study = await service.read(name, lambda record, study: study)
    return _follow(service, study, study.revision if after is None else after)


async def _follow(service: Service, study: Study, after: int) -> AsyncIterator[bytes]:
    async def read(after: int) -> Page:
        return await service.read(study.name, partial(_since, study_id=study.id, after=after))

    yield b"retry: 1000\n\n"
    with service.feeds.followed(study, read) as feed:
        service.watch.begin()
        while not service.leaving:
            news = feed.news
            found = feed.since(after)
            if found is None:  # further back than the feed goes
                try:
                    page = await read(after)
                except NotFound:
                    return
                found, after = page.events, page.upto
            elif found:
                after = found[-1].revision
            elif feed.ended:
                return
            else:
                try:
                    await asyncio.wait_for(news.wait(), KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield b": still here\n\n"
            for event in found:
                yield event.sent


def _since(record: Record, study: Study, study_id: int, after: int) -> Page:
    """The next events in the order of their revisions."""
    if study.id != study_id:
        raise NotFound("the study was deleted")
    if study.revision <= after:
        return Page([], after, more=False)
    trials = record.changed_since(study, after, PAGE)
    more = len(trials) == PAGE
    upto = trials[-1].revision if more else study.revision
    events = [
        _event(trial.revision, "trial", resource)
        for trial, resource in zip(trials, trial_resources(record, trials), strict=True)
    ]
    events += [
        _event(round_.revision, "round", round_resource(round_))
        for round_ in record.rounds(study)
        if after < round_.revision <= upto
    ]
    if after < study.touched <= upto:
        events.append(_event(study.touched, "study", study_resource(record, study)))
    return Page(sorted(events, key=lambda event: event.revision), upto, more)


def _event(revision: int, kind: str, resource: Any) -> Event:
    return Event(revision, b"event: %s\nid: %d\ndata: %s\n\n" % (kind.encode(), revision, to_json(resource)))
