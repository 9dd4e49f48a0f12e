"""Deletes the rows of deleted studies, a few in each transaction, so that no call waits for long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from hpo_service.store.artifact_rows import ArtifactRows
from hpo_service.store.record import Record
from hpo_service.store.tables import answers, attempts, reports, rounds, studies, tests, trials

# A study whose row another server has locked is being deleted by that server, and is skipped.
_NEXT = (
    sa.select(studies.c.id).where(studies.c.deleted).order_by(studies.c.id).limit(1).with_for_update(skip_locked=True)
)
ANSWERS_AT_ONCE = 500


class Deletion:
    """Inside the transaction of a Record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._db = record._db  # pending rows are written already

    def is_due(self) -> bool:
        return self._db.execute(sa.select(studies.c.id).where(studies.c.deleted).limit(1)).first() is not None

    def next_study(self) -> int | None:
        """The id of a study to delete; None if there is none, or other servers are deleting them."""
        found = self._db.execute(_NEXT).scalar()
        return None if found is None else int(found)

    def delete_some(self, study_id: int, most: int) -> bool:
        """Delete about so many rows; return whether none are left but answers of asks that named no study."""
        mine = sa.select(trials.c.id).where(trials.c.study_id == study_id).order_by(trials.c.number).limit(most // 4)
        ids = list(self._db.execute(mine).scalars())
        if not ids:
            # found by `call`, the first column of the table's key
            calls = [f"{call} {study_id}" for call in ("ask", "enqueue", "import")]
            return self._delete(answers, answers.c.call.in_(calls), most) == 0
        if self._delete(reports, reports.c.trial_id.in_(ids), most) < most:
            self._db.execute(sa.delete(attempts).where(attempts.c.trial_id.in_(ids)))
            self._db.execute(sa.delete(trials).where(trials.c.id.in_(ids)))
        return False

    def _delete(self, table: sa.Table, condition: sa.ColumnElement[bool], most: int) -> int:
        """Delete at most so many of the rows; return how many."""
        is_sqlite = self._db.dialect.name == "sqlite"
        place: sa.ColumnElement[Any] = sa.literal_column("rowid" if is_sqlite else "ctid")
        places = sa.select(place).select_from(table).where(condition).limit(most)
        some = place.in_(places) if is_sqlite else place == sa.any_(sa.func.array(places.scalar_subquery()))
        return int(self._db.execute(sa.delete(table).where(some)).rowcount)

    def answers_of_any(self, study_id: int, after: str) -> list[str]:
        """The request_ids after this one of asks that named no study and were answered with this study's trials."""
        query = (
            sa.select(answers.c.request_id)
            .where(answers.c.call == "ask", answers.c.study_id == study_id, answers.c.request_id > after)
            .order_by(answers.c.request_id)
            .limit(ANSWERS_AT_ONCE)
        )
        return list(self._db.execute(query).scalars())

    def delete_answers(self, request_ids: Sequence[str]) -> None:
        mine = sa.and_(answers.c.call == "ask", answers.c.request_id.in_(request_ids))
        self._db.execute(sa.delete(answers).where(mine))

    def end(self, study_id: int) -> None:
        ArtifactRows(self._record).abandon_study(study_id)
        for table in (tests, rounds):
            self._db.execute(sa.delete(table).where(table.c.study_id == study_id))
        self._db.execute(sa.delete(studies).where(studies.c.id == study_id))
