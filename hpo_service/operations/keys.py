"""What people do with keys, on the database itself: create, list, revoke."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from typing import NamedTuple

from hpo_service.domain import key as keys
from hpo_service.domain.errors import NotFound
from hpo_service.domain.json_types import Json
from hpo_service.domain.key import Key, Scope
from hpo_service.reading.resources import time_text
from hpo_service.store.key_table import KeyTable

FIRST_LABEL = "first start"


Keep = Callable[[str], None]  # puts a key where its owner finds it; what it raises undoes the key


class NewKey(NamedTuple):
    """A key's token, which is stored nowhere, and what is recorded of it."""

    token: str
    key: Key


def create(
    table: KeyTable,
    scope: Scope,
    studies: Collection[str] | None = None,
    life_seconds: float | None = None,
    label: str = "",
    keep: Keep | None = None,
) -> NewKey:
    """Draw a key, for these studies or for all. Raise Invalid.

    keep: called before the key is recorded; if it raises, there is no key.
    """
    drawn = _add(table, scope, studies, life_seconds, label, keep, only_as_the_first=False)
    assert drawn is not None
    return drawn


def create_first(table: KeyTable, keep: Keep | None = None) -> NewKey | None:
    """A key for everything if the record has never had any; of several servers that start at once, one draws it."""
    return _add(table, Scope.ADMIN, None, None, FIRST_LABEL, keep, only_as_the_first=True)


def _add(
    table: KeyTable,
    scope: Scope,
    studies: Collection[str] | None,
    life_seconds: float | None,
    label: str,
    keep: Keep | None,
    *,
    only_as_the_first: bool,
) -> NewKey | None:
    bound = None if studies is None else frozenset(studies)
    keys.check(label, bound)
    token = keys.draw()

    def made(now: float) -> Key:
        ends = None if life_seconds is None else now + life_seconds
        if keep is not None:
            keep(token)
        return Key(secrets.token_hex(4), keys.hash_of(token), label, scope, bound, now, ends)

    key = table.add(made, only_as_the_first=only_as_the_first)
    return None if key is None else NewKey(token, key)


def find_live(table: KeyTable, token: str) -> Key | None:
    """The key as recorded, if it is valid now."""
    wanted = keys.hash_of(token)
    return next((key for key in table.live() if secrets.compare_digest(key.hash, wanted)), None)


def revoke(table: KeyTable, id: str) -> Json:
    """End a key; to revoke one twice is fine. Raise NotFound."""
    key = table.revoke(id)
    if key is None:
        raise NotFound(f"there is no key {id!r} that can be read; hpo token list shows them")
    return key_resource(key, key.created_at)


def listed(table: KeyTable) -> list[Json]:
    found, now = table.all()
    return [key_resource(key, now) for key in found]


def key_resource(key: Key, now: float) -> Json:
    """Neither the key nor its hash."""
    return {
        "id": key.id,
        "label": key.label,
        "scope": key.scope,
        "studies": None if key.studies is None else sorted(key.studies),
        "state": key.state(now),
        "created_at": time_text(key.created_at),
        "expires_at": None if key.expires_at is None else time_text(key.expires_at),
        "revoked_at": None if key.revoked_at is None else time_text(key.revoked_at),
    }
