"""What studies require of a worker, what workers have, and indexes by which a worker's tells are counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("requires", sa.Text(), nullable=True))
    op.add_column("hpo_workers", sa.Column("labels", sa.JSON(), nullable=True))
    _index("ix_hpo_studies_requires", "hpo_studies", ["id"], "requires IS NOT NULL")
    _index("ix_hpo_trials_told", "hpo_trials", ["worker_id", "state", "study_id"], "attempt_end = 'told'")
    _index("ix_hpo_attempts_told", "hpo_attempts", ["worker_id", "trial_id"], "\"end\" = 'told'")


def downgrade() -> None:
    op.drop_index("ix_hpo_attempts_told", table_name="hpo_attempts")
    op.drop_index("ix_hpo_trials_told", table_name="hpo_trials")
    op.drop_index("ix_hpo_studies_requires", table_name="hpo_studies")
    op.drop_column("hpo_workers", "labels")
    op.drop_column("hpo_studies", "requires")


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
