"""Trials that have failed while none had come through: how many, since when, and why the last one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("failures", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("hpo_studies", "failures")
