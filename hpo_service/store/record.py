"""Reads and writes the record inside one transaction: rows in, domain values out, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo_service.domain.errors import NotFound
from hpo_service.domain.narrowing import Kept
from hpo_service.domain.sealed_test import BUILT_IN, SealedTest
from hpo_service.domain.study import Round, Study, StudySpec, StudyState
from hpo_service.domain.trial import (
    HistoryTrial,
    Report,
    Trial,
    TrialState,
)
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
from hpo_service.store.tables import answers, attempts, reports, rounds, studies, tests, trials, workers


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


@dataclass(frozen=True)
class WorkerRow:
    worker_id: str
    last_seen_at: float
    draining: bool
    trials: int = 0


_b = sa.bindparam
# Studies that Optuna's own API wrote through its storage are not ours to give out.
FROM_OPTUNA = "optuna"
_OURS = studies.c.created_with != sa.literal_column(f"'{FROM_OPTUNA}'")
_STUDY_BY_NAME = sa.select(studies).where(studies.c.name == _b("name"), _OURS)
_STUDY_BY_ID = sa.select(studies).where(studies.c.id == _b("id"))
_NOW = _b("now", type_=sa.Double)


def _has_lapsed(expires_at: sa.Column[float]) -> sa.ColumnElement[bool]:
    # Further away than one lease: set by a clock that has since stepped back.
    return sa.or_(expires_at <= _NOW, expires_at > _NOW + studies.c.lease_seconds)


LARGEST_REVISION = 2**62
_CHANGED = sa.and_(
    trials.c.study_id == _b("study_id"), trials.c.revision > _b("revision"), trials.c.revision <= _b("upto")
)
_NTH_CHANGED = (
    sa.select(trials.c.revision)
    .where(trials.c.study_id == _b("study_id"), trials.c.revision > _b("revision"))
    .order_by(trials.c.revision)
    .offset(_b("n") - 1)
    .limit(1)
)
_FINISHED = trials.c.state.in_([sa.literal_column(f"'{state}'") for state in TrialState if state.is_finished])
# Trials that samplers know, as Trial.is_known_to_samplers says.
_HISTORY = (
    sa.select(
        *(trials.c.id, trials.c.number, trials.c.state, trials.c.params),
        *(trials.c["values"], trials.c.system_attrs, trials.c.round),
    )
    .where(_CHANGED, sa.or_(trials.c.attempt > 0, _FINISHED))
    .order_by(trials.c.revision)
)
_CURVES = (
    sa.select(reports.c.trial_id, reports.c.step, reports.c.value)
    .join(trials, trials.c.id == reports.c.trial_id)
    .where(_CHANGED, _FINISHED)
    .order_by(reports.c.trial_id, reports.c.step)
)

_OVERDUE = sa.select(studies.c.name).where(
    _OURS,
    sa.or_(
        studies.c.id.in_(
            sa.select(trials.c.study_id)
            .join(studies, studies.c.id == trials.c.study_id)
            .where(trials.c.state == sa.literal_column("'RUNNING'"), _has_lapsed(trials.c.lease_expires_at))
        ),
        studies.c.id.in_(
            sa.select(tests.c.study_id)
            .join(studies, studies.c.id == tests.c.study_id)
            .where(tests.c.state == sa.literal_column("'RUNNING'"), _has_lapsed(tests.c.lease_expires_at))
        ),
        sa.and_(
            studies.c.ends_at <= _NOW,
            studies.c.state == sa.literal_column("'ACTIVE'"),
            studies.c.running + studies.c.retries == 0,
        ),
    ),
)
_TRIAL = sa.select(trials).where(trials.c.study_id == _b("study_id"), trials.c.number == _b("number"))
_WAITING = sa.select(trials).where(
    trials.c.study_id == _b("study_id"), trials.c.state == sa.literal_column("'WAITING'")
)
_RETRIES = _WAITING.where(trials.c.attempt > sa.literal_column("0")).order_by(trials.c.number).limit(_b("n"))
_QUEUED = _WAITING.where(trials.c.attempt == sa.literal_column("0")).order_by(trials.c.number).limit(_b("n"))
_REPORTS = sa.select(reports.c.step, reports.c.value, reports.c.metrics).where(reports.c.trial_id == _b("trial_id"))
_ANSWER = sa.select(answers.c.answer).where(answers.c.call == _b("call"), answers.c.request_id == _b("request_id"))


_TO_ASK = sa.select(studies.c.name, studies.c.running)
_MAY_GIVE = sa.and_(
    studies.c.state == sa.literal_column("'ACTIVE'"),
    studies.c.kind.is_not(None),
    sa.not_(studies.c.sealed),
    sa.or_(studies.c.limit_running.is_(None), studies.c.running < studies.c.limit_running),
    sa.or_(
        studies.c.retries > 0,
        sa.and_(
            sa.not_(studies.c.exhausted),
            sa.or_(studies.c.limit_trials.is_(None), studies.c.given_out < studies.c.limit_trials),
        ),
    ),
)
_TEST_WAITS = sa.and_(
    studies.c.sealed,
    studies.c.id.in_(sa.select(tests.c.study_id).where(tests.c.state == sa.literal_column("'WAITING'"))),
)


def _limits(spec: StudySpec) -> dict[str, int | None]:
    return {"limit_trials": spec.limits.trials, "limit_running": spec.limits.running}


class Record:
    """One transaction's view of the record. `now` is the database's clock when it began."""

    def __init__(self, connection: sa.Connection, now: float) -> None:
        self._db = connection
        self.now = now
        self.wakes: tuple[Change, ...] = ()
        self.draws: Mapping[int, Any] = {}  # that the call brings along, by the trial's number

    # -- studies ------------------------------------------------------------------------------------------

    def study(self, name: str) -> Study:
        found = self.find_study(name)
        if found is None:
            raise NotFound(f"there is no study {name!r}")
        return found

    def find_study(self, name: str) -> Study | None:
        row = self._db.execute(_STUDY_BY_NAME, {"name": name}).one_or_none()
        return None if row is None else study_of(row)

    def studies(self, state: str | None, after: int, limit: int, only: Collection[str] | None = None) -> list[Study]:
        """only: these names, where they exist."""
        query = sa.select(studies).where(studies.c.id > after, _OURS).order_by(studies.c.id).limit(limit)
        if only is not None:
            query = query.where(studies.c.name.in_(only))
        if state is not None:
            query = query.where(studies.c.state == state)
        return [study_of(row) for row in self._db.execute(query)]

    def created_with(self, study: Study) -> str:
        query = sa.select(studies.c.created_with).where(studies.c.id == study.id)
        return str(self._db.execute(query).scalar_one())

    def add_study(self, spec: StudySpec, created_with: str) -> Study:
        """Raise IntegrityError when the name is taken."""
        row = {
            "name": spec.name,
            "spec": spec.model_dump(mode="json"),
            "created_with": created_with,
            "state": StudyState.ACTIVE,
            "created_at": self.now,
            "lease_seconds": spec.lease_seconds,
            "ends_at": ends_at(spec, self.now),
            "kind": spec.kind,
            **_limits(spec),
        }
        key = self._db.execute(sa.insert(studies).returning(studies.c.id), row).scalar_one()
        return Study(key, spec, StudyState.ACTIVE, self.now)

    def save_spec(self, study: Study) -> None:
        spec = study.spec
        changed = {"spec": spec.model_dump(mode="json"), "ends_at": ends_at(spec, study.created_at), **_limits(spec)}
        self._db.execute(sa.update(studies).where(studies.c.id == study.id).values(changed))

    def delete_study(self, study: Study) -> None:
        ids = sa.select(trials.c.id).where(trials.c.study_id == study.id).scalar_subquery()
        for table in (reports, attempts):
            self._db.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))
        for table in (answers, tests, rounds, trials):
            self._db.execute(sa.delete(table).where(table.c.study_id == study.id))
        self._db.execute(sa.delete(studies).where(studies.c.id == study.id))

    def studies_to_ask(
        self, kinds: Collection[str] | None, only: Collection[str] | None, limit: int
    ) -> list[tuple[str, int]]:
        """Some studies that may have something to give to a worker of these kinds, fewest running first.

        Each with how many trials of it run. only: of these names.
        """
        kept = _TO_ASK
        if kinds is not None:
            kept = kept.where(studies.c.kind.in_(kinds))
        if only is not None:
            kept = kept.where(studies.c.name.in_(only))
        idle = kept.where(_MAY_GIVE, studies.c.running == sa.literal_column("0"))
        found = self._some_to_ask(idle.order_by(studies.c.kind, studies.c.id), limit)
        if kinds is None or BUILT_IN in kinds:
            found += self._some_to_ask(kept.where(_TEST_WAITS), limit)
        if len(found) < limit:  # these have to be sorted, all of them
            busy = kept.where(_MAY_GIVE, studies.c.running > sa.literal_column("0"))
            found += self._some_to_ask(busy.order_by(studies.c.running, studies.c.id), limit - len(found))
        return found[:limit]

    def _some_to_ask(self, query: sa.Select[Any], limit: int) -> list[tuple[str, int]]:
        return [(name, running) for name, running in self._db.execute(query.limit(limit))]

    def revisions(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The ids and revisions of those of these studies that there are."""
        found = {}
        for start in range(0, len(names), 500):
            query = sa.select(studies.c.name, studies.c.id, studies.c.revision).where(
                studies.c.name.in_(names[start : start + 500])
            )
            found.update({name: (key, revision) for name, key, revision in self._db.execute(query)})
        return found

    def overdue(self, some: Sequence[int] | None = None) -> list[str]:
        """Names of the studies in which time alone has changed something: a lease, or a limit of seconds.

        some: ids; by default all.
        """
        query = _OVERDUE
        if some is not None:
            if not some:
                return []
            query = query.where(studies.c.id.in_(some))
        too_long = {"now": self.now}
        return [name for (name,) in self._db.execute(query, too_long)]

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

    def trials_in_state(self, study: Study, state: str) -> list[Trial]:
        query = sa.select(trials).where(trials.c.study_id == study.id, trials.c.state == state)
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def waiting(self, study: Study) -> list[Trial]:
        found = self._db.execute(_WAITING.order_by(trials.c.number), {"study_id": study.id})
        return [trial_of(row, study) for row in found]

    def trials_by_number(self, study: Study, state: str | None, after: int, limit: int) -> list[Trial]:
        query = sa.select(trials).where(trials.c.study_id == study.id, trials.c.number > after)
        if state is not None:
            query = query.where(trials.c.state == state)
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number).limit(limit))]

    def trials_by_value(
        self, study: Study, state: str | None, after: tuple[float | None, int] | None, limit: int
    ) -> list[Trial]:
        """Best first, those without a value last; after: the (value, number) of the last one seen."""
        sign = -1 if study.spec.maximizes else 1
        key = trials.c.value * sign
        query = sa.select(trials).where(trials.c.study_id == study.id)
        if state is not None:
            query = query.where(trials.c.state == state)
        if after is not None:
            value, number = after
            beyond = sa.and_(key.is_(None), trials.c.number > number)
            if value is not None:
                at = value * sign
                beyond = sa.or_(key.is_(None), key > at, sa.and_(key == at, trials.c.number > number))
            query = query.where(beyond)
        query = query.order_by(key.is_(None), key, trials.c.number).limit(limit)
        return [trial_of(row, study) for row in self._db.execute(query)]

    def best(self, study: Study, count: int = 1) -> list[Trial]:
        """The best COMPLETE trials by their first value, best first; of equals the earlier one."""
        order = trials.c.value.desc() if study.spec.maximizes else trials.c.value
        query = (
            sa.select(trials)
            .where(trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'"))
            .order_by(order, trials.c.number)
            .limit(count)
        )
        return [trial_of(row, study) for row in self._db.execute(query)]

    def best_value(self, study: Study) -> float | None:
        best = sa.func.max if study.spec.maximizes else sa.func.min
        query = sa.select(best(trials.c.value)).where(
            trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'")
        )
        value = self._db.execute(query).scalar()
        return None if value is None else float(value)

    def kept(self, study: Study, count: int) -> list[Kept]:
        return [Kept(trial.number, trial.params) for trial in self.best(study, count)]

    def complete(self, study: Study) -> list[Trial]:
        query = sa.select(trials).where(
            trials.c.study_id == study.id, trials.c.state == sa.literal_column("'COMPLETE'")
        )
        return [trial_of(row, study) for row in self._db.execute(query.order_by(trials.c.number))]

    def changed_since(self, study: Study, revision: int, limit: int | None = None) -> list[Trial]:
        """Trials written after this revision of the study, in the order of their writing."""
        query = (
            sa.select(trials)
            .where(trials.c.study_id == study.id, trials.c.revision > revision)
            .order_by(trials.c.revision)
        )
        if limit is not None:
            query = query.limit(limit)
        return [trial_of(row, study) for row in self._db.execute(query)]

    def history_since(self, study: Study, revision: int, with_reports: bool) -> list[HistoryTrial]:
        """What samplers and pruners may learn from the trials that have changed since.

        A server that starts reads all of them: neither leases nor what was told is made out of the rows.
        """
        return self._history({"study_id": study.id, "revision": revision, "upto": LARGEST_REVISION}, with_reports)

    def _history(self, changed: Mapping[str, Any], with_reports: bool) -> list[HistoryTrial]:
        curves = self._curves(changed) if with_reports else {}
        return [
            HistoryTrial(number, TrialState(state), params, floats(values), curves.get(key, ()), attrs, round or 0)
            for key, number, state, params, values, attrs, round in self._db.execute(_HISTORY, changed)
        ]

    def history_page(
        self, study: Study, revision: int, with_reports: bool, limit: int
    ) -> tuple[list[HistoryTrial], int]:
        """The first of these, so many, and the revision up to which they are all of them."""
        changed = {"study_id": study.id, "revision": revision, "n": limit}
        last = self._db.execute(_NTH_CHANGED, changed).scalar()
        upto = study.revision if last is None else int(last)
        return self._history({"study_id": study.id, "revision": revision, "upto": upto}, with_reports), upto

    def _curves(self, changed: Mapping[str, Any]) -> dict[int, tuple[tuple[int, float], ...]]:
        """(step, value) by rising step, of those of the changed trials that have finished, by the trial's id."""
        found: dict[int, list[tuple[int, float]]] = {}
        for key, step, value in self._db.execute(_CURVES, changed):
            found.setdefault(key, []).append((step, nan_if_null(value)))
        return {key: tuple(curve) for key, curve in found.items()}

    # -- reports and attempts -----------------------------------------------------------------------------

    def reports(self, study: Study, trial: Trial) -> list[Report]:
        found = self._db.execute(_REPORTS.order_by(reports.c.step), {"trial_id": trial.id})
        return [Report(step, nan_if_null(value), metrics or {}) for step, value, metrics in found]

    def reports_of(self, some: Sequence[Trial]) -> dict[int, list[Report]]:
        """The reports of trials of one study, by number, by rising step."""
        found: dict[int, list[Report]] = {}
        numbers = {trial.id: trial.number for trial in some}
        ids = list(numbers)
        for start in range(0, len(ids), 500):
            query = (
                sa.select(reports)
                .where(reports.c.trial_id.in_(ids[start : start + 500]))
                .order_by(reports.c.trial_id, reports.c.step)
            )
            for key, step, value, metrics in self._db.execute(query):
                found.setdefault(numbers[key], []).append(Report(step, nan_if_null(value), metrics or {}))
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
        query = sa.select(workers.c.draining).where(workers.c.worker_id == worker_id)
        return bool(self._db.execute(query).scalar())

    def draining(self) -> frozenset[str]:
        """The ids of the workers that are to be sent home."""
        return frozenset(self._db.execute(sa.select(workers.c.worker_id).where(workers.c.draining)).scalars())

    def see_workers(self, seen: Mapping[str, float]) -> None:
        """Note when workers were last heard of, by the database's clock."""
        rows = [{"worker_id": name, "last_seen_at": at, "draining": False} for name, at in sorted(seen.items())]
        if rows:
            self._db.execute(_UPSERT_WORKER[self._db.dialect.name], rows)

    def drain_worker(self, worker_id: str) -> None:
        changed = self._db.execute(sa.update(workers).where(workers.c.worker_id == worker_id).values(draining=True))
        if changed.rowcount == 0:
            raise NotFound(f"no worker {worker_id!r} was ever seen")

    def workers(self, after: str, limit: int) -> list[WorkerRow]:
        holding = (
            sa.select(trials.c.worker_id, sa.func.count().label("n"))
            .where(trials.c.state == sa.literal_column("'RUNNING'"))
            .group_by(trials.c.worker_id)
            .subquery()
        )
        query = (
            sa.select(workers, holding.c.n)
            .outerjoin(holding, holding.c.worker_id == workers.c.worker_id)
            .where(workers.c.worker_id > after)
            .order_by(workers.c.worker_id)
            .limit(limit)
        )
        return [WorkerRow(row.worker_id, row.last_seen_at, row.draining, row.n or 0) for row in self._db.execute(query)]

    def worker(self, worker_id: str) -> WorkerRow:
        holding = sa.select(sa.func.count()).where(
            trials.c.state == sa.literal_column("'RUNNING'"), trials.c.worker_id == worker_id
        )
        row = self._db.execute(sa.select(workers).where(workers.c.worker_id == worker_id)).one_or_none()
        if row is None:
            raise NotFound(f"no worker {worker_id!r} was ever seen")
        held = self._db.execute(holding).scalar_one()
        return WorkerRow(row.worker_id, row.last_seen_at, row.draining, held)

    # -- health and metrics -------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Write a row and take it away again; the commit proves that the disk takes it."""
        row = {"worker_id": "", "last_seen_at": self.now, "draining": False}
        self._db.execute(sa.insert(workers), row)
        self._db.execute(sa.delete(workers).where(workers.c.worker_id == ""))

    def trials_in_states(self) -> dict[str, int]:
        names = ("queued", "retries", "running", "complete", "pruned", "fail")
        row = self._db.execute(sa.select(*(sa.func.sum(studies.c[name]) for name in names))).one()
        queued, retries, *others = (int(n or 0) for n in row)
        return dict(zip(TrialState, (queued + retries, *others), strict=True))


def _upserts(table: sa.Table, keys: list[str], columns: list[str]) -> dict[str, Any]:
    made = {}
    for dialect, module in (("sqlite", sqlite), ("postgresql", postgresql)):
        insert = module.insert(table)
        made[dialect] = insert.on_conflict_do_update(
            index_elements=keys, set_={column: insert.excluded[column] for column in columns}
        )
    return made


_UPSERT_WORKER = _upserts(workers, ["worker_id"], ["last_seen_at"])
