"""The table of artifacts: a row is there before the first byte is written, and goes after the last one was deleted.

    uploading ──▶ kept ──▶ gone ──▶ (no row)
        └───────────────────┘

So every artifact in the folder or the bucket has a row, and what has none was not written by us and is not deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields

import sqlalchemy as sa

from hpo_service.domain.artifact import Artifact
from hpo_service.store.record import Record
from hpo_service.store.tables import artifacts, servers

SILENT_SECONDS = 60.0  # without a beat of a server, until its uploads are given up
AT_ONCE = 100

_UPLOADING, _KEPT, _GONE = "uploading", "kept", "gone"


class ArtifactRows:
    """Inside the transaction of a Record."""

    def __init__(self, record: Record) -> None:
        self._db, self._now = record._db, record.now  # pending rows are written already

    def begin(self, artifact: Artifact, study_id: int, number: int, server_id: str) -> None:
        """size: as announced; it counts in the study's total."""
        row = {"study_id": study_id, "number": number, "state": _UPLOADING, "server_id": server_id}
        self._db.execute(sa.insert(artifacts), {**vars(artifact), **row, "sha256": None})

    def keep(self, artifact: Artifact, study_id: int, number: int) -> bool:
        """In the place of another one of its name; False where it was given up meanwhile."""
        mine = sa.and_(artifacts.c.key == artifact.key, artifacts.c.state == _UPLOADING)
        values = {"state": _KEPT, "size": artifact.size, "sha256": artifact.sha256, "at": artifact.at}
        same_name = sa.and_(_of(study_id, number), artifacts.c.name == artifact.name, artifacts.c.state == _KEPT)
        self._db.execute(sa.update(artifacts).where(same_name).values(state=_GONE))
        return self._db.execute(sa.update(artifacts).where(mine).values(values)).rowcount == 1

    def give_up(self, key: str) -> None:
        mine = sa.and_(artifacts.c.key == key, artifacts.c.state == _UPLOADING)
        self._db.execute(sa.update(artifacts).where(mine).values(state=_GONE))

    def total(self, study_id: int, number: int, name: str, but: str) -> int:
        """Bytes of the study's artifacts and uploads, without this one and the one that it replaces."""
        replaced = sa.and_(artifacts.c.number == number, artifacts.c.name == name, artifacts.c.state == _KEPT)
        mine = sa.and_(artifacts.c.study_id == study_id, artifacts.c.state != _GONE, artifacts.c.key != but)
        query = sa.select(sa.func.coalesce(sa.func.sum(artifacts.c.size), 0)).where(mine, sa.not_(replaced))
        return int(self._db.execute(query).scalar_one())

    def kept(self, study_id: int, number: int, name: str | None = None) -> list[Artifact]:
        """By name; one of them, or all."""
        query = sa.select(*_COLUMNS).where(_of(study_id, number), artifacts.c.state == _KEPT).order_by(artifacts.c.name)
        if name is not None:
            query = query.where(artifacts.c.name == name)
        return [Artifact(*row) for row in self._db.execute(query)]

    # -- sweeping -----------------------------------------------------------------------------------------

    def abandon(self, server_id: str, under_way: Collection[str], *, alone: bool) -> None:
        """Give up uploads that no server writes any more. under_way: of this one; alone: there is no other one."""
        query = sa.select(artifacts.c.key, artifacts.c.server_id).where(artifacts.c.state == _UPLOADING)
        others = sa.select(servers.c.server_id).where(servers.c.served_until > self._now - SILENT_SECONDS)
        alive = set() if alone else set(self._db.execute(others).scalars())
        for key, writer in self._db.execute(query.limit(AT_ONCE)).all():
            if key not in under_way if writer == server_id else writer not in alive:
                self.give_up(key)

    def abandon_study(self, study_id: int) -> None:
        self._db.execute(sa.update(artifacts).where(artifacts.c.study_id == study_id).values(state=_GONE))

    def is_loose(self) -> bool:
        return self._db.execute(sa.select(artifacts.c.key).where(_LOOSE).limit(1)).first() is not None

    def gone(self) -> Sequence[str]:
        """Keys of which the bytes are to be deleted: some."""
        query = sa.select(artifacts.c.key).where(artifacts.c.state == _GONE).limit(AT_ONCE)
        return self._db.execute(query).scalars().all()

    def forget(self, keys: Collection[str]) -> None:
        """Their bytes are deleted."""
        self._db.execute(sa.delete(artifacts).where(artifacts.c.key.in_(keys), artifacts.c.state == _GONE))


def _of(study_id: int, number: int) -> sa.ColumnElement[bool]:
    return sa.and_(artifacts.c.study_id == study_id, artifacts.c.number == number)


_LOOSE = artifacts.c.state != sa.literal_column("'kept'")
_COLUMNS = tuple(artifacts.c[field.name] for field in fields(Artifact))
