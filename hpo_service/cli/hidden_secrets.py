"""Hides the key of `hpo agent` from the programs that it runs, which run as the same user.

Linux shows a process's initial environment to every process of its user (/proc/PID/environ), even after a variable is
unset. So the agent executes itself again, in the same process, without the secrets, and passes them through a pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

from hpo_worker.shared_variables import is_passed_on

_DESCRIPTOR = "HPO_SECRETS_DESCRIPTOR"
_LEFT_ALONE = ("HPO_LIFELINE",)  # a descriptor's number is no secret
PR_SET_DUMPABLE = 4


def hide_secrets() -> None:
    """Called before anything else. It returns only in a process whose initial environment has no secret."""
    descriptor = os.environ.pop(_DESCRIPTOR, "")
    if descriptor.isdecimal():
        with os.fdopen(int(descriptor), "rb") as pipe:
            # variables set now are in memory only
            os.environ.update(json.load(pipe))
    elif secrets := {name for name in os.environ if not is_passed_on(name)} - {*_LEFT_ALONE}:
        _start_again(secrets)
    _close_memory()


def _start_again(secrets: set[str]) -> None:
    comes_along, pipe = os.pipe()
    os.set_blocking(pipe, False)  # a pipe holds 64 KiB: writing more raises instead of blocking for ever
    os.write(pipe, json.dumps({name: os.environ[name] for name in secrets}).encode())
    os.close(pipe)
    os.set_inheritable(comes_along, True)
    shown = {name: value for name, value in os.environ.items() if name not in secrets}
    os.execve(sys.executable, sys.orig_argv, {**shown, _DESCRIPTOR: str(comes_along)})  # noqa: S606 (ourselves)


def _close_memory() -> None:
    """Keep other processes of this user from reading our memory and environment, and the kernel from dumping core."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
