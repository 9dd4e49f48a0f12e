"""Our own tables, all named hpo_*. Times are seconds since 1970 UTC, as doubles; JSON is kept as text.

`revision` rises within a study with every row written, so that "what has changed since" is one indexed query.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# INTEGER PRIMARY KEY is what SQLite numbers by itself.
BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Seconds = sa.Double
TRIAL_STATES = ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL")
STUDY_STATES = ("ACTIVE", "PAUSED", "STOPPING", "STOPPED", "COMPLETED", "CANCELLED")


def _one_of(column: str, words: tuple[str, ...], name: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(word) for word in words)})", name=name)


def _study_id(primary_key: bool = False) -> sa.Column[int]:
    study = sa.ForeignKey("hpo_studies.id", ondelete="CASCADE")
    return sa.Column("study_id", BigId, study, nullable=False, primary_key=primary_key, autoincrement=False)


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _some(table: sa.Table, name: str, *columns: str, where: str) -> sa.Index:
    condition = sa.text(where)
    return sa.Index(name, *(table.c[column] for column in columns), sqlite_where=condition, postgresql_where=condition)


studies = sa.Table(
    "hpo_studies",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("spec", sa.JSON, nullable=False),  # as the study reads; its limits and metadata may change
    sa.Column("created_with", sa.Text, nullable=False),  # the body it was created with, canonical
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("lease_seconds", Seconds, nullable=False),
    sa.Column("ends_at", Seconds),  # created_at + limits.seconds
    # From the spec, for asks that name no study; kind: of the objective.
    sa.Column("kind", sa.Text),
    sa.Column("limit_trials", sa.BigInteger),
    sa.Column("limit_running", sa.BigInteger),
    sa.Column("requires", sa.Text),  # of a worker, canonical JSON; NULL: nothing
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("touched", sa.BigInteger, nullable=False, server_default="0"),  # the revision of the last version
    *map(_counter, ("queued", "retries", "running", "complete", "pruned", "fail")),
    *map(_counter, ("given_out", "next_number", "round")),
    # Of the round under way, where they are newer than in its own row.
    *map(_counter, ("round_trials", "round_finished")),
    sa.Column("round_revision", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("exhausted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("sealed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("user_attrs", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("system_attrs", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("dataset_sha256", sa.Text),  # of the data that its first trial was trained on
    # Trials that have failed while none had come through, as JSON text, which the driver gives back as it was.
    sa.Column("failures", sa.Text),
    # How its best trials are confirmed, as JSON text; and how many of their replicates wait and run.
    sa.Column("confirmation", sa.Text),
    *map(_counter, ("replicates_waiting", "replicates_running")),
    # Deleted for all callers, under a name that none can give; its rows are deleted a few at a time.
    sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    _one_of("state", STUDY_STATES, "state"),
    sa.CheckConstraint(
        "queued >= 0 AND retries >= 0 AND running >= 0 AND complete >= 0 AND pruned >= 0 AND fail >= 0",
        name="tally",
    ),
    sqlite_autoincrement=True,  # the id of a deleted study never comes back
)

# Studies that Optuna's own API wrote through its storage are not ours to give out.
FROM_OPTUNA = "optuna"
OURS = sa.and_(studies.c.created_with != sa.literal_column(f"'{FROM_OPTUNA}'"), sa.not_(studies.c.deleted))
HELD = studies.c.running + studies.c.replicates_running

_some(studies, "ix_hpo_studies_deleted", "id", where="deleted")
# None of these holds a counter, which every call changes.
_some(studies, "ix_hpo_studies_to_ask", "kind", "id", where="state = 'ACTIVE' AND kind IS NOT NULL")
_some(studies, "ix_hpo_studies_requires", "id", where="requires IS NOT NULL")
_some(studies, "ix_hpo_studies_ends_at", "ends_at", where="ends_at IS NOT NULL")

rounds = sa.Table(
    "hpo_rounds",
    metadata,
    _study_id(primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("search_space", sa.JSON, nullable=False),
    sa.Column("first_trial", sa.Integer),
    sa.Column("trials", sa.Integer, nullable=False),
    sa.Column("finished", sa.Integer, nullable=False),
    sa.Column("from_trials", sa.JSON, nullable=False),
    sa.Column("changes", sa.JSON, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

trials = sa.Table(
    "hpo_trials",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    _study_id(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("params", sa.JSON, nullable=False),  # {name: value}, as on the wire
    sa.Column("distributions", sa.JSON(none_as_null=True)),  # {name: Optuna's JSON}, when written by Optuna itself
    sa.Column("values", sa.JSON(none_as_null=True)),  # [number | "Infinity" | "-Infinity"]
    sa.Column("value", sa.Double),  # the first of the values, for ordering
    sa.Column("metrics", sa.JSON(none_as_null=True)),
    sa.Column("artifacts", sa.JSON(none_as_null=True)),  # [name]; NULL: none
    sa.Column("reason", sa.Text),
    sa.Column("stop", sa.Text),  # why the worker shall end it: pruned, stopped
    sa.Column("round", sa.Integer),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("attempt_end", sa.Text),
    sa.Column("lapsed", sa.Integer, nullable=False),
    sa.Column("lease_expires_at", Seconds),
    sa.Column("worker_id", sa.Text),
    sa.Column("told", sa.JSON(none_as_null=True)),
    sa.Column("started_at", Seconds),
    sa.Column("finished_at", Seconds),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("user_attrs", sa.JSON, nullable=False),
    sa.Column("system_attrs", sa.JSON, nullable=False),
    sa.Column("replicate_of", sa.Integer),  # the number of the trial that this one confirms
    sa.UniqueConstraint("study_id", "number"),
    _one_of("state", TRIAL_STATES, "state"),
    _one_of("attempt_end", ("told", "expired", "released"), "attempt_end"),
    sa.CheckConstraint("state <> 'RUNNING' OR lease_expires_at IS NOT NULL OR attempt = 0", name="lease"),
    sqlite_autoincrement=True,
)

OF_THE_SEARCH = trials.c.replicate_of.is_(None)

_some(trials, "ix_hpo_trials_retries", "study_id", "number", where="state = 'WAITING' AND attempt > 0")
_some(trials, "ix_hpo_trials_queued", "study_id", "number", where="state = 'WAITING' AND attempt = 0")
# without leases, which every report moves
_some(trials, "ix_hpo_trials_running", "study_id", where="state = 'RUNNING'")
_some(trials, "ix_hpo_trials_best", "study_id", "value", "number", where="state = 'COMPLETE'")
_some(trials, "ix_hpo_trials_replicates", "study_id", "number", where="replicate_of IS NOT NULL")
# No index for the counts of /v1/workers, which scan the trials: each tell would write a page more.
sa.Index("ix_hpo_trials_revision", trials.c.study_id, trials.c.revision)

# The attempts that another one has followed, or will: the last one of a trial stands in the trial's row.
attempts = sa.Table(
    "hpo_attempts",
    metadata,
    sa.Column("trial_id", BigId, sa.ForeignKey("hpo_trials.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("started_at", Seconds, nullable=False),
    sa.Column("ended_at", Seconds),
    sa.Column("end", sa.Text),
    _one_of('"end"', ("told", "expired", "released"), "end"),
)

_some(attempts, "ix_hpo_attempts_told", "worker_id", "trial_id", where="\"end\" = 'told'")

reports = sa.Table(
    "hpo_reports",
    metadata,
    sa.Column("trial_id", BigId, sa.ForeignKey("hpo_trials.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Double),  # NULL is NaN, which SQLite cannot hold
    sa.Column("metrics", sa.JSON(none_as_null=True)),
)

# What an ask, an enqueue or an import answered, by its request_id: a repeated call gets the same answer.
answers = sa.Table(
    "hpo_answers",
    metadata,
    sa.Column("call", sa.Text, primary_key=True),  # the route, with the study where the route names one
    sa.Column("request_id", sa.Text, primary_key=True),
    # No foreign key: without an index, the end of a study would scan all answers; with one, each ask writes it.
    sa.Column("study_id", BigId, nullable=False, autoincrement=False),
    sa.Column("answer", sa.JSON, nullable=False),
)

# The sealed test of a study: at most one, with attempts and a lease like a trial.
tests = sa.Table(
    "hpo_tests",
    metadata,
    _study_id(primary_key=True),
    sa.Column("ensemble", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # the trial whose configuration it tests
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("attempt_end", sa.Text),
    sa.Column("lapsed", sa.Integer, nullable=False),
    sa.Column("lease_expires_at", Seconds),
    sa.Column("worker_id", sa.Text),
    sa.Column("result", sa.JSON(none_as_null=True)),  # as told
    sa.Column("reason", sa.Text),
    sa.Column("finished_at", Seconds),
    _one_of("state", ("WAITING", "RUNNING", "COMPLETE", "FAIL"), "state"),
)

_some(tests, "ix_hpo_tests_waiting", "study_id", where="state = 'WAITING'")

workers = sa.Table(
    "hpo_workers",
    metadata,
    sa.Column("worker_id", sa.Text, primary_key=True),
    sa.Column("last_seen_at", Seconds, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("labels", sa.JSON(none_as_null=True)),  # of its last ask
)

# The servers that run, or were there a moment ago; see store/outages.py.
servers = sa.Table(
    "hpo_servers",
    metadata,
    sa.Column("server_id", sa.Text, primary_key=True),  # drawn anew at each start
    sa.Column("served_until", Seconds, nullable=False),
)

# When a server could not serve: time that does not count against leases.
outages = sa.Table(
    "hpo_outages",
    metadata,
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("began", Seconds, primary_key=True),
    sa.Column("ended", Seconds, nullable=False),
)

# The artifacts of trials and of sealed tests (number -1); see store/artifact_rows.py.
artifacts = sa.Table(
    "hpo_artifacts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),  # under which its bytes lie
    # No foreign key: the row outlives its study, until its bytes are deleted.
    sa.Column("study_id", BigId, nullable=False, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("server_id", sa.Text, nullable=False),  # who writes it, or has written it
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at", Seconds, nullable=False),
    _one_of("state", ("uploading", "kept", "gone"), "state"),
)
sa.Index("ix_hpo_artifacts_of", artifacts.c.study_id, artifacts.c.number, artifacts.c.name)
_some(artifacts, "ix_hpo_artifacts_loose", "key", where="state <> 'kept'")

# The keys of callers. A key itself is stored nowhere: only its hash, by which it is found.
keys = sa.Table(
    "hpo_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),  # SHA-256, in hexadecimal
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("studies", sa.JSON(none_as_null=True)),  # [name]; NULL: every study
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("expires_at", Seconds),
    sa.Column("revoked_at", Seconds),
    _one_of("scope", ("read", "worker", "admin"), "scope"),
)
