"""Artifacts: their names with the trials, and where their bytes lie."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("hpo_trials", sa.Column("artifacts", sa.JSON(), nullable=True))
    op.create_table(
        "hpo_artifacts",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("study_id", _BIG_ID, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_hpo_artifacts"),
        sa.CheckConstraint("state IN ('uploading', 'kept', 'gone')", name="ck_hpo_artifacts_state"),
    )
    op.create_index("ix_hpo_artifacts_of", "hpo_artifacts", ["study_id", "number", "name"])
    where = sa.text("state <> 'kept'")
    op.create_index("ix_hpo_artifacts_loose", "hpo_artifacts", ["key"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_table("hpo_artifacts")
    op.drop_column("hpo_trials", "artifacts")
