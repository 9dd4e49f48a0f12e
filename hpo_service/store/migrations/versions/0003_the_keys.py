"""The keys of callers, by their hashes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hpo_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("studies", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.CheckConstraint("scope IN ('read', 'worker', 'admin')", name=op.f("ck_hpo_keys_scope")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hpo_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_hpo_keys_hash")),
    )


def downgrade() -> None:
    op.drop_table("hpo_keys")
