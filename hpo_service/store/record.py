"""Reads and writes the record inside one transaction: rows in, domain values out, and back."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from hpo_service.domain import labels
from hpo_service.domain.errors import NotFound
from hpo_service.domain.objectives import WITH_TEST_SET
from hpo_service.domain.sealed_test import SealedTest
from hpo_service.domain.study import Round, Study, StudySpec, StudyState
from hpo_service.domain.trial import Lease
from hpo_service.store import write_probe
from hpo_service.store.outages import read_outages
from hpo_service.store.report_rows import ReportRows
from hpo_service.store.rows import ends_at, round_of, round_row, study_of, test_of, test_row
from hpo_service.store.tables import HELD, OURS, answers, rounds, studies, tests, trials
from hpo_service.store.trial_rows import TrialRows
from hpo_service.store.worker_rows import WorkerRows, batches


class StudyChange(NamedTuple):
    """A change that callers may wait for: the study as it is now, and its round if the call has read it."""

    study: Study
    round: Round | None


_b = sa.bindparam
_STUDY_BY_NAME = sa.select(studies).where(studies.c.name == _b("name"), OURS)
_NOW = _b("now", type_=sa.Double)


def _has_lapsed(expires_at: sa.Column[float]) -> sa.ColumnElement[bool]:
    # Further away than one lease: set by a clock that has since stepped back.
    return sa.or_(expires_at <= _NOW, expires_at > _NOW + studies.c.lease_seconds)


def _lapsed_leases(table: sa.Table) -> sa.Select[Any]:
    return (
        sa.select(studies.c.name, table.c.lease_expires_at, studies.c.lease_seconds)
        .join(table, table.c.study_id == studies.c.id)
        .where(OURS, table.c.state == sa.literal_column("'RUNNING'"), _has_lapsed(table.c.lease_expires_at))
    )


# Leases of trials and tests that have run out, if there was no outage, and studies without a lease that have reached
# their limit of seconds.
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
_ANSWER = sa.select(answers.c.answer).where(answers.c.call == _b("call"), answers.c.request_id == _b("request_id"))


_REQUIRED = sa.select(studies.c.requires).where(studies.c.requires.is_not(None), sa.not_(studies.c.deleted)).distinct()
_TO_ASK = sa.select(studies.c.name, HELD).where(OURS)
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


def _limits(spec: StudySpec) -> dict[str, int | None]:
    return {"limit_trials": spec.limits.trials, "limit_running": spec.limits.running}


class Record:
    """One transaction's view of the record. `now` is the database's clock when it began."""

    def __init__(self, connection: sa.Connection, now: float) -> None:
        self._db = connection
        self.now = now
        self.trials = TrialRows(connection)
        self.reports = ReportRows(connection)
        self.workers = WorkerRows(connection)

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
        """Raise IntegrityError when the name is taken, which the caller gets as WrittenMeanwhile."""
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
        idle = kept.where(_MAY_GIVE, sa.literal_column("0") == HELD)
        found = self._some_to_ask(idle.order_by(studies.c.kind, studies.c.id), limit)
        if kinds is None or not WITH_TEST_SET.isdisjoint(kinds):
            found += self._some_to_ask(kept.where(_TEST_WAITS), limit)
        if len(found) < limit:  # last, since this query has to sort all of them
            busy = kept.where(_MAY_GIVE, sa.literal_column("0") < HELD)
            found += self._some_to_ask(busy.order_by(HELD, studies.c.id), limit - len(found))
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
        columns = (studies.c.name, studies.c.id, studies.c.revision)
        for some in batches(names):
            query = sa.select(*columns).where(OURS, studies.c.name.in_(some))
            found.update({name: (key, revision) for name, key, revision in self._db.execute(query)})
        return found

    def overdue(self, some: Sequence[int] | None = None) -> list[str]:
        """Names of the studies in which time alone has changed something: a lease, or a limit of seconds.

        some: ids of studies; by default all.
        An outage that has not ended is not seen here: the writer may find that a lease is still held.
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

    def rounds(self, study: Study) -> list[Round]:
        query = sa.select(rounds).where(rounds.c.study_id == study.id).order_by(rounds.c.round)
        return [round_of(row, study) for row in self._db.execute(query)]

    def round(self, study: Study, number: int) -> Round:
        query = sa.select(rounds).where(rounds.c.study_id == study.id, rounds.c.round == number)
        return round_of(self._db.execute(query).one(), study)

    def add_round(self, study: Study, round_: Round) -> None:
        self._db.execute(sa.insert(rounds), {"study_id": study.id, **round_row(round_)})

    def answer(self, call: str, request_id: str) -> Any | None:
        return self._db.execute(_ANSWER, {"call": call, "request_id": request_id}).scalar()

    def study_answered(self, call: str, request_id: str) -> Study | None:
        """The study whose trials were answered; None where it was deleted."""
        mine = sa.and_(answers.c.call == call, answers.c.request_id == request_id)
        query = sa.select(studies).join(answers, answers.c.study_id == studies.c.id).where(mine, OURS)
        row = self._db.execute(query).one_or_none()
        return None if row is None else study_of(row)

    def test(self, study: Study) -> SealedTest | None:
        row = self._db.execute(sa.select(tests).where(tests.c.study_id == study.id)).one_or_none()
        return None if row is None else test_of(row, study)

    def add_test(self, study: Study, test: SealedTest) -> None:
        self._db.execute(sa.insert(tests), {"study_id": study.id, **test_row(test)})

    def save_test(self, study: Study, test: SealedTest) -> None:
        self._db.execute(sa.update(tests).where(tests.c.study_id == study.id).values(test_row(test)))

    def check_writable(self) -> None:
        """Write what calls write and undo it; then a row, and delete it: the commit proves that the disk takes it."""
        write_probe.try_all(self._db, self.now)
        self.workers.write_and_delete_one(self.now)
