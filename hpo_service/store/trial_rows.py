"""The trials of a study, in SQL: by number, by state, by value, by revision, and as samplers learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.advice_input import AdviceTrial
from hpo_service.domain.confirmation import Replicate
from hpo_service.domain.errors import NotFound
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.study import Study
from hpo_service.domain.trial import HistoryTrial, Trial, TrialState, has_failed_in_training
from hpo_service.store.report_rows import AS_TAKEN, PIECE
from hpo_service.store.rows import floats, nan_if_null, trial_of
from hpo_service.store.tables import OF_THE_SEARCH, reports, trials
from hpo_service.store.worker_rows import FINISHED_STATES, batches

_b = sa.bindparam
_CHANGED = sa.and_(trials.c.study_id == _b("study_id"), trials.c.revision > _b("revision"))
_FINISHED = trials.c.state.in_(FINISHED_STATES)
# Trials that samplers know, as Trial.is_known_to_samplers says.
_HISTORY = (
    sa.select(
        *(trials.c.id, trials.c.number, trials.c.state, trials.c.params),
        *(trials.c["values"], trials.c.system_attrs, trials.c.round, trials.c.reason, trials.c.stop),
        *(trials.c.attempt, trials.c.revision),
    )
    .where(_CHANGED, OF_THE_SEARCH, sa.or_(trials.c.attempt > 0, _FINISHED))
    .order_by(trials.c.revision)
    .limit(_b("n"))
)
HISTORY_AT_ONCE = 500
_SEEN = tuple(trials.c[name] for name in ("number", "state", "params", "value", "reason", "stop"))
_CURVES = (
    sa.select(reports.c.trial_id, reports.c.step, reports.c.value)
    .where(reports.c.trial_id.in_(_b("ids", expanding=True)))
    .order_by(reports.c.trial_id, reports.c.step)
)


_TRIAL = sa.select(trials).where(trials.c.study_id == _b("study_id"), trials.c.number == _b("number"))
_WAITING = sa.select(trials).where(
    trials.c.study_id == _b("study_id"), trials.c.state == sa.literal_column("'WAITING'")
)
_WAITING_FIRST = _WAITING.order_by(trials.c.number).limit(_b("n"))
_RETRIES = _WAITING_FIRST.where(trials.c.attempt > sa.literal_column("0"), OF_THE_SEARCH)
_QUEUED = _WAITING_FIRST.where(trials.c.attempt == sa.literal_column("0"), OF_THE_SEARCH)
_REPLICATES_WAITING = _WAITING_FIRST.where(sa.not_(OF_THE_SEARCH))
_REPLICATES = (
    sa.select(trials.c.replicate_of, trials.c.seed, trials.c.state, trials.c.value)
    .where(trials.c.study_id == _b("study_id"), sa.not_(OF_THE_SEARCH))
    .order_by(trials.c.number)
)
_PARAMS_SIZE = sa.func.length(sa.cast(trials.c.params, sa.Text))
_METRICS_SIZE = sa.func.coalesce(sa.func.length(sa.cast(trials.c.metrics, sa.Text)), 0)
_TRIAL_AND_SIZE = (*trials.c, (_PARAMS_SIZE + _METRICS_SIZE).label("size"))
_TRIAL_WITHOUT_METRICS = (
    *(column for column in trials.c if column is not trials.c.metrics),
    sa.null().label("metrics"),
    _PARAMS_SIZE.label("size"),
)


def _is_complete(study: Study) -> sa.ColumnElement[bool]:
    """Of the trials of the search: replicates are never the best."""
    return sa.and_(trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'"), OF_THE_SEARCH)


class TrialRows:
    """Inside the transaction of a Record."""

    def __init__(self, connection: sa.Connection) -> None:
        self._db = connection

    def numbered(self, study: Study, number: int) -> Trial:
        row = self._db.execute(_TRIAL, {"study_id": study.id, "number": number}).one_or_none()
        if row is None:
            raise NotFound(f"study {study.name!r} has no trial {number}")
        return trial_of(row, study)

    def retries(self, study: Study, limit: int) -> list[Trial]:
        found = self._db.execute(_RETRIES, {"study_id": study.id, "n": limit})
        return [trial_of(row, study) for row in found]

    def queued(self, study: Study, limit: int) -> list[Trial]:
        found = self._db.execute(_QUEUED, {"study_id": study.id, "n": limit})
        return [trial_of(row, study) for row in found]

    def replicates_waiting(self, study: Study, limit: int) -> list[Trial]:
        """Given out before or not."""
        found = self._db.execute(_REPLICATES_WAITING, {"study_id": study.id, "n": limit})
        return [trial_of(row, study) for row in found]

    def replicates(self, study: Study) -> list[Replicate]:
        """All of them, by their numbers: seed by seed, the best candidate first."""
        found = self._db.execute(_REPLICATES, {"study_id": study.id})
        return [Replicate(of, seed, TrialState(state), value) for of, seed, state, value in found]

    def finished(self, study: Study, every: int) -> list[AdviceTrial]:
        """Those of the search whose number is divisible by `every`, without reports."""
        query = sa.select(*_SEEN).where(
            *(trials.c.study_id == study.id, OF_THE_SEARCH, _FINISHED),
            trials.c.number % every == 0,
        )
        return [_seen(row) for row in self._db.execute(query.order_by(trials.c.number))]

    def values_by_number(self, study: Study) -> list[float]:
        """The first values of all COMPLETE trials of the search."""
        query = sa.select(trials.c.value).where(_is_complete(study)).order_by(trials.c.number)
        return list(self._db.execute(query).scalars())

    def told_by_worker(self, study: Study) -> dict[str, tuple[int, int]]:
        """Of each worker, how many trials it has told, and how many of these failed: of those who told the most."""
        groups = (trials.c.worker_id, trials.c.state, trials.c.reason, trials.c.stop)
        query = sa.select(*groups, sa.func.count().label("n")).where(
            *(trials.c.study_id == study.id, OF_THE_SEARCH, _FINISHED, trials.c.worker_id.is_not(None)),
        )
        found: dict[str, tuple[int, int]] = {}
        for worker_id, state, reason, stop, n in self._db.execute(query.group_by(*groups)):
            failed = has_failed_in_training(TrialState(state), reason, stop)
            if failed or state != TrialState.FAIL:
                told, fails = found.get(worker_id, (0, 0))
                found[worker_id] = told + n, fails + n * failed
        return found

    def with_curves(self, study: Study, some: Sequence[AdviceTrial], most_steps: int) -> list[AdviceTrial]:
        """These trials with their reports; without those of which there are more than so many."""
        numbers = [trial.number for trial in some]
        ids = self._db.execute(
            sa.select(trials.c.number, trials.c.id).where(trials.c.study_id == study.id, trials.c.number.in_(numbers))
        )
        found = []
        by_number = {row.number: row.id for row in ids}
        for trial in some:
            query = sa.select(reports.c.step, reports.c.value).where(reports.c.trial_id == by_number[trial.number])
            rows = self._db.execute(query.order_by(reports.c.step).limit(most_steps + 1)).all()
            if len(rows) <= most_steps:
                curve = tuple((step, nan_if_null(value)) for step, value in rows)
                found.append(fast_replace(trial, reports=curve))
        return found

    def in_state(self, study: Study, state: str) -> list[Trial]:
        query = sa.select(trials).where(trials.c.study_id == study.id, trials.c.state == state)
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def waiting(self, study: Study) -> list[Trial]:
        found = self._db.execute(_WAITING.order_by(trials.c.number), {"study_id": study.id})
        return [trial_of(row, study) for row in found]

    def by_number(
        self, study: Study, state: str | None, after: int, limit: int, *, with_metrics: bool = True
    ) -> tuple[list[Trial], bool]:
        """Up to so many, and not many more than PIECE bytes of them; and whether there are more."""
        columns = _TRIAL_AND_SIZE if with_metrics else _TRIAL_WITHOUT_METRICS
        query = sa.select(*columns).where(trials.c.study_id == study.id, trials.c.number > after)
        if state is not None:
            query = query.where(trials.c.state == state)
        return self._some(query.order_by(trials.c.number), study, limit)

    def _some(self, query: sa.Select[Any], study: Study, limit: int) -> tuple[list[Trial], bool]:
        found: list[Trial] = []
        left = PIECE
        with closing(self._db.execute(query.limit(limit + 1), execution_options=AS_TAKEN)) as rows:
            for row in rows:
                if len(found) == limit or left < 0:
                    return found, True
                found.append(trial_of(row, study))
                left -= row.size
        return found, False

    def by_value(
        self, study: Study, state: str | None, after: tuple[float | None, int] | None, limit: int
    ) -> tuple[list[Trial], bool]:
        """The same, best first, then those without a value, and replicates.

        after: the (value, number) of the last one seen, of a replicate without its value.
        """
        sign = -1 if study.spec.maximizes else 1
        key = sa.case((OF_THE_SEARCH, trials.c.value * sign))
        query = sa.select(*_TRIAL_AND_SIZE).where(trials.c.study_id == study.id)
        if state is not None:
            query = query.where(trials.c.state == state)
        if after is not None:
            value, number = after
            beyond = sa.and_(key.is_(None), trials.c.number > number)
            if value is not None:
                at = value * sign
                beyond = sa.or_(key.is_(None), key > at, sa.and_(key == at, trials.c.number > number))
            query = query.where(beyond)
        return self._some(query.order_by(key.is_(None), key, trials.c.number), study, limit)

    def best(self, study: Study, count: int = 1) -> list[Trial]:
        """The best COMPLETE trials by their first value, best first; of equals the earlier one. Without metrics."""
        order = trials.c.value.desc() if study.spec.maximizes else trials.c.value
        query = sa.select(*_TRIAL_WITHOUT_METRICS).where(_is_complete(study)).order_by(order, trials.c.number)
        return [trial_of(row, study) for row in self._db.execute(query.limit(count))]

    def best_value(self, study: Study) -> float | None:
        best = sa.func.max if study.spec.maximizes else sa.func.min
        query = sa.select(best(trials.c.value)).where(_is_complete(study))
        value = self._db.execute(query).scalar()
        return None if value is None else float(value)

    def complete(self, study: Study) -> list[Trial]:
        """Without metrics."""
        query = sa.select(*_TRIAL_WITHOUT_METRICS).where(_is_complete(study))
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def changed_since(self, study: Study, revision: int, limit: int) -> tuple[list[Trial], bool]:
        """Trials written after this revision of the study, in the order of their writing; and whether there are more.

        Up to so many, and not many more than PIECE bytes of them.
        """
        query = sa.select(*_TRIAL_AND_SIZE).where(trials.c.study_id == study.id, trials.c.revision > revision)
        return self._some(query.order_by(trials.c.revision), study, limit)

    def history_since(self, study: Study, revision: int, with_reports: bool) -> Iterator[HistoryTrial]:
        """What samplers and pruners may learn from the trials that have changed since, in the order of their writing.

        A server that starts reads all of them: neither leases nor what was told is made out of the rows, and they come
        in parts.
        """
        while True:
            page, upto = self.history_page(study, revision, with_reports, HISTORY_AT_ONCE)
            yield from page
            if len(page) < HISTORY_AT_ONCE:
                return
            revision = upto

    def history_page(
        self, study: Study, revision: int, with_reports: bool, limit: int
    ) -> tuple[list[HistoryTrial], int]:
        """The first of these, so many, and the revision up to which they are all of them."""
        rows = self._db.execute(_HISTORY, {"study_id": study.id, "revision": revision, "n": limit}).all()
        curves = self._curves([row.id for row in rows if TrialState(row.state).is_finished]) if with_reports else {}
        page = [_history_trial(row, curves.get(row.id, ())) for row in rows]
        return page, rows[-1].revision if len(rows) == limit else study.revision

    def _curves(self, ids: list[int]) -> dict[int, tuple[tuple[int, float], ...]]:
        """(step, value) by rising step, by the trial's id."""
        found: dict[int, list[tuple[int, float]]] = {}
        for some in batches(ids):
            for key, step, value in self._db.execute(_CURVES, {"ids": some}):
                found.setdefault(key, []).append((step, nan_if_null(value)))
        return {key: tuple(curve) for key, curve in found.items()}


def _history_trial(row: Any, curve: tuple[tuple[int, float], ...]) -> HistoryTrial:
    state = TrialState(row.state)
    failed = has_failed_in_training(state, row.reason, row.stop)
    return HistoryTrial(
        row.number,
        state,
        row.params,
        floats(row[4]),
        curve,
        row.system_attrs,
        row.round or 0,
        failed_in_training=failed,
        was_given_out=row.attempt > 0,
    )


def _seen(row: Any) -> AdviceTrial:
    state = TrialState(row.state)
    value = row.value if state is TrialState.COMPLETE else None
    return AdviceTrial(row.number, state, row.params, value, has_failed_in_training(state, row.reason, row.stop))
