"""The client that releases trials at shutdown: it retries if there is time (SIGTERM, SIGHUP), else tries once."""

from __future__ import annotations

from collections.abc import Mapping

from hpo_service.client import NEVER, Client, Retries

HURRIED_SECONDS = 0.7  # for an answer, where somebody waits at a terminal
ANSWER_SECONDS = 5.0  # for an answer, where nobody does
# A server that is being replaced takes no connection for a moment, or answers 503.
AGAIN = Retries(initial=0.25, longest=1.0, deadline=9.0)


def client_for_release(server: str | None, labels: Mapping[str, str], is_patient: bool) -> Client:
    if is_patient:
        return Client(server, timeout=ANSWER_SECONDS, retries=AGAIN, labels=labels)
    return Client(server, timeout=HURRIED_SECONDS, retries=NEVER, labels=labels)
