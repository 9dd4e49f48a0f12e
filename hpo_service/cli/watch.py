"""`hpo watch`: a study while it runs, until it is done."""

from __future__ import annotations

from hpo_service.cli.console import say, say_json
from hpo_service.cli.interruption import Interruption
from hpo_service.cli.options import AsJson, Server, StudyName, connect

REFRESH_SECONDS = 1.0


def watch(study: StudyName, server: Server = None, json: AsJson = False) -> None:
    """Follow a study live until it is done, then sum it up."""
    from hpo_service.cli.live_view import Follower, LiveDisplay
    from hpo_service.cli.summary import observe, summary_lines

    with connect(server) as client, Interruption() as interruption:
        follower = Follower(client, study)
        with LiveDisplay(client.server) as display:
            display.show(snapshot := follower.snapshot())
            while not snapshot.is_done and not interruption.wait(REFRESH_SECONDS):
                display.show(snapshot := follower.snapshot())
        if json:
            say_json(client.study(study))
        elif snapshot.is_done:
            say(*summary_lines(observe(client, study)))
