"""When servers could not serve: each finds its own outages from its beats, and the others those of a dead server.

Every half second a server commits a beat: until then it has served. What lies between two beats that are far apart is
an outage: it was stopped or suspended, its event loop or its writer was held up, or the database was away. What lies
between the last beat of a server that has died and the start of the next one is an outage, too. While one of several
servers gives no sign, no lease ends for half a minute: that server may be the one that its worker calls.

A separate beat takes the write lock, which asks wait for. On PostgreSQL, a batch carries the beat along
(`Uptime.beat_to_carry`) if there is only the time to record; every few seconds a separate one checks other servers.

All times are the database's. A second clock, which does not jump, tells a jump of the first one from an outage.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo_service.domain.outage import SHORTEST_OUTAGE_SECONDS, Outage, disjoint
from hpo_service.store.one_round_trip import Statement
from hpo_service.store.tables import outages, servers, tests, trials

BEAT_SECONDS = 0.5
GONE_SECONDS = 30.0  # without a beat, until other servers take a server to be dead
# A server that has just started most likely takes the place of one that gives no sign.
TAKES_OVER_SECONDS = 5.0
AHEAD_SECONDS = 60.0  # a beat or outage further in the future is from before the clock was put back
MOST_KEPT = 500  # outages; leases that earlier ones would have lengthened have long been renewed, or are over
READ_AGAIN_SECONDS = 0.2
CHECKS_OTHERS_SECONDS = 5.0


def elapsed_seconds() -> float:
    """A clock that goes on while the machine is suspended, and never jumps."""
    # where there is no CLOCK_BOOTTIME, CLOCK_MONOTONIC counts that time, too
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Beat(NamedTuple):
    """When a server has served, by the database's clock and by one that does not jump.

    others: how many other servers there are; None: not counted.
    """

    at: float
    elapsed: float
    others: int | None = None


class Uptime:
    """When this server has last served. Before `begin` it knows of no outage."""

    def __init__(self, elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self.server_id = uuid.uuid4().hex
        self._elapsed = elapsed
        self._began = math.inf
        self._last: Beat | None = None
        self._checked_at = -math.inf  # when other servers were last checked
        self._others = 0

    def begin(self) -> None:
        """Beats will come from now on."""
        self._began = self._elapsed()

    def beaten(self, beat: Beat) -> None:
        self._last = beat
        if beat.others is not None:
            self._checked_at, self._others = beat.elapsed, beat.others

    def elapsed(self) -> float:
        return self._elapsed()

    def beat_at(self, now: float) -> Beat:
        return Beat(now, self._elapsed())

    def seconds_until_beat(self) -> float:
        return 0.0 if self._last is None else max(0.0, self._last.elapsed + BEAT_SECONDS - self._elapsed())

    def beat_to_carry(self, now: float) -> Beat | None:
        """A beat for a batch to carry along; None unless one is due soon and has only the time to record."""
        beat = self.beat_at(now)
        if self._last is None or beat.elapsed - self._last.elapsed < BEAT_SECONDS / 2:
            return None
        may_take_over = self._others > 0 and beat.elapsed - self._began < TAKES_OVER_SECONDS
        is_due = may_take_over or beat.elapsed - self._checked_at >= CHECKS_OTHERS_SECONDS
        return None if is_due or self.outage(now) is not None else beat

    @property
    def has_beaten(self) -> bool:
        return self._last is not None

    def takes_the_place_of(self, served_until: float, now: float) -> bool:
        """Whether this server has just started, and a server that served until then has given no sign since."""
        since_start = self._elapsed() - self._began
        return since_start < TAKES_OVER_SECONDS and served_until < now - since_start

    def outage(self, now: float) -> Outage | None:
        """The outage that has not been recorded yet, if there is one; it ends now at the earliest."""
        if self._last is None:
            return None if math.isinf(self._began) else Outage(0.0, now)
        elapsed = self._elapsed() - self._last.elapsed
        if elapsed <= SHORTEST_OUTAGE_SECONDS:
            return None
        # Never longer than the time that has passed: the database's clock may have jumped meanwhile.
        return Outage(max(min(self._last.at + BEAT_SECONDS, now), now - (elapsed - BEAT_SECONDS)), now)


@dataclass(frozen=True)
class KnownOutages:
    """What the record says: recorded outages, and until when each of the other servers has served."""

    recorded: Sequence[Outage]
    others: Sequence[float]
    read_at: float

    def is_fresh(self) -> bool:
        return time.monotonic() - self.read_at < READ_AGAIN_SECONDS

    def until(self, now: float, own: Outage | None) -> tuple[Outage, ...]:
        """All outages, whose time does not count against leases; another server's silence since its beat is one."""
        silent = [Outage(at, min(now, at + GONE_SECONDS)) for at in self.others if at < now]
        return disjoint([*_before(self.recorded, now), *silent, *([own] if own is not None else [])])


def _before(recorded: Iterable[Outage], now: float) -> list[Outage]:
    """Those without an end in the future: such a one was recorded before the clock was put back."""
    return [outage for outage in recorded if outage.ended <= now + AHEAD_SECONDS]


def read_outages(db: sa.Connection, now: float) -> tuple[Outage, ...]:
    return disjoint(_before(_recorded(db), now))


def _recorded(db: sa.Connection) -> list[Outage]:
    return [Outage(began, ended) for began, ended in db.execute(_RECORDED)]


def read_known(db: sa.Connection, server_id: str) -> KnownOutages:
    at = time.monotonic()
    others = [served_until for other, served_until in db.execute(_SERVERS) if other != server_id]
    return KnownOutages(_recorded(db), others, at)


def beat(db: sa.Connection, now: float, uptime: Uptime) -> Beat:
    """Record that this server serves, and its outage before; the beat counts once it is committed."""
    noted = uptime.beat_at(now)
    known = {row.server_id: row.served_until for row in db.execute(_SERVERS)}
    mine = known.pop(uptime.server_id, None)
    own = uptime.outage(now)
    if own is not None and (uptime.has_beaten or not known):
        # No server has left a beat: all the time before this start counts as an outage.
        _record(db, uptime.server_id, own, now)
    others = sum(not _took_over(db, other, served_until, now, uptime) for other, served_until in known.items())
    if mine is None:
        db.execute(sa.insert(servers), {"server_id": uptime.server_id, "served_until": now})
    else:
        db.execute(_BEAT[db.dialect.name], {"id": uptime.server_id, "now": now})
    return noted._replace(others=others)


def carried_beat(beat: Beat, server_id: str) -> Statement:
    """For PostgreSQL. It waits for no lock: where its row is locked by another server, or gone, it returns no row."""
    return _CARRIED, (beat.at, server_id)


def _took_over(db: sa.Connection, other: str, served_until: float, now: float, uptime: Uptime) -> bool:
    """Remove a server that seems dead, and record its outage. If it lives, its next beat puts it back."""
    replaces = uptime.takes_the_place_of(served_until, now)
    patience = SHORTEST_OUTAGE_SECONDS if replaces else GONE_SECONDS
    if served_until > now + AHEAD_SECONDS:
        return db.execute(_REMOVE, {"id": other, "at": served_until}).rowcount > 0
    if now - served_until > patience and db.execute(_REMOVE, {"id": other, "at": served_until}).rowcount:
        ended = now if replaces else served_until + GONE_SECONDS
        _record(db, other, Outage(served_until, ended), now)
        return True
    return False


def _record(db: sa.Connection, server_id: str, outage: Outage, now: float) -> None:
    row = {"server_id": server_id, "began": outage.began, "ended": outage.ended}
    db.execute(_RECORD[db.dialect.name], row)
    db.execute(_FORGET, {"ahead": now + AHEAD_SECONDS})


_b = sa.bindparam
_RECORD = {
    dialect: module.insert(outages).on_conflict_do_nothing()
    for dialect, module in (("sqlite", sqlite), ("postgresql", postgresql))
}
_RECORDED = sa.select(outages.c.began, outages.c.ended)
_SERVERS = sa.select(servers.c.server_id, servers.c.served_until)
_RUNNING: sa.ColumnElement[str] = sa.literal_column("'RUNNING'")
_A_LEASE_IS_HELD = sa.or_(*(sa.exists().where(table.c.state == _RUNNING) for table in (trials, tests)))
_NEW_SERVER = postgresql.insert(servers).values(server_id=_b("id"), served_until=_b("now"))
_BEAT = {
    # No other server reads it: it need not be written while no lease is held.
    "sqlite": sa.update(servers)
    .where(servers.c.server_id == _b("id"), _A_LEASE_IS_HELD)
    .values(served_until=_b("now")),
    # Another server may have deleted the row in this moment.
    "postgresql": _NEW_SERVER.on_conflict_do_update(
        index_elements=[servers.c.server_id], set_={"served_until": _NEW_SERVER.excluded.served_until}
    ),
}
_CARRIED = (
    "UPDATE hpo_servers SET served_until = %s WHERE server_id IN "
    "(SELECT server_id FROM hpo_servers WHERE server_id = %s FOR UPDATE SKIP LOCKED) RETURNING server_id"
)
# Rows that another server has locked are left to it: nothing waits here.
_gone = sa.select(servers.c.server_id).where(servers.c.server_id == _b("id"), servers.c.served_until == _b("at"))
_REMOVE = sa.delete(servers).where(servers.c.server_id.in_(_gone.with_for_update(skip_locked=True)))
_later = outages.alias()
_old = (
    sa.select(outages.c.server_id, outages.c.began)
    .where(
        sa.or_(
            outages.c.ended > _b("ahead"),
            sa.select(sa.func.count()).where(_later.c.ended > outages.c.ended).scalar_subquery() >= MOST_KEPT,
        )
    )
    .with_for_update(skip_locked=True)
)
_FORGET = sa.delete(outages).where(sa.tuple_(outages.c.server_id, outages.c.began).in_(_old))
