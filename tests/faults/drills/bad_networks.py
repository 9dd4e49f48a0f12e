"""Drills with a network that loses replies."""

from __future__ import annotations

import time

from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.lossy_proxy import LossyProxy


def replies_lost(place: Place, size: int) -> Outcome:
    """One reply in five is lost, cut or late, until `size` were; then nothing comes through for three leases."""
    server = place.server(place.sqlite())
    proxy = LossyProxy(server.port, seed=place.random.randrange(2**32))
    place.at_end(proxy.close)
    proxy.share = 0.2
    lease_seconds = 1
    options = {"ports": [proxy.port], "lease_seconds": lease_seconds, "timeout_seconds": 0.7, "wait_seconds": 0.2}
    with LoadedStudy(place, server, **options) as study:
        deadline = time.monotonic() + 300
        while proxy.faults.total() < size and study.crew.is_at_work() and time.monotonic() < deadline:
            time.sleep(0.05)
        count = proxy.faults.total()
        proxy.cut_off()
        time.sleep(3 * lease_seconds)
        proxy.restore()
        study.work_on()
        proxy.share = 0.0
        outcome = study.drained(count)
    outcome.notes.append(", ".join(f"{times} × {kind}" for kind, times in sorted(proxy.faults.items())))
    return outcome
