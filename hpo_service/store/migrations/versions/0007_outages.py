"""When servers could not serve: what no lease is charged with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hpo_servers",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("served_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", name=op.f("pk_hpo_servers")),
    )
    op.create_table(
        "hpo_outages",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", "began", name=op.f("pk_hpo_outages")),
    )


def downgrade() -> None:
    op.drop_table("hpo_outages")
    op.drop_table("hpo_servers")
