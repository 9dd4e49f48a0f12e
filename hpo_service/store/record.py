"""Reads and writes the record inside one transaction: rows in, domain values out, and back."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import from_json

from hpo_service.domain import labels
from hpo_service.domain.altered import altered
from hpo_service.domain.confirmation import Replicate
from hpo_service.domain.errors import NotFound
from hpo_service.domain.narrowing import Kept
from hpo_service.domain.objectives import WITH_TEST_SET
from hpo_service.domain.sealed_test import SealedTest
from hpo_service.domain.seen_study import SeenTrial
from hpo_service.domain.sizes import CARRIED_REPORTS
from hpo_service.domain.study import Round, Study, StudySpec, StudyState
from hpo_service.domain.trial import (
    HistoryTrial,
    Lease,
    Report,
    Trial,
    TrialState,
    has_failed_in_training,
)
from hpo_service.store import worker_rows, write_probe
from hpo_service.store.outages import read_outages
from hpo_service.store.rows import (
    ends_at,
    floats,
    nan_if_null,
    round_of,
    round_row,
    study_of,
    test_of,
    test_row,
    trial_of,
)
from hpo_service.store.tables import OURS, answers, attempts, reports, rounds, studies, tests, trials
from hpo_service.store.trial_reports import KeptReport, kept_report, report_text
from hpo_service.store.worker_rows import FINISHED_STATES, SeenWorker, WorkerRow, batches


class Change(NamedTuple):
    """What somebody may have waited for: the study as it is now, and its round where a call has looked at it."""

    study: Study
    round: Round | None


@dataclass(frozen=True)
class AttemptRow:
    attempt: int
    worker_id: str
    started_at: float
    ended_at: float | None
    end: str | None


_b = sa.bindparam
_STUDY_BY_NAME = sa.select(studies).where(studies.c.name == _b("name"), OURS)
_STUDY_BY_ID = sa.select(studies).where(studies.c.id == _b("id"))
_NOW = _b("now", type_=sa.Double)


def _has_lapsed(expires_at: sa.Column[float]) -> sa.ColumnElement[bool]:
    # Further away than one lease: set by a clock that has since stepped back.
    return sa.or_(expires_at <= _NOW, expires_at > _NOW + studies.c.lease_seconds)


_CHANGED = sa.and_(trials.c.study_id == _b("study_id"), trials.c.revision > _b("revision"))
_FINISHED = trials.c.state.in_(FINISHED_STATES)
_OF_THE_SEARCH = trials.c.replicate_of.is_(None)
# Trials that samplers know, as Trial.is_known_to_samplers says.
_HISTORY = (
    sa.select(
        *(trials.c.id, trials.c.number, trials.c.state, trials.c.params),
        *(trials.c["values"], trials.c.system_attrs, trials.c.round, trials.c.reason, trials.c.stop),
        *(trials.c.attempt, trials.c.revision),
    )
    .where(_CHANGED, _OF_THE_SEARCH, sa.or_(trials.c.attempt > 0, _FINISHED))
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


def _lapsed_leases(table: sa.Table) -> sa.Select[Any]:
    return (
        sa.select(studies.c.name, table.c.lease_expires_at, studies.c.lease_seconds)
        .join(table, table.c.study_id == studies.c.id)
        .where(OURS, table.c.state == sa.literal_column("'RUNNING'"), _has_lapsed(table.c.lease_expires_at))
    )


# Leases of trials and tests that have run out unless their holders could not be heard, and studies that have no lease
# but have come to their end.
_MAYBE_OVERDUE = (
    *(_lapsed_leases(trials), _lapsed_leases(tests)),
    sa.select(studies.c.name, sa.null(), studies.c.lease_seconds).where(
        OURS,
        studies.c.ends_at <= _NOW,
        studies.c.state == sa.literal_column("'ACTIVE'"),
        studies.c.running + studies.c.retries + studies.c.replicates_waiting + studies.c.replicates_running == 0,
    ),
)
_OVERDUE = sa.union_all(*_MAYBE_OVERDUE)
_OVERDUE_OF_SOME = sa.union_all(*(q.where(studies.c.id.in_(_b("ids", expanding=True))) for q in _MAYBE_OVERDUE))
_TRIAL = sa.select(trials).where(trials.c.study_id == _b("study_id"), trials.c.number == _b("number"))
_WAITING = sa.select(trials).where(
    trials.c.study_id == _b("study_id"), trials.c.state == sa.literal_column("'WAITING'")
)
_WAITING_FIRST = _WAITING.order_by(trials.c.number).limit(_b("n"))
_RETRIES = _WAITING_FIRST.where(trials.c.attempt > sa.literal_column("0"), _OF_THE_SEARCH)
_QUEUED = _WAITING_FIRST.where(trials.c.attempt == sa.literal_column("0"), _OF_THE_SEARCH)
_REPLICATES_WAITING = _WAITING_FIRST.where(sa.not_(_OF_THE_SEARCH))
_REPLICATES = (
    sa.select(trials.c.replicate_of, trials.c.seed, trials.c.state, trials.c.value)
    .where(trials.c.study_id == _b("study_id"), sa.not_(_OF_THE_SEARCH))
    .order_by(trials.c.number)
)
_BY_STATE = (
    sa.select(
        studies.c.state,
        sa.func.count(),
        sa.func.sum(studies.c.queued + studies.c.retries + studies.c.replicates_waiting),
        sa.func.sum(studies.c.running + studies.c.replicates_running),
        *(sa.func.sum(studies.c[counter]) for counter in ("complete", "pruned", "fail")),
    )
    .where(OURS)
    .group_by(studies.c.state)
)
_HELD = studies.c.running + studies.c.replicates_running
# Trials for workers: those that run, and those that an ACTIVE study would give out now. Rounds, which lie within the
# spec, are not looked at.
_WITHOUT_LIMIT = 1000  # that a study would give out whose limits say nothing
_NEW = sa.case(
    (studies.c.exhausted, 0),
    (studies.c.limit_trials.is_(None), _WITHOUT_LIMIT),
    (studies.c.given_out < studies.c.limit_trials, studies.c.limit_trials - studies.c.given_out),
    else_=0,
)
_MAY_RUN = sa.case(
    (studies.c.limit_running.is_(None), None),
    (studies.c.running < studies.c.limit_running, studies.c.limit_running - studies.c.running),
    else_=0,
)
_WOULD_BE_GIVEN = sa.case((studies.c.retries + _NEW > _MAY_RUN, _MAY_RUN), else_=studies.c.retries + _NEW)
_GIVES_OUT = sa.and_(studies.c.state == sa.literal_column("'ACTIVE'"), sa.not_(studies.c.sealed))
_TRIALS_FOR_WORKERS = sa.select(
    sa.func.sum(
        _HELD + sa.case((_GIVES_OUT, studies.c.replicates_waiting + _WOULD_BE_GIVEN), else_=0),
    )
).where(OURS)
_TESTS_FOR_WORKERS = (
    sa.select(sa.func.count())
    .select_from(tests.join(studies, tests.c.study_id == studies.c.id))
    .where(OURS, tests.c.state.in_(("WAITING", "RUNNING")))
)
# Of so many studies at most: with more of them waiting, what the oldest waits for is no secret.
_MOST_STUDIES_LOOKED_AT = 1000
_SOME_WAITING = (
    sa.select(studies.c.id)
    .where(
        OURS,
        studies.c.state == sa.literal_column("'ACTIVE'"),
        sa.not_(studies.c.sealed),
        studies.c.queued + studies.c.retries + studies.c.replicates_waiting > 0,
    )
    .order_by(studies.c.id)
    .limit(_MOST_STUDIES_LOOKED_AT)
    .cte("some_waiting")
)
_WAITS = sa.and_(trials.c.study_id == _SOME_WAITING.c.id, trials.c.state == sa.literal_column("'WAITING'"))
_QUEUED_FIRST = (  # trials are enqueued in the order of their numbers
    sa.select(attempts.c.started_at)
    .select_from(
        trials.outerjoin(attempts, sa.and_(attempts.c.trial_id == trials.c.id, attempts.c.attempt == trials.c.attempt))
    )
    .where(_WAITS, trials.c.attempt == sa.literal_column("0"))
    .order_by(trials.c.number)
    .limit(1)
    .correlate(_SOME_WAITING)
    .scalar_subquery()
)
_HANDED_BACK_FIRST = (
    sa.select(sa.func.min(attempts.c.ended_at))
    .select_from(
        trials.join(attempts, sa.and_(attempts.c.trial_id == trials.c.id, attempts.c.attempt == trials.c.attempt))
    )
    .where(_WAITS, trials.c.attempt > sa.literal_column("0"))
    .correlate(_SOME_WAITING)
    .scalar_subquery()
)
_SINCE = (
    sa.select(_QUEUED_FIRST.label("since"))
    .select_from(_SOME_WAITING)
    .union_all(sa.select(_HANDED_BACK_FIRST.label("since")).select_from(_SOME_WAITING))
    .subquery()
)
_OLDEST_WAITING = sa.select(sa.func.min(_SINCE.c.since))
_TRIAL_AND_SIZE = (
    *trials.c,
    (
        sa.func.length(sa.cast(trials.c.params, sa.Text))
        + sa.func.coalesce(sa.func.length(sa.cast(trials.c.metrics, sa.Text)), 0)
    ).label("size"),
)
_TRIAL_WITHOUT_METRICS = (
    *(column for column in trials.c if column is not trials.c.metrics),
    sa.null().label("metrics"),
    sa.func.length(sa.cast(trials.c.params, sa.Text)).label("size"),
)
# As they are taken: not all rows at once.
_BY_AND_BY = {"stream_results": True, "max_row_buffer": 64}
PIECE = 2**20  # about so many bytes are read at once of what may be large
_METRICS_TEXT = sa.cast(reports.c.metrics, sa.Text)  # as it was written
_REPORTS = (
    sa.select(reports.c.step, reports.c.value, _METRICS_TEXT)
    .where(reports.c.trial_id == _b("trial_id"), reports.c.step >= _b("first"))
    .order_by(reports.c.step)
)
_REPORTS_BACKWARDS = (
    sa.select(reports.c.step, reports.c.value, _METRICS_TEXT)
    .where(reports.c.trial_id == _b("trial_id"))
    .order_by(reports.c.step.desc())
)
_BYTES_BESIDE_METRICS = 60
_ANSWER = sa.select(answers.c.answer).where(answers.c.call == _b("call"), answers.c.request_id == _b("request_id"))


_REQUIRED = sa.select(studies.c.requires).where(studies.c.requires.is_not(None), sa.not_(studies.c.deleted)).distinct()
_TO_ASK = sa.select(studies.c.name, _HELD).where(OURS)
_MAY_GIVE = sa.and_(
    studies.c.state == sa.literal_column("'ACTIVE'"),
    studies.c.kind.is_not(None),
    sa.not_(studies.c.sealed),
    sa.or_(
        studies.c.replicates_waiting > 0,
        sa.and_(
            sa.or_(studies.c.limit_running.is_(None), studies.c.running < studies.c.limit_running),
            sa.or_(
                studies.c.retries > 0,
                sa.and_(
                    sa.not_(studies.c.exhausted),
                    sa.or_(studies.c.limit_trials.is_(None), studies.c.given_out < studies.c.limit_trials),
                ),
            ),
        ),
    ),
)
_TEST_WAITS = sa.and_(
    studies.c.sealed,
    studies.c.id.in_(sa.select(tests.c.study_id).where(tests.c.state == sa.literal_column("'WAITING'"))),
)


def _is_complete(study: Study) -> sa.ColumnElement[bool]:
    """Of the trials of the search: replicates are never the best."""
    return sa.and_(trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'"), _OF_THE_SEARCH)


def _limits(spec: StudySpec) -> dict[str, int | None]:
    return {"limit_trials": spec.limits.trials, "limit_running": spec.limits.running}


class Record:
    """One transaction's view of the record. `now` is the database's clock when it began."""

    def __init__(self, connection: sa.Connection, now: float) -> None:
        self._db = connection
        self.now = now

    # -- studies ------------------------------------------------------------------------------------------

    def study(self, name: str) -> Study:
        found = self.find_study(name)
        if found is None:
            raise NotFound(f"there is no study {name!r}")
        return found

    def same_study(self, name: str, study_id: int) -> Study:
        """The study that has had this name and this id; raise NotFound where it was deleted, and maybe made anew."""
        found = self.find_study(name)
        if found is None or found.id != study_id:
            raise NotFound(f"study {name!r} was deleted meanwhile")
        return found

    def find_study(self, name: str) -> Study | None:
        row = self._db.execute(_STUDY_BY_NAME, {"name": name}).one_or_none()
        return None if row is None else study_of(row)

    def studies(self, state: str | None, after: int, limit: int, only: Collection[str] | None = None) -> list[Study]:
        """only: these names, where they exist."""
        query = sa.select(studies).where(studies.c.id > after, OURS).order_by(studies.c.id).limit(limit)
        if only is not None:
            query = query.where(studies.c.name.in_(only))
        if state is not None:
            query = query.where(studies.c.state == state)
        return [study_of(row) for row in self._db.execute(query)]

    def created_with(self, study: Study) -> str:
        query = sa.select(studies.c.created_with).where(studies.c.id == study.id)
        return str(self._db.execute(query).scalar_one())

    def add_study(self, spec: StudySpec, created_with: str) -> Study:
        """Raise WrittenMeanwhile, once it is written, when the name is taken."""
        row = {
            "name": spec.name,
            "spec": spec.model_dump(mode="json"),
            "created_with": created_with,
            "state": StudyState.ACTIVE,
            "created_at": self.now,
            "lease_seconds": spec.lease_seconds,
            "ends_at": ends_at(spec, self.now),
            "kind": spec.kind,
            "requires": labels.as_text(spec.requires) if spec.requires else None,
            **_limits(spec),
        }
        key = self._db.execute(sa.insert(studies).returning(studies.c.id), row).scalar_one()
        return Study(key, spec, StudyState.ACTIVE, self.now)

    def save_spec(self, study: Study) -> None:
        spec = study.spec
        changed = {"spec": spec.model_dump(mode="json"), "ends_at": ends_at(spec, study.created_at), **_limits(spec)}
        self._db.execute(sa.update(studies).where(studies.c.id == study.id).values(changed))

    def save_search_space(self, study: Study) -> None:
        """The one of the study, and of the round under way: both have grown."""
        self.save_spec(study)
        mine = sa.and_(rounds.c.study_id == study.id, rounds.c.round == study.round)
        space = study.spec.search_space.model_dump(mode="json")
        self._db.execute(sa.update(rounds).where(mine).values(search_space=space))

    def delete_study(self, study: Study) -> None:
        """Mark it as deleted and free its name: nobody sees it any more. Its rows go by `Deletion`."""
        counted = ("queued", "retries", "running", "complete", "pruned", "fail")
        counters = dict.fromkeys((*counted, "replicates_waiting", "replicates_running"), 0)
        marked = {"name": f":deleted:{study.id}:{secrets.token_hex(8)}", "deleted": True, "ends_at": None, **counters}
        self._db.execute(sa.update(studies).where(studies.c.id == study.id).values(marked))

    def studies_to_ask(
        self, kinds: Collection[str] | None, only: Collection[str] | None, has: Mapping[str, str], limit: int
    ) -> list[tuple[str, int]]:
        """Some studies that may have something to give to a worker of these kinds, fewest running first.

        Each with how many trials of it run. only: of these names; has: the labels of the worker.
        """
        kept = _TO_ASK.where(self._is_met_by(has))
        if kinds is not None:
            kept = kept.where(studies.c.kind.in_(kinds))
        if only is not None:
            kept = kept.where(studies.c.name.in_(only))
        idle = kept.where(_MAY_GIVE, sa.literal_column("0") == _HELD)
        found = self._some_to_ask(idle.order_by(studies.c.kind, studies.c.id), limit)
        if kinds is None or not WITH_TEST_SET.isdisjoint(kinds):
            found += self._some_to_ask(kept.where(_TEST_WAITS), limit)
        if len(found) < limit:  # these have to be sorted, all of them
            busy = kept.where(_MAY_GIVE, sa.literal_column("0") < _HELD)
            found += self._some_to_ask(busy.order_by(_HELD, studies.c.id), limit - len(found))
        return found[:limit]

    def _is_met_by(self, has: Mapping[str, str]) -> sa.ColumnElement[bool]:
        nothing = studies.c.requires.is_(None)
        if not has:
            return nothing
        required = self._db.execute(_REQUIRED).scalars()
        met = [text for text in required if labels.fit(has, json.loads(text))]
        return sa.or_(nothing, studies.c.requires.in_(met)) if met else nothing

    def _some_to_ask(self, query: sa.Select[Any], limit: int) -> list[tuple[str, int]]:
        return [(name, running) for name, running in self._db.execute(query.limit(limit))]

    def revisions(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The ids and revisions of those of these studies that there are."""
        found = {}
        for start in range(0, len(names), 500):
            query = sa.select(studies.c.name, studies.c.id, studies.c.revision).where(
                OURS, studies.c.name.in_(names[start : start + 500])
            )
            found.update({name: (key, revision) for name, key, revision in self._db.execute(query)})
        return found

    def overdue(self, some: Sequence[int] | None = None) -> list[str]:
        """Names of the studies in which time alone has changed something: a lease, or a limit of seconds.

        some: ids of studies; by default all.
        An outage that has not ended is left to who writes: a lease may turn out to be held after all.
        """
        if some is not None and not some:
            return []
        if some is None:
            found = self._db.execute(_OVERDUE, {"now": self.now}).all()
        else:
            found = self._db.execute(_OVERDUE_OF_SOME, {"now": self.now, "ids": list(some)}).all()
        missed = read_outages(self._db, self.now) if found else ()
        return sorted(
            {
                name
                for name, expires_at, duration in found
                if expires_at is None or Lease(expires_at, duration).is_expired(self.now, missed)
            }
        )

    # -- rounds -------------------------------------------------------------------------------------------

    def rounds(self, study: Study) -> list[Round]:
        query = sa.select(rounds).where(rounds.c.study_id == study.id).order_by(rounds.c.round)
        return [round_of(row, study) for row in self._db.execute(query)]

    def round(self, study: Study, number: int) -> Round:
        query = sa.select(rounds).where(rounds.c.study_id == study.id, rounds.c.round == number)
        return round_of(self._db.execute(query).one(), study)

    def add_round(self, study: Study, round_: Round) -> None:
        self._db.execute(sa.insert(rounds), {"study_id": study.id, **round_row(round_)})

    # -- trials -------------------------------------------------------------------------------------------

    def trial(self, study: Study, number: int) -> Trial:
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

    def finished_trials(self, study: Study, every: int) -> list[SeenTrial]:
        """Those of the search whose number is divisible by `every`, without reports."""
        query = sa.select(*_SEEN).where(
            *(trials.c.study_id == study.id, _OF_THE_SEARCH, _FINISHED),
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
            *(trials.c.study_id == study.id, _OF_THE_SEARCH, _FINISHED, trials.c.worker_id.is_not(None)),
        )
        found: dict[str, tuple[int, int]] = {}
        for worker_id, state, reason, stop, n in self._db.execute(query.group_by(*groups)):
            failed = has_failed_in_training(TrialState(state), reason, stop)
            if failed or state != TrialState.FAIL:
                told, fails = found.get(worker_id, (0, 0))
                found[worker_id] = told + n, fails + n * failed
        return found

    def with_curves(self, study: Study, some: Sequence[SeenTrial], most_steps: int) -> list[SeenTrial]:
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
                found.append(altered(trial, reports=curve))
        return found

    def trials_in_state(self, study: Study, state: str) -> list[Trial]:
        query = sa.select(trials).where(trials.c.study_id == study.id, trials.c.state == state)
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def waiting(self, study: Study) -> list[Trial]:
        found = self._db.execute(_WAITING.order_by(trials.c.number), {"study_id": study.id})
        return [trial_of(row, study) for row in found]

    def trials_by_number(
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
        with closing(self._db.execute(query.limit(limit + 1), execution_options=_BY_AND_BY)) as rows:
            for row in rows:
                if len(found) == limit or left < 0:
                    return found, True
                found.append(trial_of(row, study))
                left -= row.size
        return found, False

    def trials_by_value(
        self, study: Study, state: str | None, after: tuple[float | None, int] | None, limit: int
    ) -> tuple[list[Trial], bool]:
        """The same, best first, then those without a value, and replicates; after: that of the last one seen.

        after: the (value, number) of the last one seen, of a replicate without its value.
        """
        sign = -1 if study.spec.maximizes else 1
        key = sa.case((_OF_THE_SEARCH, trials.c.value * sign))
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
        query = (
            sa.select(*_TRIAL_WITHOUT_METRICS).where(_is_complete(study)).order_by(order, trials.c.number).limit(count)
        )
        return [trial_of(row, study) for row in self._db.execute(query)]

    def best_value(self, study: Study) -> float | None:
        best = sa.func.max if study.spec.maximizes else sa.func.min
        query = sa.select(best(trials.c.value)).where(_is_complete(study))
        value = self._db.execute(query).scalar()
        return None if value is None else float(value)

    def kept(self, study: Study, count: int) -> list[Kept]:
        return [Kept(trial.number, trial.params) for trial in self.best(study, count)]

    def complete(self, study: Study) -> list[Trial]:
        """Without metrics."""
        query = sa.select(*_TRIAL_WITHOUT_METRICS).where(_is_complete(study))
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def changed_since(self, study: Study, revision: int, limit: int) -> tuple[list[Trial], bool]:
        """Trials written after this revision of the study, in the order of their writing; and whether there are more.

        Up to so many, and not many more than PIECE bytes of them.
        """
        query = (
            sa.select(*_TRIAL_AND_SIZE)
            .where(trials.c.study_id == study.id, trials.c.revision > revision)
            .order_by(trials.c.revision)
        )
        return self._some(query, study, limit)

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

    # -- reports and attempts -----------------------------------------------------------------------------

    def reports(self, study: Study, trial: Trial) -> list[Report]:
        return self.reports_from(trial)

    def reports_from(self, trial: Trial, first: int | None = None) -> list[Report]:
        """By rising step, from this step on."""
        return [
            Report(step, report.value, {} if report.metrics is None else from_json(report.metrics))
            for step, report in self.kept_reports(trial, first)
        ]

    def kept_reports(self, trial: Trial, first: int | None = None) -> Iterator[tuple[int, KeptReport]]:
        found = self._db.execute(_REPORTS, {"trial_id": trial.id, "first": -(2**31) if first is None else first})
        for step, value, metrics in found:
            yield step, kept_report(step, nan_if_null(value), None if metrics is None else metrics.encode())

    def report_texts(self, trial: Trial, first: int | None = None) -> tuple[list[bytes], int | None]:
        """Reports as they read, from this step on: about PIECE bytes of them, and the step with which to go on."""
        found: list[bytes] = []
        left = PIECE
        values = {"trial_id": trial.id, "first": -(2**31) if first is None else first}
        with closing(self._db.execute(_REPORTS, values, execution_options=_BY_AND_BY)) as rows:
            for step, value, metrics in rows:
                if left < 0:
                    return found, step
                found.append(_text(step, value, metrics))
                left -= len(found[-1])
        return found, None

    def last_report_texts(self, trial: Trial) -> list[bytes]:
        """The last ones that fit into CARRIED_REPORTS, by rising step."""
        found: list[bytes] = []
        left = CARRIED_REPORTS
        values = {"trial_id": trial.id}
        with closing(self._db.execute(_REPORTS_BACKWARDS, values, execution_options=_BY_AND_BY)) as rows:
            for step, value, metrics in rows:
                text = _text(step, value, metrics)
                left -= len(text) + 1
                if left < 0:
                    break
                found.append(text)
        return found[::-1]

    def report_texts_of(self, some: Sequence[Trial]) -> dict[int, list[bytes]]:
        """Those of all of these, by number, by rising step."""
        found: dict[int, list[bytes]] = {}
        numbers = {trial.id: trial.number for trial in some}
        for ids in batches(list(numbers)):
            query = (
                sa.select(reports.c.trial_id, reports.c.step, reports.c.value, _METRICS_TEXT)
                .where(reports.c.trial_id.in_(ids))
                .order_by(reports.c.trial_id, reports.c.step)
            )
            for key, step, value, metrics in self._db.execute(query):
                found.setdefault(numbers[key], []).append(_text(step, value, metrics))
        return found

    def report_bytes_of(self, some: Sequence[Trial]) -> dict[int, int]:
        """About how many bytes their reports take, by number."""
        found: dict[int, int] = {}
        numbers = {trial.id: trial.number for trial in some}
        size = sa.func.coalesce(sa.func.sum(sa.func.length(_METRICS_TEXT)), 0)
        for ids in batches(list(numbers)):
            query = (
                sa.select(reports.c.trial_id, sa.func.count() * _BYTES_BESIDE_METRICS + size)
                .where(reports.c.trial_id.in_(ids))
                .group_by(reports.c.trial_id)
            )
            found.update({numbers[key]: int(size) for key, size in self._db.execute(query)})
        return found

    def drop_reports(self, study: Study, trial: Trial) -> None:
        self._db.execute(sa.delete(reports).where(reports.c.trial_id == trial.id))

    def attempts(self, trial: Trial) -> list[AttemptRow]:
        """By their numbers. The last one has a row of its own only when it ended and the trial did not."""
        query = sa.select(attempts).where(attempts.c.trial_id == trial.id, attempts.c.end.is_not(None))
        found = [
            AttemptRow(row.attempt, row.worker_id, row.started_at, row.ended_at, row.end)
            for row in self._db.execute(query.order_by(attempts.c.attempt))
        ]
        last, ended = trial.holding.attempt, trial.holding.ended
        if (found and found[-1].attempt == last) or trial.worker_id is None or trial.started_at is None:
            return found
        at = None if ended is None else trial.finished_at
        return [*found, AttemptRow(last, trial.worker_id, trial.started_at, at, ended)]

    # -- answers, by request_id ---------------------------------------------------------------------------

    def answer(self, call: str, request_id: str) -> Any | None:
        return self._db.execute(_ANSWER, {"call": call, "request_id": request_id}).scalar()

    def study_answered(self, call: str, request_id: str) -> Study | None:
        """The study of whose trials the answer speaks; None where it was deleted."""
        mine = sa.and_(answers.c.call == call, answers.c.request_id == request_id)
        query = sa.select(studies).join(answers, answers.c.study_id == studies.c.id).where(mine, OURS)
        row = self._db.execute(query).one_or_none()
        return None if row is None else study_of(row)

    # -- the sealed test ----------------------------------------------------------------------------------

    def test(self, study: Study) -> SealedTest | None:
        row = self._db.execute(sa.select(tests).where(tests.c.study_id == study.id)).one_or_none()
        return None if row is None else test_of(row, study)

    def add_test(self, study: Study, test: SealedTest) -> None:
        self._db.execute(sa.insert(tests), {"study_id": study.id, **test_row(test)})

    def save_test(self, study: Study, test: SealedTest) -> None:
        self._db.execute(sa.update(tests).where(tests.c.study_id == study.id).values(test_row(test)))

    # -- workers ------------------------------------------------------------------------------------------

    def is_draining(self, worker_id: str) -> bool:
        return worker_rows.is_draining(self._db, worker_id)

    def draining(self) -> frozenset[str]:
        return worker_rows.draining(self._db)

    def see_workers(self, seen: Mapping[str, SeenWorker]) -> None:
        worker_rows.see(self._db, seen)

    def drain_worker(self, worker_id: str) -> None:
        worker_rows.drain(self._db, worker_id)

    def workers(self, after: str, limit: int, only: Collection[str] | None = None) -> list[WorkerRow]:
        return worker_rows.page(self._db, after, limit, only)

    def worker(self, worker_id: str) -> WorkerRow:
        return worker_rows.one(self._db, worker_id)

    # -- health and metrics -------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Write what calls write and undo it; then a row, and delete it: the commit proves that the disk takes it."""
        write_probe.try_all(self._db, self.now)
        worker_rows.write_and_delete_one(self._db, self.now)

    def counts_by_state(self) -> tuple[dict[str, int], dict[str, int]]:
        """Trials by state and studies by state, from the counters on the studies' rows.

        Replicates count while they wait and run: somebody has to train them.
        """
        trials_, studies_ = dict.fromkeys(map(str, TrialState), 0), dict.fromkeys(map(str, StudyState), 0)
        for state, count, *counted in self._db.execute(_BY_STATE):
            studies_[state] = count
            for of_trial, n in zip(trials_, counted, strict=True):
                trials_[of_trial] += int(n)
        return trials_, studies_

    def workers_wanted(self) -> int:
        """How many workers of one trial at a time would have something to do, those among them that do it already."""
        trials_ = self._db.execute(_TRIALS_FOR_WORKERS).scalar_one() or 0
        return int(trials_) + self._db.execute(_TESTS_FOR_WORKERS).scalar_one()

    def oldest_waiting_since(self) -> float | None:
        """Since when the oldest trial waits that an ACTIVE study would give out; None: nobody knows of any."""
        return self._db.execute(_OLDEST_WAITING).scalar_one()  # type: ignore[no-any-return]


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


def _seen(row: Any) -> SeenTrial:
    state = TrialState(row.state)
    value = row.value if state is TrialState.COMPLETE else None
    return SeenTrial(row.number, state, row.params, value, has_failed_in_training(state, row.reason, row.stop))


def _text(step: int, value: float | None, metrics: str | None) -> bytes:
    return report_text(step, nan_if_null(value), None if metrics is None else metrics.encode())
