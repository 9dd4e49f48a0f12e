"""Two servers on one PostgreSQL beside one: what the second adds, and what was busy meanwhile.

Where server, database and workers fill the machine, a second server finds no room. Held to a share of a core each,
servers are what everything waits for, and there is as much room for the second as for the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import core_share
from contestants import Databases, Service, SeveralServers
from loads import Load
from measured_rounds import Pace, Row, in_turns, stand
from processes import serving
from side_by_side import row

PART = "two servers"


def two_beside_one(
    run: str, made: Databases, load: Load, pace: Pace, rounds: int, postmaster: int | None, share: float | None
) -> Iterator[list[Row]]:
    """The rows of one arrangement after the other: a study for each worker, one study for all.

    share: of a core, which each server is held to. Raise CannotBeHeld.
    """
    database = made.new("postgresql")
    with contextlib.ExitStack() as running:
        servers = [Service("", *running.enter_context(serving(database))) for _ in range(2)]
        if share is not None:
            for server in servers:
                running.enter_context(core_share.held_to(share, server.server_pids[0]))
        held = "" if share is None else f", a server has {share:.0%} of a core"
        for own_studies in (True, False):
            arrangement = ("a study each" if own_studies else "one study") + held
            with contextlib.ExitStack() as at_work:
                stands = []
                for number, name in ((1, "one server"), (2, "two servers")):
                    some = SeveralServers(name, servers[:number], pace.workers, own_studies=own_studies)
                    stands.append(at_work.enter_context(stand(some, load, 0, pace, postmaster)))
                in_turns(stands, rounds)
                yield [row(run, PART, one, arrangement) for one in stands]
