"""How many studies and trials there are by state, and since when the oldest trial waits, over all studies."""

from __future__ import annotations

import sqlalchemy as sa

from hpo_service.domain.study import StudyState
from hpo_service.domain.trial import TrialState
from hpo_service.store.record import Record
from hpo_service.store.tables import HELD, OURS, attempts, studies, tests, trials

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
# Trials for workers: those that run, and those that an ACTIVE study would give out now. Rounds, which lie within the
# spec, are not looked at.
_WITHOUT_LIMIT = 1000  # trials that a study without such a limit would give out
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
_FOR_WORKERS = HELD + sa.case((_GIVES_OUT, studies.c.replicates_waiting + _WOULD_BE_GIVEN), else_=0)
_TRIALS_FOR_WORKERS = sa.select(sa.func.sum(_FOR_WORKERS)).where(OURS)
_TESTS_FOR_WORKERS = (
    sa.select(sa.func.count())
    .select_from(tests.join(studies, tests.c.study_id == studies.c.id))
    .where(OURS, tests.c.state.in_(("WAITING", "RUNNING")))
)
# Where more studies wait, the oldest trial is looked for in so many of them only.
_MOST_STUDIES_LOOKED_AT = 1000
_SOME_WAITING = (
    sa.select(studies.c.id)
    .where(OURS, _GIVES_OUT, studies.c.queued + studies.c.retries + studies.c.replicates_waiting > 0)
    .order_by(studies.c.id)
    .limit(_MOST_STUDIES_LOOKED_AT)
    .cte("some_waiting")
)
_WAITS = sa.and_(trials.c.study_id == _SOME_WAITING.c.id, trials.c.state == sa.literal_column("'WAITING'"))
_LAST_ATTEMPT = sa.and_(attempts.c.trial_id == trials.c.id, attempts.c.attempt == trials.c.attempt)
_QUEUED_FIRST = (  # trials are enqueued in the order of their numbers
    sa.select(attempts.c.started_at)
    .select_from(trials.outerjoin(attempts, _LAST_ATTEMPT))
    .where(_WAITS, trials.c.attempt == sa.literal_column("0"))
    .order_by(trials.c.number)
    .limit(1)
    .correlate(_SOME_WAITING)
    .scalar_subquery()
)
_HANDED_BACK_FIRST = (
    sa.select(sa.func.min(attempts.c.ended_at))
    .select_from(trials.join(attempts, _LAST_ATTEMPT))
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


def counts_by_state(record: Record) -> tuple[dict[str, int], dict[str, int]]:
    """Trials by state and studies by state, from the counters on the studies' rows.

    Replicates count while they wait and run: somebody has to train them.
    """
    trials_, studies_ = dict.fromkeys(map(str, TrialState), 0), dict.fromkeys(map(str, StudyState), 0)
    for state, count, *counted in record._db.execute(_BY_STATE):
        studies_[state] = count
        for of_trial, n in zip(trials_, counted, strict=True):
            trials_[of_trial] += int(n)
    return trials_, studies_


def oldest_waiting_since(record: Record) -> float | None:
    """Since when the oldest trial waits that an ACTIVE study would give out; None: none is found."""
    return record._db.execute(_OLDEST_WAITING).scalar_one()  # type: ignore[no-any-return]


def workers_wanted(record: Record) -> int:
    """How many workers of one trial at a time would have something to do, those among them that do it already."""
    of_trials = record._db.execute(_TRIALS_FOR_WORKERS).scalar_one() or 0
    return int(of_trials) + record._db.execute(_TESTS_FOR_WORKERS).scalar_one()
