"""`hpo agent` runs other programs as its own user; what it was started with must not show them the key.

Linux shows a process's first environment to every process of its user (/proc/PID/environ), whatever becomes of the
variables later. So the agent starts itself once more, in the same process, without them; they come along in a pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

from hpo_worker.shared_variables import is_passed_on

_DESCRIPTOR = "HPO_SECRETS_DESCRIPTOR"
_LEFT_ALONE = ("HPO_LIFELINE",)  # the number of a descriptor
PR_SET_DUMPABLE = 4


def hide_secrets() -> None:
    """Called before anything else; returns in a process whose first environment has no secret."""
    descriptor = os.environ.pop(_DESCRIPTOR, "")
    if descriptor.isdecimal():
        with os.fdopen(int(descriptor), "rb") as pipe:
            # what is set now is in memory only
            os.environ.update(json.load(pipe))
    elif secrets := {name for name in os.environ if not is_passed_on(name)} - {*_LEFT_ALONE}:
        _start_again(secrets)
    _close_memory()


def _start_again(secrets: set[str]) -> None:
    comes_along, pipe = os.pipe()
    os.set_blocking(pipe, False)  # a pipe takes 64 KiB: more is an error, not a wait for ever
    os.write(pipe, json.dumps({name: os.environ[name] for name in secrets}).encode())
    os.close(pipe)
    os.set_inheritable(comes_along, True)
    shown = {name: value for name, value in os.environ.items() if name not in secrets}
    os.execve(sys.executable, sys.orig_argv, {**shown, _DESCRIPTOR: str(comes_along)})  # noqa: S606 (ourselves)


def _close_memory() -> None:
    """Neither our memory nor our environment is to be read by processes of our user, nor to end in a core file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
