"""Whom to ask: what decides whether a study may give something out stands in columns, with indexes."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_AT_ONCE = 500
_COLUMNS = ("kind", "limit_trials", "limit_running")


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("kind", sa.Text(), nullable=True))
    op.add_column("hpo_studies", sa.Column("limit_trials", sa.BigInteger(), nullable=True))
    op.add_column("hpo_studies", sa.Column("limit_running", sa.BigInteger(), nullable=True))
    _fill()
    _index("ix_hpo_studies_to_ask", "hpo_studies", ["kind", "id"], "state = 'ACTIVE' AND kind IS NOT NULL")
    _index("ix_hpo_studies_ends_at", "hpo_studies", ["ends_at"], "ends_at IS NOT NULL")
    _index("ix_hpo_tests_waiting", "hpo_tests", ["study_id"], "state = 'WAITING'")


def downgrade() -> None:
    op.drop_index("ix_hpo_tests_waiting", table_name="hpo_tests")
    op.drop_index("ix_hpo_studies_ends_at", table_name="hpo_studies")
    op.drop_index("ix_hpo_studies_to_ask", table_name="hpo_studies")
    for name in _COLUMNS:
        op.drop_column("hpo_studies", name)


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _fill() -> None:
    """From the specs, some at a time: there may be many, and each may be large."""
    connection, last = op.get_bind(), 0
    some = sa.text("SELECT id, spec FROM hpo_studies WHERE id > :last ORDER BY id LIMIT :n")
    fill = sa.text(
        "UPDATE hpo_studies SET kind = :kind, limit_trials = :trials, limit_running = :running WHERE id = :id"
    )
    while found := connection.execute(some, {"last": last, "n": _AT_ONCE}).all():
        connection.execute(fill, [_of(key, spec) for key, spec in found])
        last = found[-1][0]


def _of(key: int, spec: Any) -> dict[str, Any]:
    read = json.loads(spec) if isinstance(spec, str) else spec
    limits = read.get("limits") or {}
    kind = (read.get("objective") or {}).get("kind")
    return {"id": key, "kind": kind, "trials": limits.get("trials"), "running": limits.get("running")}
