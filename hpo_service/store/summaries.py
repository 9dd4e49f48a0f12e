"""What a picture of a study needs of the record: few columns of all trials, all of a few, and sums."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from hpo_service.domain.study import Study
from hpo_service.store.record import Record
from hpo_service.store.rows import nan_if_null
from hpo_service.store.tables import OF_THE_SEARCH, reports, trials, workers
from hpo_service.store.worker_rows import batches

LARGEST_METRICS = 4096  # characters of what a trial was told with; larger ones are no figures for a table
LONGEST_REASON = 500
_METRICS_TEXT = sa.cast(trials.c.metrics, sa.Text)


class TrialMark(NamedTuple):
    """What says of a trial whether a picture needs it. value: None of a replicate, which is never the best."""

    number: int
    state: str
    value: float | None


class LastChange(NamedTuple):
    """Of a trial: when it began and ended, and until when it is held."""

    state: str
    started_at: float | None
    finished_at: float | None
    lease_expires_at: float | None


class ThinnedCurve(NamedTuple):
    """reports: how many there are in all; points: some of them, (step, value), the first and the last among them."""

    reports: int
    points: list[tuple[int, float]]


@dataclass(frozen=True)
class WorkerTally:
    """What one worker has done of a study. ended: how many trials it was the last to hold, by their states."""

    worker_id: str
    last_seen_at: float | None
    draining: bool
    ended: Mapping[str, int]


class Summaries:
    """Reads inside the transaction of a Record."""

    def __init__(self, record: Record) -> None:
        self._db = record._db

    # -- trials -------------------------------------------------------------------------------------------

    def marks(self, study: Study) -> Sequence[TrialMark]:
        """Of all trials, by their numbers."""
        value = sa.case((OF_THE_SEARCH, trials.c.value))
        query = sa.select(trials.c.number, trials.c.state, value).where(trials.c.study_id == study.id)
        return self._db.execute(query.order_by(trials.c.number)).all()  # type: ignore[return-value]

    def some_trials(self, study: Study, numbers: Collection[int]) -> list[Any]:
        """Rows of these, at most 500 of them, without what is large in them."""
        columns = [
            *(trials.c[name] for name in ("id", "number", "state", "params", "values", "attempt", "worker_id")),
            *(trials.c[name] for name in ("round", "started_at", "finished_at", "system_attrs", "replicate_of")),
            sa.func.substr(trials.c.reason, 1, LONGEST_REASON).label("reason"),
            sa.case((sa.func.length(_METRICS_TEXT) <= LARGEST_METRICS, _METRICS_TEXT)).label("metrics"),
        ]
        query = sa.select(*columns).where(trials.c.study_id == study.id, trials.c.number.in_(list(numbers)))
        return list(self._db.execute(query))

    def last_reports(self, ids: Sequence[int]) -> dict[int, tuple[int, float]]:
        """The last (step, value) of each of these trials that has one, by its id."""
        found: dict[int, tuple[int, float]] = {}
        for some in batches(ids):
            last = (
                sa.select(reports.c.trial_id, sa.func.max(reports.c.step).label("step"))
                .where(reports.c.trial_id.in_(some))
                .group_by(reports.c.trial_id)
                .subquery()
            )
            same = sa.and_(reports.c.trial_id == last.c.trial_id, reports.c.step == last.c.step)
            query = sa.select(reports.c.trial_id, reports.c.step, reports.c.value).join(last, same)
            found.update({key: (step, nan_if_null(value)) for key, step, value in self._db.execute(query)})
        return found

    def running(self, study: Study, limit: int) -> list[Any]:
        """Rows of what runs, the last ones given out first."""
        columns = ("id", "number", "attempt", "worker_id", "started_at", "lease_expires_at")
        query = sa.select(*(trials.c[name] for name in columns)).where(
            trials.c.study_id == study.id, trials.c.state == sa.literal_column("'RUNNING'")
        )
        return list(self._db.execute(query.order_by(trials.c.number.desc()).limit(limit)))

    def best(self, study: Study, count: int) -> list[Any]:
        """Rows of the best COMPLETE trials by their first value, best first."""
        order = trials.c.value.desc() if study.spec.maximizes else trials.c.value
        query = sa.select(trials.c.id, trials.c.number, trials.c.state, trials.c.value).where(
            trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'"), OF_THE_SEARCH
        )
        return list(self._db.execute(query.order_by(order, trials.c.number).limit(count)))

    def last_changes(self, study: Study, count: int) -> list[LastChange]:
        """Of the trials that were written last."""
        query = sa.select(*(trials.c[name] for name in LastChange._fields)).where(trials.c.study_id == study.id)
        return [LastChange(*row) for row in self._db.execute(query.order_by(trials.c.revision.desc()).limit(count))]

    # -- reports ------------------------------------------------------------------------------------------

    def curve(self, trial_id: int, points: int) -> ThinnedCurve:
        """About so many points of a trial's reports, as far from each other as they can be."""
        counted = sa.select(sa.func.count(), sa.func.max(reports.c.step)).where(reports.c.trial_id == trial_id)
        count, last = self._db.execute(counted).one()
        query = sa.select(reports.c.step, reports.c.value).where(reports.c.trial_id == trial_id)
        if count > points:
            place = sa.func.row_number().over(order_by=reports.c.step).label("place")
            placed = query.add_columns(place).subquery()
            every = -(-count // points)
            query = sa.select(placed.c.step, placed.c.value).where(
                sa.or_(placed.c.place % every == 1, placed.c.step == last)
            )
        found = sorted((step, nan_if_null(value)) for step, value in self._db.execute(query))
        return ThinnedCurve(count, found)

    # -- sums ---------------------------------------------------------------------------------------------

    def failures(self, study: Study, limit: int) -> list[tuple[str | None, int, int, int]]:
        """(reason, how many, the first number, the last one) of the FAILs, most frequent first."""
        reason = sa.func.substr(trials.c.reason, 1, LONGEST_REASON)
        count = sa.func.count()
        query = (
            sa.select(reason, count, sa.func.min(trials.c.number), sa.func.max(trials.c.number))
            .where(trials.c.study_id == study.id, trials.c.state == sa.literal_column("'FAIL'"), OF_THE_SEARCH)
            .group_by(reason)
            .order_by(count.desc(), sa.func.max(trials.c.number).desc())
            .limit(limit)
        )
        return [(text, number, first, last) for text, number, first, last in self._db.execute(query)]

    def workers(self, study: Study) -> list[WorkerTally]:
        counted = (
            sa.select(trials.c.worker_id, trials.c.state, sa.func.count().label("n"))
            .where(trials.c.study_id == study.id, trials.c.worker_id.is_not(None))
            .group_by(trials.c.worker_id, trials.c.state)
            .subquery()
        )
        query = sa.select(counted, workers.c.last_seen_at, workers.c.draining)
        query = query.outerjoin(workers, workers.c.worker_id == counted.c.worker_id)
        ended: dict[tuple[str, float | None, bool], dict[str, int]] = {}
        for worker_id, state, n, last_seen_at, draining in self._db.execute(query):
            ended.setdefault((worker_id, last_seen_at, bool(draining)), {})[state] = n
        return [WorkerTally(*worker, its) for worker, its in sorted(ended.items())]

    def workers_at(self, studies: Sequence[Study]) -> dict[int, int]:
        """How many workers hold trials, by the study's id."""
        of_these = trials.c.study_id.in_([study.id for study in studies])
        query = sa.select(trials.c.study_id, sa.func.count(trials.c.worker_id.distinct()))
        query = query.where(of_these, trials.c.state == sa.literal_column("'RUNNING'")).group_by(trials.c.study_id)
        return dict(self._db.execute(query).all())
