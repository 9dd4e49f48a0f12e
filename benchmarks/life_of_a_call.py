"""What a call goes through, in things that can be counted: calls, files, changes of file, climbs, and bytecodes.

    python benchmarks/life_of_a_call.py [--postgres URL] [--climbs]

A climb is a call from a lower room up into a higher one (store < tuning < reading < operations < api), which is where a
reader has to know who has left a function there. The function that a transaction runs is not counted: it is the call.
Each request is sent to a connection of the server in this process: once to know all, once under a profile function, and
a few times under a trace function that counts the interpreter's steps in all Python files but this one; shown is their
median. No disk counts as slow, which would send calls through a thread. With PYTHONPATH=FOLDER the same is counted of
another checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.server import ServerState

import hpo_service
from hpo_service.api.app import create_app
from hpo_service.settings import Settings

try:
    from hpo_service.api.connections import ConnectionBounds
except ImportError:  # an earlier checkout
    from hpo_service.api.connections import Bounds as ConnectionBounds  # type: ignore[no-redef, attr-defined]
try:
    from hpo_service.api.fast_path import FastPath
except ImportError:
    from hpo_service.api.hot_connections import HotWay as FastPath  # type: ignore[no-redef]
for _name in ("inline_lane", "lanes", "writer"):
    with suppress(ImportError):
        lane: Any = importlib.import_module(f"hpo_service.store.{_name}")
        break

ROOMS = {name: place for place, name in enumerate(("domain", "store", "tuning", "reading", "operations", "api"))}
HOUSE = str(Path(hpo_service.__file__).parent) + os.sep
CALLER = (__file__, str(Path(json.__file__).parent))
TIMES = 7
SPACE = {"x": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}}
_requests = itertools.count()


class Trace:
    """The house's own functions, as they are called in all threads."""

    def __init__(self) -> None:
        self.calls = 0
        self.files: set[str] = set()
        self.changes = 0
        self.climbs: list[str] = []
        self._last = ""

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(HOUSE) or frame.f_code.co_name.startswith("<"):
            return
        self.calls += 1
        self.files.add(name)
        self.changes += name != self._last
        self._last = name
        caller = _caller_in_house(frame)
        if caller is not None and _room(frame) > _room(caller) and not _is_the_work(caller):
            self.climbs.append(f"{_name(caller)} -> {_name(frame)}")


def _caller_in_house(frame: FrameType) -> FrameType | None:
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(HOUSE):
        caller = caller.f_back
    return caller


def _is_the_work(caller: FrameType) -> bool:
    """Whether it runs a transaction's function, or has done so a few frames before."""
    names = {"_run_work", "_run_one", "_in_transaction", "in_transaction"}
    return caller.f_code.co_name in names


def _room(frame: FrameType) -> int:
    return ROOMS.get(frame.f_code.co_filename.removeprefix(HOUSE).split(os.sep)[0], 0)


def _name(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


class Transport(asyncio.Transport):
    """Where an answer goes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.has_sent = asyncio.Event()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def write(self, data: Any) -> None:
        self.sent += data
        self.has_sent.set()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Caller:
    def __init__(self, protocol: Any) -> None:
        self._protocol, self._transport = protocol, Transport()
        protocol.connection_made(self._transport)

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._transport.sent = b""
        self._protocol.data_received(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        while not self._is_whole():
            self._transport.has_sent.clear()
            await self._transport.has_sent.wait()
        status, _, rest = self._transport.sent.partition(b" ")[2].partition(b" ")
        assert status.startswith(b"20"), self._transport.sent
        return json.loads(rest.partition(b"\r\n\r\n")[2])

    def _is_whole(self) -> bool:
        head, end, body = self._transport.sent.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return bool(end) and len(body) >= int(lengths[0])


class Steps:
    """The interpreter's steps in all threads, but for what stands in this file or reads JSON for it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Steps | None:
        if event == "opcode":
            self.count += 1
        elif event == "call":
            if frame.f_code.co_filename.startswith(CALLER):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self


_trace: list[Trace] = []
_steps: list[Steps] = []


def profile(frame: FrameType, event: str, argument: Any) -> None:
    """In every thread that begins after this was set."""
    if _trace:
        _trace[0](frame, event, argument)


@contextmanager
def traced() -> Iterator[Trace]:
    _trace.append(Trace())
    sys.setprofile(profile)
    try:
        yield _trace[0]
    finally:
        sys.setprofile(None)
        _trace.clear()


def follow(frame: FrameType, event: str, argument: Any) -> Any:
    """The same, for steps."""
    return _steps[0](frame, event, argument) if _steps else None


@contextmanager
def stepped() -> Iterator[Steps]:
    _steps.append(Steps())
    sys.settrace(follow)
    try:
        yield _steps[0]
    finally:
        sys.settrace(None)
        _steps.clear()


async def requests(caller: Caller) -> dict[str, Callable[[], Any]]:
    """Each as a function that prepares it and returns what sends it."""
    median = {"name": "median", "params": {"n_startup_trials": 0, "n_warmup_steps": 0}}
    for name, fields in (("s", {}), ("judged", {"pruner": median})):
        study = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        await caller.send("POST", "/v1/studies", study)

    async def asked(name: str) -> int:
        ask = {"worker_id": "w", "request_id": f"r{next(_requests)}"}
        (trial,) = (await caller.send("POST", f"/v1/studies/{name}/trials:ask", ask))["trials"]
        return int(trial["number"])

    async def tell(name: str, number: int) -> None:
        told = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}
        await caller.send("POST", f"/v1/studies/{name}/trials/{number}:tell", told)

    for name in ("s", "judged"):
        for _ in range(5):
            await tell(name, await asked(name))
    running = await asked("judged")
    given = [await asked("s") for _ in range(2 + TIMES)]
    steps = itertools.count()

    async def report() -> None:
        reports = {"attempt": 1, "reports": [{"step": next(steps), "value": 0.5}]}
        await caller.send("POST", f"/v1/studies/judged/trials/{running}:report", reports)

    return {
        "an ask": lambda: asked("s"),
        "a tell": lambda: tell("s", given.pop()),
        "a report with a verdict": report,
        "a page of trials": lambda: caller.send("GET", "/v1/studies/s/trials"),
        "narrow": lambda: caller.send("POST", "/v1/studies/s:narrow", {"keep": 0.5}),
    }


async def bytecodes(send: Callable[[], Any]) -> float:
    counts = []
    for _ in range(TIMES):
        with stepped() as steps:
            await send()
        counts.append(steps.count)
    return statistics.median(counts)


async def measure(url: str, database: str, show_climbs: bool) -> None:
    settings = Settings(database_url=url)
    application = create_app(settings, with_keys=False, with_reaper=False)
    async with application.router.lifespan_context(application):
        protocol = ConnectionBounds.of(settings).protocol(FastPath(application))
        config = uvicorn.Config(application, log_level="critical", lifespan="off", ws="none", http=protocol)  # type: ignore[arg-type]
        config.load()
        made = config.http_protocol_class(
            config=config, server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop()
        )
        for name, send in (await requests(Caller(made))).items():
            await send()
            with traced() as trace:
                await send()
            print(
                f"{name:24} {database:10}  calls {trace.calls:4}  files {len(trace.files):3}  "
                f"changes of file {trace.changes:4}  climbs {len(trace.climbs)}  bytecodes {await bytecodes(send):5.0f}"
            )
            if show_climbs:
                print("".join(f"    {climb}\n" for climb in trace.climbs), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="URL", help="of an empty database")
    parser.add_argument("--climbs", action="store_true", help="name them")
    options = parser.parse_args()
    lane.QUICK_COMMIT_SECONDS = math.inf
    threading.setprofile(profile)
    threading.settrace(follow)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(f"sqlite:///{folder}/hpo.db", "SQLite", options.climbs))
    if options.postgres:
        asyncio.run(measure(options.postgres, "PostgreSQL", options.climbs))


if __name__ == "__main__":
    main()
