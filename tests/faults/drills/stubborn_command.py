"""A command for the drill with agents: it has started a daemon, and neither ends when it is asked to."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    daemon = os.fork()
    if daemon == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    new = folder / f"{os.getpid()}.new"
    new.write_text(f"{os.getpid()} {daemon}")
    new.rename(new.with_suffix(".pids"))
    time.sleep(600)


main()
