"""One schema and one kind of text, whichever version 5 the database was made by.

Version 5 was changed twice while it was new: it left remembered answers in a table without rowids on SQLite, or an
older index of the running trials. What is so is found by looking, and brought to what version 5 says now.

And NUL is refused in every text since; where one was taken before, it becomes the character for what cannot be shown.
PostgreSQL keeps the escape for it in JSON but cannot read it: one in a study's metadata broke Optuna's views of all.
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# table -> its key, its columns of JSON, its columns of text that callers write
_TEXTS = {
    "hpo_studies": (["id"], ["spec", "user_attrs", "system_attrs"], []),
    "hpo_rounds": (["study_id", "round"], ["search_space", "changes"], []),
    "hpo_trials": (
        ["id"],
        ["params", "distributions", "metrics", "user_attrs", "system_attrs"],
        ["reason"],
    ),
    "hpo_reports": (["trial_id", "step"], ["metrics"], []),
    "hpo_answers": (["call", "request_id"], ["answer"], []),
    "hpo_tests": (["study_id"], ["result"], ["reason"]),
}
_ESCAPED_NUL = r"\u0000"
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")  # and not the text \u0000, whose backslash is doubled


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite" and _answers_have_no_rowids(connection):
        _rebuild_answers()
    _index_running_trials(connection)
    for table, (key, documents, texts) in _TEXTS.items():
        for column in documents:
            _mend_documents(connection, table, key, column)
        if connection.dialect.name == "sqlite":  # PostgreSQL's text cannot hold it
            for column in texts:
                _mend_texts(connection, table, column)


def downgrade() -> None:
    """Version 5 says the same."""


def _answers_have_no_rowids(connection: sa.Connection) -> bool:
    made_by = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE name = 'hpo_answers'")).scalar_one()
    return "WITHOUT ROWID" in str(made_by).upper()


def _rebuild_answers() -> None:
    op.rename_table("hpo_answers", "hpo_answers_before")
    op.create_table(
        "hpo_answers",
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("study_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpo_studies.id"], name=op.f("fk_hpo_answers_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("call", "request_id", name=op.f("pk_hpo_answers")),
    )
    op.execute(
        "INSERT INTO hpo_answers (call, request_id, study_id, answer) "
        "SELECT call, request_id, study_id, answer FROM hpo_answers_before"
    )
    op.drop_table("hpo_answers_before")


def _index_running_trials(connection: sa.Connection) -> None:
    there = {index["name"] for index in sa.inspect(connection).get_indexes("hpo_trials")}
    running = sa.text("state = 'RUNNING'")
    if "ix_hpo_trials_running" not in there:
        op.create_index(
            "ix_hpo_trials_running", "hpo_trials", ["study_id"], sqlite_where=running, postgresql_where=running
        )
    if "ix_hpo_trials_leases" in there:
        op.drop_index("ix_hpo_trials_leases", table_name="hpo_trials")


def _mend_documents(connection: sa.Connection, table: str, key: list[str], column: str) -> None:
    on_sqlite = connection.dialect.name == "sqlite"
    text, where = (f'"{column}"', "instr") if on_sqlite else (f'"{column}"::text', "strpos")
    found = connection.execute(
        sa.text(f"SELECT {', '.join(key)}, {text} FROM {table} WHERE {where}({text}, :nul) > 0"),  # noqa: S608
        {"nul": _ESCAPED_NUL},
    ).all()
    value = ":mended" if on_sqlite else "CAST(:mended AS json)"
    same = " AND ".join(f"{name} = :{name}" for name in key)
    for *place, document in found:
        mended = _NUL.sub(lambda match: match[1] + r"\ufffd", document)
        if mended != document:
            connection.execute(
                sa.text(f'UPDATE {table} SET "{column}" = {value} WHERE {same}'),  # noqa: S608
                {"mended": mended, **dict(zip(key, place, strict=True))},
            )


def _mend_texts(connection: sa.Connection, table: str, column: str) -> None:
    connection.execute(
        sa.text(
            f"UPDATE {table} SET {column} = replace({column}, char(0), char(65533)) "  # noqa: S608
            f"WHERE instr({column}, char(0)) > 0"
        )
    )
