"""A drill with somebody who changes the keys' table by SQL, past `hpo token`, while the server idles or is called."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from drills.loaded_study import Outcome, Place
from drills.served import Server
from hpo_service.domain.key import draw, hash_of
from hpo_service.store.engine import database_url

VALID_SECONDS = 1.0  # after so long a key is refused that has been ended
LATE_SECONDS = 10.0  # a loaded machine is late with everything; what is not seen by then is not seen
NEVER_SECONDS_SABOTAGED = 3.0

_numbers = itertools.count()


class _Key:
    """A row of the table, with the key that nobody but the drill knows."""

    def __init__(self, scope: str = "worker") -> None:
        self.token, self.id, self.scope = draw(), f"drill-{next(_numbers)}", scope

    def made(self, revoked: bool = False) -> str:
        ended = "1" if revoked else "NULL"
        return (
            "INSERT INTO hpo_keys (id, hash, label, scope, created_at, revoked_at) "
            f"VALUES ('{self.id}', '{hash_of(self.token)}', '', '{self.scope}', 0, {ended})"
        )

    def changed(self, how: str) -> str:
        return f"UPDATE hpo_keys SET {how} WHERE id = '{self.id}'"


class _Change(NamedTuple):
    """Statements of one transaction, a call, and its status before and after."""

    what: str
    before: list[str]
    statements: list[str]
    key: _Key
    call: tuple[str, str, Any]
    statuses: tuple[int, int]


_LIST = ("GET", "/v1/studies", None)
_ASK = ("POST", "/v1/trials:ask", {"worker_id": "w", "request_id": "drill"})
_STUDY = ("GET", "/v1/studies/s", None)


def _swapped() -> _Change:
    old, new = _Key(), _Key()
    deleted = f"DELETE FROM hpo_keys WHERE id = '{old.id}'"
    return _Change("one deleted and one made", [old.made()], [deleted, new.made()], old, _LIST, (200, 401))


def _revived() -> _Change:
    one, two = _Key(), _Key()
    statements = [one.changed("revoked_at = NULL"), two.changed("revoked_at = 1")]
    return _Change("two revocations swapped", [one.made(revoked=True), two.made()], statements, one, _LIST, (401, 200))


def _updated(how: str, call: tuple[str, str, Any], after: int) -> Callable[[], _Change]:
    def change() -> _Change:
        key = _Key()
        return _Change(how.split(" ")[0], [key.made()], [key.changed(how)], key, call, (200, after))

    return change


CHANGES = (
    _swapped,
    _updated("scope = 'read'", _ASK, 403),
    _updated("studies = '[]'", _STUDY, 404),
    _updated("expires_at = 1", _LIST, 401),
    _updated("hash = id", _LIST, 401),
    _revived,
)


class _Watched:
    """A server that asks for keys, and somebody else's connection to its database."""

    def __init__(self, place: Place, url: str, folder: str) -> None:
        (place.folder / folder).mkdir()
        self.sabotaged = place.sabotage is not None
        token = Server.key(place.nursery, place.folder / folder, url)
        self.server = Server(place.nursery, place.folder / folder, url, place.sabotage, token)
        place.at_end(self.server.kill)
        self.server.start()
        space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
        self.server.patiently("POST", "/v1/studies", {"name": "s", "search_space": space})
        self._engine = sa.create_engine(database_url(url))
        place.at_end(self._engine.dispose)

    def run(self, statements: list[str]) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def status(self, change: _Change) -> int:
        self.server.token = change.key.token
        return self.server.call(*change.call)[0]

    def seconds_until(self, change: _Change, status: int) -> float | None:
        """Call until it is answered so; None: it never is."""
        began = time.monotonic()
        while self.status(change) != status:
            if time.monotonic() - began > (NEVER_SECONDS_SABOTAGED if self.sabotaged else LATE_SECONDS):
                return None
            time.sleep(0.02)
        return time.monotonic() - began


def keys_changed_by_sql(place: Place, size: int) -> Outcome:
    """`size` changes, on each kind of database by turns; the server idles meanwhile, or is called all the time."""
    outcome = Outcome()
    watched = [_Watched(place, place.sqlite(), "sqlite"), _Watched(place, place.postgresql(), "postgresql")]
    seen: list[float] = []
    for number in range(size):
        one, change = watched[number % 2], CHANGES[number // 2 % len(CHANGES)]()
        one.run(change.before)
        if one.seconds_until(change, change.statuses[0]) is None:
            outcome.violations.append(f"the drill: {change.what}: not {change.statuses[0]} before")
        seen += _see(one, change, outcome, idle=place.random.random() < 0.5)
        outcome.count += 1
    never = outcome.count - len(seen)
    outcome.measured = f"seen after {max(seen, default=0.0):.1f} s at most" + f", {never} never seen" * (never > 0)
    return outcome


def _see(one: _Watched, change: _Change, outcome: Outcome, *, idle: bool) -> list[float]:
    one.run(change.statements)
    if idle:
        time.sleep(VALID_SECONDS)
        if one.status(change) == change.statuses[1]:
            return [VALID_SECONDS]
        outcome.violations.append(f"a key changed by SQL is seen: {change.what}, not by the first call a second later")
    seconds = one.seconds_until(change, change.statuses[1])
    if seconds is None:
        outcome.violations.append(f"a key changed by SQL is seen: {change.what}, never")
    return [] if seconds is None else [seconds]
