"""Files that a trial stores on the server: a checkpoint from which its next attempt resumes, a network, a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_service.domain.json_types import Json

if TYPE_CHECKING:
    from hpo_service.client.api_calls import ApiCalls
    from hpo_service.client.retries import Retries


class ArtifactMixin:
    """Part of a trial that is held. artifacts: the names that are kept, by an earlier attempt, too."""

    artifacts: list[str]

    def _keep_artifacts_of(self, client: ApiCalls, given: Json) -> None:
        self.artifacts = list(given.get("artifacts", ()))
        self._artifact_calls = client
        self._artifacts_of = (given["study"], given["number"], given["attempt"])

    def save(self, name: str, what: bytes | str | os.PathLike[str]) -> None:
        """Keep these bytes, or the file at this path, under the name, in the place of what was kept there.

        Kept, it survives the loss of this machine. Raise TooLarge, LeaseLost, TrialFinished, Unavailable, OSError.
        """
        self._save(name, what, None)

    def _save(self, name: str, what: bytes | str | os.PathLike[str], retries: Retries | None) -> None:
        study, number, attempt = self._artifacts_of
        content = bytes(what) if isinstance(what, bytes | bytearray | memoryview) else Path(what)
        self._artifact_calls.put_artifact(study, number, attempt, name, content, retries=retries)
        self.artifacts = sorted({*self.artifacts, name})

    def load(self, name: str) -> bytes:
        """What was saved under the name, by this attempt or an earlier one. Raise NotFound."""
        study, number, _ = self._artifacts_of
        return b"".join(self._artifact_calls.artifact(study, number, name))
