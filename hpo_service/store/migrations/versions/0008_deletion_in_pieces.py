"""A deleted study is marked and gone for everybody; its rows go later, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

from hpo_service.store.migrations import optuna_views_of_0002 as optuna_views

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ANSWERS = ("call", "request_id", "study_id", "answer")
_FOREIGN_KEY = "fk_hpo_answers_study_id"
# Whoever reads the other views comes to them through a study or its trials.
_OF_A_STUDY = ("studies", "study_directions", "trials")
_NOT_DELETED = "SELECT v.* FROM ({query}) AS v WHERE v.study_id NOT IN (SELECT id FROM hpo_studies WHERE deleted)"


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("deleted", sa.Boolean(), nullable=False, server_default=sa.false()))
    deleted = sa.text("deleted")
    op.create_index("ix_hpo_studies_deleted", "hpo_studies", ["id"], sqlite_where=deleted, postgresql_where=deleted)
    # Without an index, which every ask would have to write, the end of a study would look through all answers.
    if op.get_bind().dialect.name == "sqlite":
        _make_answers_again()
    else:
        op.drop_constraint(_FOREIGN_KEY, "hpo_answers", type_="foreignkey")
    _run(_without_deleted)


def downgrade() -> None:
    _delete_the_deleted()
    _run(_with_deleted)
    foreign_key = sa.ForeignKeyConstraint(["study_id"], ["hpo_studies.id"], name=_FOREIGN_KEY, ondelete="CASCADE")
    if op.get_bind().dialect.name == "sqlite":
        _make_answers_again(foreign_key)
    else:
        op.create_foreign_key(_FOREIGN_KEY, "hpo_answers", "hpo_studies", ["study_id"], ["id"], ondelete="CASCADE")
    op.drop_index("ix_hpo_studies_deleted", table_name="hpo_studies")
    op.drop_column("hpo_studies", "deleted")


def _make_answers_again(*constraints: sa.Constraint) -> None:
    """SQLite changes no constraint of a table that is there."""
    op.rename_table("hpo_answers", "hpo_answers_before")
    op.create_table(
        "hpo_answers",
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("study_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("call", "request_id", name=op.f("pk_hpo_answers")),
        *constraints,
    )
    columns = ", ".join(_ANSWERS)
    op.execute(f"INSERT INTO hpo_answers ({columns}) SELECT {columns} FROM hpo_answers_before")  # noqa: S608
    op.drop_table("hpo_answers_before")


def _delete_the_deleted() -> None:
    op.execute("DELETE FROM hpo_answers WHERE study_id IN (SELECT id FROM hpo_studies WHERE deleted)")
    op.execute("DELETE FROM hpo_studies WHERE deleted")  # the rest follows by its foreign keys


def _without_deleted(dialect: str) -> list[str]:
    views = optuna_views._views(dialect)
    return _replace(dialect, {name: _NOT_DELETED.format(query=views[name]) for name in _OF_A_STUDY})


def _with_deleted(dialect: str) -> list[str]:
    return _replace(dialect, {name: optuna_views._views(dialect)[name] for name in _OF_A_STUDY})


def _replace(dialect: str, queries: dict[str, str]) -> list[str]:
    if dialect != "sqlite":  # with their rights and triggers
        return [f"CREATE OR REPLACE VIEW {name} AS {query}" for name, query in queries.items()]
    return [
        statement
        for name, query in queries.items()
        for statement in (f"DROP VIEW {name}", f"CREATE VIEW {name} AS {query}")
    ]


def _run(statements_for: Callable[[str], list[str]]) -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    for statement in statements_for(dialect):
        # the driver's own bind marks are doubled; SQLite's are not in these statements
        connection.exec_driver_sql(statement if dialect == "sqlite" else statement.replace("%", "%%"))
