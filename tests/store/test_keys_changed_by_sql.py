"""The keys' table is anybody's who may write the database: what SQL changes there is seen as what `hpo token` does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from hpo_service.domain.key import Key, Scope, draw, hash_of
from hpo_service.operations import keyring, keys
from hpo_service.operations.keyring import Keyring
from hpo_service.store import KeyTable
from hpo_service.store.engine import database_url as parsed

Sql = Callable[..., None]


@pytest.fixture
def sql(database_url: str) -> Iterator[Sql]:
    """A statement by somebody else, committed."""
    engine = sa.create_engine(parsed(database_url))

    def run(statement: str, **values: Any) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    yield run
    engine.dispose()


@pytest.fixture
def table(database_url: str, clock: Any) -> Iterator[KeyTable]:
    opened = KeyTable(database_url, clock)
    yield opened
    opened.close()


def copied(sql: Sql, key: Key, **changed: Any) -> None:
    """A row like that of the key, with these values instead."""
    row = {**vars(key), "scope": key.scope.value, "studies": None, **changed}
    sql(f"INSERT INTO hpo_keys ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})", **row)


def one(table: KeyTable) -> Key:
    (found,) = table.live()
    return found


def test_a_key_deleted_and_another_made_are_seen_though_their_number_stays(table: KeyTable, sql: Sql) -> None:
    old, new = keys.create(table, Scope.ADMIN).key, draw()
    assert one(table) == old
    sql("DELETE FROM hpo_keys WHERE id = :id", id=old.id)
    copied(sql, old, id="other", hash=hash_of(new))
    assert one(table).hash == hash_of(new)


@pytest.mark.parametrize(
    ("change", "reads"),
    [
        ("scope = 'read'", {"scope": Scope.READ}),
        ("scope = 'admin'", {"scope": Scope.ADMIN}),
        ("""studies = '["a"]'""", {"studies": frozenset({"a"})}),
        ("studies = '[]'", {"studies": frozenset()}),
        (f"hash = '{'0' * 64}'", {"hash": "0" * 64}),
        ("expires_at = 1800000060", {"expires_at": 1800000060.0}),
        ("label = 'mine, now'", {"label": "mine, now"}),
    ],
)
def test_a_row_that_is_updated_is_read_again(table: KeyTable, sql: Sql, change: str, reads: dict[str, Any]) -> None:
    before = keys.create(table, Scope.WORKER).key
    assert one(table) == before
    sql(f"UPDATE hpo_keys SET {change}")
    assert vars(one(table)) == {**vars(before), **reads}


def test_two_keys_that_change_places_are_read_again(table: KeyTable, sql: Sql) -> None:
    first, second = keys.create(table, Scope.READ).key, keys.create(table, Scope.ADMIN).key
    assert {key.hash: key.scope for key in table.live()} == {first.hash: Scope.READ, second.hash: Scope.ADMIN}
    sql("UPDATE hpo_keys SET scope = CASE scope WHEN 'read' THEN 'admin' ELSE 'read' END")
    assert {key.hash: key.scope for key in table.live()} == {first.hash: Scope.ADMIN, second.hash: Scope.READ}


def test_a_revocation_taken_back_and_one_made_are_seen(table: KeyTable, sql: Sql) -> None:
    ended, live = keys.create(table, Scope.READ).key, keys.create(table, Scope.READ).key
    keys.revoke(table, ended.id)
    assert one(table).id == live.id
    sql("UPDATE hpo_keys SET revoked_at = CASE WHEN revoked_at IS NULL THEN 1800000000 END")
    assert one(table).id == ended.id


def test_a_key_ends_when_its_time_has_come_though_no_row_changes_and_as_the_clock_says(
    table: KeyTable, clock: Any
) -> None:
    keys.create(table, Scope.READ, life_seconds=60)
    for seconds, there in ((59, 1), (1, 0), (-10, 1), (86_400, 0)):
        clock.turn(seconds)
        assert len(table.live()) == there


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["studies = 'null'", "studies = '\"ab\"'", "studies = '{}'", "studies = '[1]'", "expires_at = -1"]
)
def test_a_row_that_is_no_key_opens_nothing_is_named_and_closes_the_door_to_nobody(
    table: KeyTable, sql: Sql, change: str
) -> None:
    bad, good = keys.create(table, Scope.ADMIN).key, keys.create(table, Scope.ADMIN).key
    sql(f"UPDATE hpo_keys SET {change} WHERE id = :id", id=bad.id)
    assert one(table) == good
    (said,) = table.unreadable
    assert repr(bad.id) in said
    assert [key["id"] for key in keys.listed(table)] == [good.id]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "change", ["expires_at = 'soon'", "label = x'00'", "studies = '['", "studies = x'5b22'", "studies = ''"]
)
def test_sqlite_takes_any_type_and_such_a_row_opens_nothing(table: KeyTable, sql: Sql, change: str) -> None:
    bad, good = keys.create(table, Scope.ADMIN).key, keys.create(table, Scope.ADMIN).key
    sql(f"UPDATE hpo_keys SET {change} WHERE id = :id", id=bad.id)
    assert one(table) == good
    assert len(table.unreadable) == 1


def test_rows_are_made_into_keys_only_when_one_has_changed(
    table: KeyTable, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    read = KeyTable._read
    monkeypatch.setattr(KeyTable, "_read", lambda self, *query: made.append(1) or read(self, *query))
    key = keys.create(table, Scope.READ).key
    for _ in range(3):
        assert one(table) == key
    assert len(made) == 1
    sql("UPDATE hpo_keys SET scope = 'worker'")
    for _ in range(3):
        assert one(table).scope is Scope.WORKER
    assert len(made) == 2


def test_while_a_call_waits_the_keys_are_read_again_though_nobody_else_calls(
    table: KeyTable, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "FRESH_SECONDS", 0.02)
    key = keys.create(table, Scope.WORKER).key

    async def wait() -> bool:
        ring = Keyring(table)
        await ring.refreshed()
        assert ring.still_has(key)
        with ring.kept_fresh():
            sql("UPDATE hpo_keys SET scope = 'read'")
            for _ in range(500):
                if not ring.still_has(key):
                    return True
                await asyncio.sleep(0.02)
        return False

    assert asyncio.run(wait())


def test_who_waits_for_the_keys_does_not_take_a_reading_that_began_long_before(
    table: KeyTable, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs for seconds and then answers says what was so seconds ago."""
    monkeypatch.setattr(keyring, "VALID_SECONDS", 0.05)
    drawn = keys.create(table, Scope.ADMIN)
    live, hangs = KeyTable.live, threading.Event()

    def hanging(self: KeyTable) -> list[Key]:
        found = live(self)
        hangs.wait()
        return found

    async def wait() -> Key | None:
        ring = Keyring(table)
        ring.is_valid()  # begins the reading that hangs
        await asyncio.sleep(0.2)
        sql("DELETE FROM hpo_keys")
        waiting = asyncio.create_task(ring.refreshed())
        await asyncio.sleep(0.1)
        hangs.set()
        await waiting
        return ring.find(drawn.token)

    monkeypatch.setattr(KeyTable, "live", hanging)
    assert asyncio.run(wait()) is None
