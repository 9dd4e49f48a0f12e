"""Writes what asks, reports, beats and deletions write, and undoes it: whether the database lets a server work."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.engine import one_line
from hpo_service.store.tables import (
    answers,
    attempts,
    outages,
    reports,
    rounds,
    servers,
    studies,
    tests,
    trials,
    workers,
)

_NO_RIGHT = "42501"  # SQLSTATE


def try_all(connection: sa.Connection, now: float) -> None:
    """Raise Unavailable, in words, with the transaction as it was before."""
    connection.exec_driver_sql("SAVEPOINT tried")
    try:
        _write_and_delete_a_study(connection, now)
        _write_and_delete_who_is_there(connection, now)
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT tried")
        raise Unavailable(f"the database does not take what an ask writes: {_words(connection, error)}") from None
    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT tried")
    connection.exec_driver_sql("RELEASE SAVEPOINT tried")


def _write_and_delete_a_study(connection: sa.Connection, now: float) -> None:
    """A study with all that can belong to it, under a name that none can have."""
    name = f" {secrets.token_hex(8)}"
    study = {"name": name, "spec": {}, "created_with": "", "state": "PAUSED", "created_at": now, "lease_seconds": 1}
    study_id = connection.execute(sa.insert(studies).returning(studies.c.id), study).scalar_one()
    empty = {"study_id": study_id, "trials": 0, "finished": 0, "from_trials": [], "changes": [], "revision": 1}
    connection.execute(sa.insert(rounds), {**empty, "round": 0, "search_space": {}})
    held = {"state": "RUNNING", "attempt": 1, "lapsed": 0, "lease_expires_at": now, "seed": 0, "revision": 1}
    trial = {**held, "study_id": study_id, "number": 0, "params": {}, "user_attrs": {}, "system_attrs": {}}
    trial_id = connection.execute(sa.insert(trials).returning(trials.c.id), trial).scalar_one()
    connection.execute(sa.insert(attempts), {"trial_id": trial_id, "attempt": 1, "worker_id": "", "started_at": now})
    connection.execute(sa.insert(reports), {"trial_id": trial_id, "step": 0, "value": 0.0})
    connection.execute(sa.insert(answers), {"call": name, "request_id": "", "study_id": study_id, "answer": {}})
    sealed = {"study_id": study_id, "ensemble": 1, "number": 0, "state": "WAITING", "attempt": 0, "lapsed": 0}
    connection.execute(sa.insert(tests), sealed)
    connection.execute(sa.select(studies.c.id).where(studies.c.id == study_id).with_for_update()).one()
    for table, key in ((studies, studies.c.id), (trials, trials.c.study_id), (rounds, rounds.c.study_id)):
        connection.execute(sa.update(table).where(key == study_id).values(revision=2))
    connection.execute(sa.update(tests).where(tests.c.study_id == study_id).values(state="FAIL"))
    for table, column in ((attempts, "started_at"), (reports, "value")):
        connection.execute(sa.update(table).where(table.c.trial_id == trial_id).values({column: now}))
    for table in (reports, attempts):
        connection.execute(sa.delete(table).where(table.c.trial_id == trial_id))
    for table in (trials, answers, tests, rounds):
        connection.execute(sa.delete(table).where(table.c.study_id == study_id))
    connection.execute(sa.delete(studies).where(studies.c.id == study_id))


def _write_and_delete_who_is_there(connection: sa.Connection, now: float) -> None:
    """A worker, a server and an outage, under names that none can have."""
    name = f" {secrets.token_hex(8)}"
    for table, row, column in (
        (workers, {"worker_id": name, "last_seen_at": now, "draining": False}, "last_seen_at"),
        (servers, {"server_id": name, "served_until": now}, "served_until"),
        (outages, {"server_id": name, "began": now, "ended": now}, "ended"),
    ):
        mine = next(iter(table.primary_key)) == name
        connection.execute(sa.insert(table), row)
        connection.execute(sa.select(table).where(mine).with_for_update()).one()
        connection.execute(sa.update(table).where(mine).values({column: now}))
        connection.execute(sa.delete(table).where(mine))


def _words(connection: sa.Connection, error: sa.exc.DBAPIError) -> str:
    said = one_line(error)
    if getattr(error.orig, "sqlstate", None) != _NO_RIGHT:
        return said
    role, schema = connection.execute(sa.text("SELECT current_user, current_schema()")).one()
    return (
        f"{said}; grant it: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
    )
