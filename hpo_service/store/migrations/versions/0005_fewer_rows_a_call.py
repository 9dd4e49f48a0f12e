"""Fewer rows a call: the counts of the round under way stand with the study, and fewer indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COUNTS = ("round_trials", "round_finished")


def upgrade() -> None:
    for name in _COUNTS:
        op.add_column("hpo_studies", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("hpo_studies", sa.Column("round_revision", sa.BigInteger(), nullable=False, server_default="0"))
    op.drop_index("ix_hpo_answers_study_id", table_name="hpo_answers")
    _replace_index("ix_hpo_trials_leases", "ix_hpo_trials_running", ["study_id"])


def downgrade() -> None:
    _write_rounds()
    _write_attempts()
    op.create_index("ix_hpo_answers_study_id", "hpo_answers", ["study_id"])
    _replace_index("ix_hpo_trials_running", "ix_hpo_trials_leases", ["study_id", "lease_expires_at"])
    for name in (*_COUNTS, "round_revision"):
        op.drop_column("hpo_studies", name)


def _replace_index(before: str, after: str, columns: list[str]) -> None:
    """Of the running trials. Without the lease in it, a report or a heartbeat need not write it."""
    running = sa.text("state = 'RUNNING'")
    op.drop_index(before, table_name="hpo_trials")
    op.create_index(after, "hpo_trials", columns, sqlite_where=running, postgresql_where=running)


def _write_rounds() -> None:
    """Into their own rows, where version 4 looks for them."""
    now = "FROM hpo_studies s WHERE s.id = hpo_rounds.study_id AND s.round = hpo_rounds.round"
    op.execute(
        f"UPDATE hpo_rounds SET trials = (SELECT s.round_trials {now}), finished = (SELECT s.round_finished {now}), "  # noqa: S608
        f"revision = (SELECT s.round_revision {now}) "
        f"WHERE EXISTS (SELECT 1 {now} AND s.round_revision > hpo_rounds.revision)"
    )


def _write_attempts() -> None:
    """The last attempts, which had no row as long as the trial's own said all of it."""
    op.execute(
        'INSERT INTO hpo_attempts (trial_id, attempt, worker_id, started_at, ended_at, "end") '
        "SELECT id, attempt, worker_id, started_at, finished_at, attempt_end FROM hpo_trials t "
        "WHERE attempt > 0 AND worker_id IS NOT NULL AND started_at IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM hpo_attempts a WHERE a.trial_id = t.id AND a.attempt = t.attempt)"
    )
