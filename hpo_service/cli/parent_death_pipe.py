"""A child process ends when its parent is gone, however the parent died: even kill -9 closes a pipe.

The parent holds the write end; each child waits for the end of file in a thread. Unlike PR_SET_PDEATHSIG, which is
Linux's alone and fires when the *thread* that started the child ends, it works on every system and in every thread.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

_VARIABLE = "HPO_LIFELINE"
GRACE_SECONDS = 15.0  # to hand trials back and answer the calls under way


class ParentDeathPipe:
    """One pipe for children that are to end together."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def environment(self) -> Mapping[str, str]:
        """What a child needs beside the inherited read end."""
        return {_VARIABLE: str(self.read_end)}

    def close(self) -> None:
        os.close(self.write_end)
        os.close(self.read_end)


def exit_with_parent() -> None:
    """Called once by a child: from now on it ends with its parent. Without a pipe nothing happens."""
    # popped: the processes that a child starts have their own parent to watch
    descriptor = os.environ.pop(_VARIABLE, "")
    if descriptor.isdecimal():
        threading.Thread(target=_end_with_parent, args=(int(descriptor),), name="parent pipe", daemon=True).start()


def _end_with_parent(descriptor: int) -> None:
    try:
        while os.read(descriptor, 64):
            pass
    except OSError:
        return  # no such descriptor: the variable is not from a parent of ours
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
