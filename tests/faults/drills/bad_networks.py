"""Drills with a network that loses replies."""

from __future__ import annotations

import time

from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.lossy_proxy import LossyProxy
from drills.namespaces import Namespaces
from drills.nursery import Nursery
from drills.served import Server


def replies_lost(place: Place, size: int) -> Outcome:
    """One reply in five is lost, cut or late, until `size` were; then nothing comes through for three leases."""
    server = place.server(place.sqlite())
    proxy = LossyProxy(server.port, seed=place.random.randrange(2**32))
    place.at_end(proxy.close)
    proxy.share = 0.2
    lease_seconds = 1
    with LoadedStudy(
        place, server, ports=[proxy.port], lease_seconds=lease_seconds, timeout_seconds=0.7, wait_seconds=0.2
    ) as study:
        deadline = time.monotonic() + 300
        while proxy.faults.total() < size and study.crew.is_busy() and time.monotonic() < deadline:
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


def network_cut(place: Place, size: int) -> Outcome:
    """Server and workers in network namespaces of their own; the link between them is cut, both ways or for replies."""
    places = Namespaces()
    place.at_end(places.close)
    place.nursery = Nursery(inside=places.inside_servers)
    place.at_end(place.nursery.close)
    database = place.sqlite()
    token = Server.key(place.nursery, place.folder, database)
    server = Server(place.nursery, place.folder, database, place.sabotage, token, places.server_from_here)
    place.at_end(server.kill)
    server.start()
    with LoadedStudy(
        place,
        server,
        timeout_seconds=0.7,
        wait_seconds=0.2,
        inside=places.inside_workers,
        host=places.server_from_workers,
        token=token,
    ) as study:
        for index in range(size):
            study.work_on()
            both_ways = index % 2 == 0
            places.cut(both_ways)
            # Longer than a lease where nothing gets through; where replies are lost, some calls are sent twice.
            time.sleep(place.random.uniform(1.2, 2.5) if both_ways else place.random.uniform(0.8, 1.6))
            places.join()
        study.work_on()
        outcome = study.drained(size)
    outcome.notes.append(f"{places.lost} packets dropped; no namespace has a default route")
    return outcome
