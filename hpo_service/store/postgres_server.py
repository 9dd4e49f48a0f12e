"""What a PostgreSQL has to be for this service, said in words where it is not: at the start, and by `hpo doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable

_SETTINGS = (
    "server_encoding",
    "client_encoding",
    "default_transaction_read_only",
    "default_transaction_isolation",
    "session_replication_role",
    "standard_conforming_strings",
    "extra_float_digits",
    "search_path",
)
# Tables of ours that are not on the search path, and that this user may write.
_ELSEWHERE = """
    SELECT min(n.nspname::text) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname = 'hpo_studies' AND c.relkind = 'r' AND to_regclass('hpo_studies') IS NULL
        AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT')"""


class UnfitDatabase(Unavailable):
    """It would lose or change what is written into it."""


def check(connection: sa.Connection) -> None:
    """Raise UnfitDatabase where this service cannot run on it."""
    found = list(faults(connection))
    if found:
        raise UnfitDatabase("; ".join(found))


def faults(connection: sa.Connection) -> Iterator[str]:
    """What keeps this service from running on it, and what to do. None of another kind of database."""
    if connection.dialect.name != "postgresql":
        return
    columns = ", ".join(f"current_setting('{name}') AS {name}" for name in _SETTINGS)
    query = f"SELECT {columns}, pg_is_in_recovery() AS standby, current_schema() AS schema, ({_ELSEWHERE}) AS elsewhere"
    row = connection.execute(sa.text(query)).one()._asdict()
    yield from _of_place(row)
    yield from _of_settings(row)


def _of_place(row: Mapping[str, Any]) -> Iterator[str]:
    if row["standby"]:
        yield "this PostgreSQL is a standby, which only reads: name the primary in the database's URL"
    if row["server_encoding"] != "UTF8":
        yield (
            f"this database has the encoding {row['server_encoding']}, which cannot hold every text; create one with "
            "UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if row["schema"] is None:
        yield (
            f"no schema of the search_path ({row['search_path'] or 'empty'}) is there, so that there is none to make "
            "tables in: ALTER ROLE … SET search_path = public"
        )
    elif row["elsewhere"] is not None:
        yield (
            f"the record of this database is in the schema {row['elsewhere']}, which is not on the search_path "
            f"({row['search_path']}); to use it: ALTER ROLE … SET search_path = {row['elsewhere']}. To begin another "
            f"record in {row['schema']}, use a role that may not write that one"
        )


def _of_settings(row: Mapping[str, Any]) -> Iterator[str]:
    """Settings that the service makes itself differ only behind a pooler that does not pass them on."""
    if row["default_transaction_read_only"] == "on":
        yield "default_transaction_read_only is on for this role or database, so that nothing is written: set it off"
    if row["session_replication_role"] != "origin":
        yield (
            f"session_replication_role is {row['session_replication_role']}, so that what belongs to a deleted study "
            "would stay: set it to origin"
        )
    for name, wanted in (
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("default_transaction_isolation", "read committed"),
    ):
        if row[name] != wanted:
            yield f"{name} is {row[name]} here, and has to be {wanted}: ALTER ROLE … SET {name} = '{wanted}'"
    if int(row["extra_float_digits"]) < 1:
        yield "extra_float_digits is below 1, so that values are read rounded: ALTER ROLE … SET extra_float_digits = 1"
