"""The record: studies, rounds, trials, attempts, reports, remembered answers, sealed tests, workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hpo_studies",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_with", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("lease_seconds", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("queued", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("running", sa.Integer(), server_default="0", nullable=False),
        sa.Column("complete", sa.Integer(), server_default="0", nullable=False),
        sa.Column("pruned", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fail", sa.Integer(), server_default="0", nullable=False),
        sa.Column("given_out", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("round", sa.Integer(), server_default="0", nullable=False),
        sa.Column("exhausted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("sealed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("user_attrs", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("system_attrs", sa.JSON(), server_default="{}", nullable=False),
        sa.CheckConstraint(
            "state IN ('ACTIVE', 'PAUSED', 'STOPPING', 'STOPPED', 'COMPLETED', 'CANCELLED')",
            name=op.f("ck_hpo_studies_state"),
        ),
        sa.CheckConstraint(
            "queued >= 0 AND retries >= 0 AND running >= 0 AND complete >= 0 AND pruned >= 0 AND fail >= 0",
            name=op.f("ck_hpo_studies_tally"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hpo_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_hpo_studies_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "hpo_workers",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_hpo_workers")),
    )
    op.create_table(
        "hpo_answers",
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column(
            "study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpo_studies.id"], name=op.f("fk_hpo_answers_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("call", "request_id", name=op.f("pk_hpo_answers")),
    )
    op.create_index("ix_hpo_answers_study_id", "hpo_answers", ["study_id"], unique=False)
    op.create_table(
        "hpo_rounds",
        sa.Column(
            "study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("search_space", sa.JSON(), nullable=False),
        sa.Column("first_trial", sa.Integer(), nullable=True),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("finished", sa.Integer(), nullable=False),
        sa.Column("from_trials", sa.JSON(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpo_studies.id"], name=op.f("fk_hpo_rounds_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "round", name=op.f("pk_hpo_rounds")),
    )
    op.create_table(
        "hpo_tests",
        sa.Column(
            "study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("ensemble", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempt_end", sa.Text(), nullable=True),
        sa.Column("lapsed", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('WAITING', 'RUNNING', 'COMPLETE', 'FAIL')", name=op.f("ck_hpo_tests_state")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpo_studies.id"], name=op.f("fk_hpo_tests_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_hpo_tests")),
    )
    op.create_table(
        "hpo_trials",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("distributions", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("values", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("stop", sa.Text(), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempt_end", sa.Text(), nullable=True),
        sa.Column("lapsed", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("told", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("user_attrs", sa.JSON(), nullable=False),
        sa.Column("system_attrs", sa.JSON(), nullable=False),
        sa.CheckConstraint("attempt_end IN ('told', 'expired', 'released')", name=op.f("ck_hpo_trials_attempt_end")),
        sa.CheckConstraint(
            "state <> 'RUNNING' OR lease_expires_at IS NOT NULL OR attempt = 0", name=op.f("ck_hpo_trials_lease")
        ),
        sa.CheckConstraint(
            "state IN ('WAITING', 'RUNNING', 'COMPLETE', 'PRUNED', 'FAIL')", name=op.f("ck_hpo_trials_state")
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpo_studies.id"], name=op.f("fk_hpo_trials_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hpo_trials")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_hpo_trials_study_id_number")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_hpo_trials_best",
        "hpo_trials",
        ["study_id", "value", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'COMPLETE'"),
        postgresql_where=sa.text("state = 'COMPLETE'"),
    )
    op.create_index(
        "ix_hpo_trials_leases",
        "hpo_trials",
        ["study_id", "lease_expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_index(
        "ix_hpo_trials_queued",
        "hpo_trials",
        ["study_id", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'WAITING' AND attempt = 0"),
        postgresql_where=sa.text("state = 'WAITING' AND attempt = 0"),
    )
    op.create_index(
        "ix_hpo_trials_retries",
        "hpo_trials",
        ["study_id", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'WAITING' AND attempt > 0"),
        postgresql_where=sa.text("state = 'WAITING' AND attempt > 0"),
    )
    op.create_index("ix_hpo_trials_revision", "hpo_trials", ["study_id", "revision"], unique=False)
    op.create_table(
        "hpo_attempts",
        sa.Column("trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("end", sa.Text(), nullable=True),
        sa.CheckConstraint("\"end\" IN ('told', 'expired', 'released')", name=op.f("ck_hpo_attempts_end")),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["hpo_trials.id"], name=op.f("fk_hpo_attempts_trial_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name=op.f("pk_hpo_attempts")),
    )
    op.create_table(
        "hpo_reports",
        sa.Column("trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["hpo_trials.id"], name=op.f("fk_hpo_reports_trial_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "step", name=op.f("pk_hpo_reports")),
    )


def downgrade() -> None:
    op.drop_table("hpo_reports")
    op.drop_table("hpo_attempts")
    op.drop_index("ix_hpo_trials_revision", table_name="hpo_trials")
    op.drop_index(
        "ix_hpo_trials_retries",
        table_name="hpo_trials",
        sqlite_where=sa.text("state = 'WAITING' AND attempt > 0"),
        postgresql_where=sa.text("state = 'WAITING' AND attempt > 0"),
    )
    op.drop_index(
        "ix_hpo_trials_queued",
        table_name="hpo_trials",
        sqlite_where=sa.text("state = 'WAITING' AND attempt = 0"),
        postgresql_where=sa.text("state = 'WAITING' AND attempt = 0"),
    )
    op.drop_index(
        "ix_hpo_trials_leases",
        table_name="hpo_trials",
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.drop_index(
        "ix_hpo_trials_best",
        table_name="hpo_trials",
        sqlite_where=sa.text("state = 'COMPLETE'"),
        postgresql_where=sa.text("state = 'COMPLETE'"),
    )
    op.drop_table("hpo_trials")
    op.drop_table("hpo_tests")
    op.drop_table("hpo_rounds")
    op.drop_index("ix_hpo_answers_study_id", table_name="hpo_answers")
    op.drop_table("hpo_answers")
    op.drop_table("hpo_workers")
    op.drop_table("hpo_studies")
