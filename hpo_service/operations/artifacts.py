"""Artifacts: stored whole or not at all, read in pieces, deleted when no trial or test has them any more."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hpo_service.domain.artifact import MOST_ARTIFACTS, SEALED_TEST, Artifact
from hpo_service.domain.errors import Fault, HpoError, Invalid, NotFound, TooLarge, Unavailable
from hpo_service.domain.json_types import Json
from hpo_service.domain.study import Study
from hpo_service.logged_state import LoggedState, log_failures
from hpo_service.objects.object_store import ObjectMissing, ObjectStore, Upload
from hpo_service.operations.sealed_test_calls import test_of_study
from hpo_service.operations.service import Service
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.upload_places import UploadPlaces
from hpo_service.reading.resources import artifact_resource
from hpo_service.store.artifact_rows import ArtifactRows
from hpo_service.store.record import Record

WRITE_AT_ONCE = 2**20
UPLOADS_AT_ONCE = 8  # each holds a few megabytes; others wait, and are not read yet
SWEEP_SECONDS = 5.0  # nobody waits for it
READ_AGAIN = 3  # when an artifact was replaced right between the look for it and its reading

T = TypeVar("T")

_NO_PLACE = (
    "this server keeps no artifacts: with PostgreSQL, set HPO_ARTIFACTS to a folder that all servers share, or to a "
    "bucket's URL"
)


class UploadGivenUp(Unavailable):
    """The sweep has given the upload up; the database has refused nothing."""


@dataclass(frozen=True)
class Owner:
    """Whose artifacts: of a trial by its number, or of the study's sealed test."""

    study: str
    number: int = SEALED_TEST

    @property
    def is_test(self) -> bool:
        return self.number == SEALED_TEST


@dataclass(frozen=True)
class ArtifactBounds:
    """one: the bytes of an artifact; total: of all that a study has."""

    one: int
    total: int


class Artifacts:
    """Of one server."""

    def __init__(self, service: Service, store: ObjectStore | None, bounds: ArtifactBounds) -> None:
        self._service, self._store, self._bounds = service, store, bounds
        self._under_way: set[str] = set()
        self._places = UploadPlaces(UPLOADS_AT_ONCE)
        # A separate pool: a folder that hangs holds up nothing but artifacts.
        self._threads = ThreadPoolExecutor(2 * UPLOADS_AT_ONCE, thread_name_prefix="artifacts")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- keeping ------------------------------------------------------------------------------------------

    async def put(
        self, owner: Owner, name: str, attempt: int, announced: int | None, pieces: AsyncIterator[bytes]
    ) -> Json:
        """Store it, replacing another one of this name. Raise what a report raises, TooLarge, Unavailable."""
        store = self._store
        if store is None:
            raise Unavailable(_NO_PLACE)
        self._check_size(announced or 0)
        artifact = Artifact(name, uuid.uuid4().hex, announced or 0, "", attempt, 0.0)
        async with self._places.taken() as place:
            self._under_way.add(artifact.key)
            try:
                await self._service.change(owner.study, partial(self._begin, owner, artifact))
                return await self._upload(store, owner, artifact, announced, place.received(pieces))
            finally:
                self._under_way.discard(artifact.key)

    async def _upload(
        self, store: ObjectStore, owner: Owner, artifact: Artifact, announced: int | None, pieces: AsyncIterator[bytes]
    ) -> Json:
        upload: Upload | None = None
        try:
            upload = await self._in_thread(partial(store.begin, artifact.key, announced))
            size, sha256 = await self._written(upload, pieces)
            await self._in_thread(upload.keep)
            keep = partial(self._keep, owner, artifact, size, sha256)
            return await self._service.change(owner.study, keep)
        except BaseException:
            # Where even this fails, the row stays, and the sweep finds it.
            if upload is not None:
                await asyncio.shield(self._in_thread(upload.drop))
            await asyncio.shield(self._give_up(artifact.key))
            raise

    async def _written(self, upload: Upload, pieces: AsyncIterator[bytes]) -> tuple[int, str]:
        """Write what comes, no more of it in memory than WRITE_AT_ONCE; return its size and its SHA-256."""
        digest, size, waiting = hashlib.sha256(), 0, bytearray()

        def write(data: bytes) -> None:
            digest.update(data)
            upload.write(data)

        async for piece in pieces:
            size += len(piece)
            self._check_size(size)
            waiting += piece
            if len(waiting) >= WRITE_AT_ONCE:
                data, waiting = bytes(waiting), bytearray()
                await self._in_thread(partial(write, data))
        await self._in_thread(partial(write, bytes(waiting)))
        return size, digest.hexdigest()

    def _begin(self, owner: Owner, artifact: Artifact, work: StudyWork) -> None:
        self._hold(owner, artifact, work, ())
        self._check_total(owner, artifact, work, artifact.size)
        server_id = self._service.database.uptime.server_id
        at_now = Artifact(**{**vars(artifact), "at": work.transaction.now})
        ArtifactRows(work.transaction.sql()).begin(at_now, work.study.id, owner.number, server_id)

    def _keep(self, owner: Owner, artifact: Artifact, size: int, sha256: str, work: StudyWork) -> Json:
        kept = Artifact(artifact.name, artifact.key, size, sha256, artifact.attempt, work.transaction.now)
        self._hold(owner, artifact, work, (artifact.name,))
        self._check_total(owner, artifact, work, size)
        if not ArtifactRows(work.transaction.sql()).keep(kept, work.study.id, owner.number):
            raise UploadGivenUp("the upload took too long, and was given up meanwhile: send it again")
        return artifact_resource(kept)

    def _hold(self, owner: Owner, artifact: Artifact, work: StudyWork, new: tuple[str, ...]) -> None:
        """Renew the lease, as a report does. new: names that the trial has from now on. Raise LeaseLost, …"""
        if owner.is_test:
            test = test_of_study(work)
            work.change_test(test, test.lifecycle.renew(artifact.attempt, work.transaction.now))
            return
        trial = work.transaction.trial(work.study, owner.number)
        lifecycle = trial.lifecycle.renew(artifact.attempt, work.transaction.now)
        names = tuple(sorted({*trial.artifacts, *new}))
        if artifact.name not in trial.artifacts and len(trial.artifacts) >= MOST_ARTIFACTS:
            raise Invalid([Fault("/name", f"the trial has {MOST_ARTIFACTS} artifacts, and is kept no more")])
        work.change(trial, lifecycle, artifacts=names)

    async def _give_up(self, key: str) -> None:
        with suppress(HpoError):
            await self._service.write(lambda transaction: ArtifactRows(transaction.sql()).give_up(key))

    def _check_size(self, size: int) -> None:
        if size > self._bounds.one:
            raise TooLarge(f"an artifact may take {self._bounds.one:,} bytes here (HPO_ARTIFACT_BYTES)")

    def _check_total(self, owner: Owner, artifact: Artifact, work: StudyWork, size: int) -> None:
        rows = ArtifactRows(work.transaction.sql())
        before = rows.total(work.study.id, owner.number, artifact.name, but=artifact.key)
        if before + size > self._bounds.total:
            raise TooLarge(
                f"the artifacts of study {owner.study!r} may take {self._bounds.total:,} bytes together "
                f"(HPO_ARTIFACT_TOTAL_BYTES), and {before:,} are taken"
            )

    # -- reading ------------------------------------------------------------------------------------------

    async def listed(self, owner: Owner) -> list[Json]:
        return [artifact_resource(each) for each in await self._service.read(owner.study, partial(_kept, owner, None))]

    async def find(self, owner: Owner, name: str) -> Artifact:
        found = await self._service.read(owner.study, partial(_kept, owner, name))
        if not found:
            raise NotFound(f"there is no artifact {name!r}")
        return found[0]

    async def open(self, owner: Owner, name: str, part: Callable[[Artifact], tuple[int, int]]) -> Opened:
        """part: the bytes of it that are wanted, from and to before. Raise what it raises, NotFound, Unavailable."""
        for again in range(READ_AGAIN):
            artifact = await self.find(owner, name)
            start, end = part(artifact)
            try:
                return Opened(artifact, start, end, await self._pieces(artifact.key, start, end))
            except ObjectMissing:
                if again == READ_AGAIN - 1:
                    raise
        raise AssertionError

    async def _pieces(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The first piece is read at once, so that what cannot be read is refused before the answer begins."""
        if self._store is None:
            raise Unavailable(_NO_PLACE)
        pieces = self._store.read(key, start, end)
        first = await self._in_thread(partial(_some, pieces))

        async def all_of_them() -> AsyncIterator[bytes]:
            some = first
            while some:
                yield some[0]
                some = await self._in_thread(partial(_some, pieces))

        return all_of_them()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- sweeping -----------------------------------------------------------------------------------------

    async def sweep_on(self) -> None:
        """Run until cancelled. What a server leaves undone, the next one finds."""
        sweeping = LoggedState("artifacts that nobody has cannot be swept away", "they are swept away again")
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await log_failures(self.sweep(), sweeping)

    async def sweep(self) -> None:
        if self._store is None or not await asyncio.to_thread(
            self._service.database.read, lambda record: ArtifactRows(record).is_loose()
        ):
            return
        uptime, alone = self._service.database.uptime, not self._service.database.is_shared
        under_way = frozenset(self._under_way)
        await self._service.write(
            lambda transaction: ArtifactRows(transaction.sql()).abandon(uptime.server_id, under_way, alone=alone)
        )
        while keys := await asyncio.to_thread(
            self._service.database.read, lambda record: list(ArtifactRows(record).gone())
        ):
            for key in keys:
                await self._in_thread(partial(self._store.delete, key))
            await self._service.write(lambda transaction, keys=keys: ArtifactRows(transaction.sql()).forget(keys))  # type: ignore[misc]


@dataclass(frozen=True)
class Opened:
    """An artifact with the bytes from start to before end."""

    artifact: Artifact
    start: int
    end: int
    pieces: AsyncIterator[bytes]


def _some(pieces: Iterator[bytes]) -> list[bytes]:
    return list(itertools.islice(pieces, 1))


def _kept(owner: Owner, name: str | None, record: Record, study: Study) -> list[Artifact]:
    if owner.is_test:
        if record.test(study) is None:
            raise NotFound(f"no test of study {study.name!r} was asked for")
    else:
        record.trials.numbered(study, owner.number)
    return ArtifactRows(record).kept(study.id, owner.number, name)
