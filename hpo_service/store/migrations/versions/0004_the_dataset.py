"""The dataset of a study, by the hash of its images and labels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("dataset_sha256", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("hpo_studies", "dataset_sha256")
