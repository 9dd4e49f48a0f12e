"""The folder that `hpo agent` gives its command for checkpoints: filled before a retry, kept after each report."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import structlog

from hpo_service.client import NEVER, in_one_line
from hpo_service.domain.artifact import ARTIFACT_NAME
from hpo_service.domain.errors import HpoError
from hpo_worker.objective import TrainingTrial

VARIABLE = "HPO_CHECKPOINTS"
_NAME = re.compile(ARTIFACT_NAME)

log = structlog.get_logger()


class Checkpoints:
    """The checkpoint folder of one run of the command. A failed upload is logged once; the trial goes on."""

    def __init__(self, trial: TrainingTrial) -> None:
        self._trial = trial
        self._kept: dict[str, tuple[int, int]] = {}  # the time and size of each file when it was last kept
        self._keeping = threading.Lock()
        self._has_complained = False
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-checkpoints-"))
        for name in trial.artifacts:
            with suppress(HpoError):
                self._restore(name)

    def _restore(self, name: str) -> None:
        file = self.folder / name
        try:
            file.write_bytes(self._trial.load(name))
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self._kept[name] = _state(file)

    def keep(self) -> None:
        """Upload the files that have changed. One that changes while it is copied is kept the next time."""
        with self._keeping:
            for file in sorted(self.folder.iterdir()):
                try:
                    self._keep(file)
                except (HpoError, OSError) as error:
                    self._complain(file, error)

    def _keep(self, file: Path) -> None:
        if not file.is_file() or not _NAME.fullmatch(file.name) or file.name.endswith((".tmp", ".part")):
            return
        state = _state(file)
        if self._kept.get(file.name) == state:
            return
        with tempfile.NamedTemporaryFile() as copy:
            shutil.copyfile(file, copy.name)
            if _state(file) != state:
                return
            self._trial._save(file.name, copy.name, NEVER)  # no retry: the next report is soon enough
        self._kept[file.name] = state

    def _complain(self, file: Path, error: Exception) -> None:
        if not self._has_complained:
            trial = {"study": self._trial.study, "trial": self._trial.number}
            log.warning("a checkpoint was not kept", **trial, file=file.name, reason=in_one_line(error))
            self._has_complained = True

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
