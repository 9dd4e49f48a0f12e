"""The client that a program works with: the calls of the API, and on top of them studies and trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hpo_service.client.api_calls import ApiCalls
from hpo_service.client.remote_study import RemoteStudy
from hpo_service.domain.search_space import SearchSpace

log = logging.getLogger(__name__)


class Client(ApiCalls):
    """A connection to the service, safe to share between threads, and to use on after a fork.

    server, token: HPO_SERVER and HPO_TOKEN, or the file that HPO_TOKEN_FILE names, when left out; timeout: seconds
    for one answer (a long poll adds its own); retries: for how long connection errors, 429 and 502 to 504 are tried
    again.
    """

    def create_study(
        self, name: str, search_space: SearchSpace | Mapping[str, Any] | None = None, **fields: Any
    ) -> RemoteStudy:
        """Create a study, or open it if it was created with the same fields before. Fields as in the contract.

        Without a search space its objective defines it, by what its trials suggest.
        """
        given: dict[str, Any] = {"name": name, "search_space": search_space, **fields}
        if search_space is None:
            given = {**given, "search_space": {}, "define_by_run": True}
            if "direction" not in fields and "directions" not in fields:
                log.warning('study %s is maximized, as no direction was given; for a loss: direction="minimize"', name)
        return RemoteStudy(self, self.create(given)["name"])

    def open_study(self, study: str) -> RemoteStudy:
        """An existing study to work with; NotFound if there is none of that name."""
        return RemoteStudy(self, self.study(study)["name"])
