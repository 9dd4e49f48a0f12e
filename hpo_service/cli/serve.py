"""`hpo serve`: the server, in one process."""

from __future__ import annotations

import gc
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_service.cli.console import say, say_json
from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.cli.first_key import make_first_key
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, without_password
from hpo_service.cli.settings_in_force import settings_faults
from hpo_service.domain.errors import HpoError

if TYPE_CHECKING:
    from hpo_service.settings import Settings

SWITCH_SECONDS = 0.0005  # so that the writer thread, after a commit, gets the GIL from the event loop's thread soon
OBJECTS_A_COLLECTION = 10_000  # instead of 700: with 64 callers a tenth more trials a second (docs/decisions/0015)
PATIENCE_SECONDS = 5  # for the calls under way at shutdown


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    database: Database = DEFAULT_DATABASE,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask nobody for a key; on a loopback address only.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Run the server until it is told to end (Ctrl-C, SIGTERM).

    Callers need a key. On a database that has none yet, the first start makes one for everything: it shows it
    once, or, where stderr is no terminal, writes it to a file and says which.
    """
    if no_auth and not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines: with --no-auth anybody could read and write everything.",
            "Leave out --no-auth, or listen on 127.0.0.1",
        )
    listener = _listen(host, port)
    with listener:
        address = _url(host, listener.getsockname()[1])

        def ready(key_file: Path | None) -> None:
            first_key = {} if key_file is None else {"key_file": str(key_file)}
            if json:
                say_json({"url": address, **first_key}, indent=None)
            else:
                say(f"serving {without_password(database)} at {address}")

        _serve(database, listener, address, ready, with_keys=not no_auth)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {host}, port {port}: {error.strerror}; --port 0 takes any free port"
        ) from None
    except UnicodeError:
        raise UsageError(f"--host: {host} is no name of a host") from None
    return listener


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"


def _settings(database: str) -> Settings:
    from pydantic import ValidationError

    from hpo_service.settings import Settings

    try:
        return Settings(database_url=database)
    except ValidationError as error:
        raise UsageError("; ".join(settings_faults(error).values())) from None


def _import_whole(module: str) -> None:
    """Import without garbage collection: imports make no garbage, and looking for it takes a fifth of the start."""
    gc.disable()
    try:
        import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _serve(
    database: str, listener: socket.socket, address: str, ready: Callable[[Path | None], None], *, with_keys: bool
) -> None:
    import asyncio

    _import_whole("hpo_service.api.app")
    import structlog
    import uvicorn

    from hpo_service import __version__, log_format, tracing
    from hpo_service.api.app import create_app
    from hpo_service.api.connections import ConnectionBounds
    from hpo_service.api.fast_path import FastPath
    from hpo_service.store.schema import newest_revision

    settings = _settings(database)
    key_file: Path | None = None
    application = create_app(settings, with_keys=with_keys, with_reading_process=settings.reading_process)
    log_format.write_in_thread()
    log_format.take_over_logging()
    log = structlog.get_logger()
    end_tracing = tracing.configure()
    # A call that the fast path answers has no span: with tracing, all go through the application.
    fast_path = None if tracing.is_on() else FastPath(application)
    config = uvicorn.Config(
        application,
        log_config=None,
        log_level="error",  # our connections log what its would warn of
        access_log=False,
        proxy_headers=False,  # the caller is the peer address: anybody may write X-Forwarded-For
        lifespan="off",
        timeout_graceful_shutdown=PATIENCE_SECONDS,
        http=ConnectionBounds.of(settings).protocol(fast_path),  # type: ignore[arg-type]  # called like the class it makes
        ws="none",
        timeout_keep_alive=settings.idle_seconds,
    )

    class LocalServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            sys.setswitchinterval(SWITCH_SECONDS)
            gc.freeze()  # imported objects stay: collections need not scan them
            gc.set_threshold(OBJECTS_A_COLLECTION)
            if self.started:
                shown = without_password(database)
                log.info("serving", version=__version__, database=shown, schema=newest_revision(), address=address)
                ready(key_file)
                # Loads SciPy in the background: the start does without it, and the first study that needs it finds it.
                Thread(target=_import_whole, args=("hpo_service.tuning.auto",), daemon=True).start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            log.info("the server ends; waiting callers are answered")
            application.state.service.begin_shutdown()  # else every long poll under way would delay the shutdown
            await super().shutdown(sockets)

    async def main() -> None:
        # entered here rather than by uvicorn, which would turn a database error into a page of traceback
        async with application.router.lifespan_context(application):
            # uvicorn raises the signal that ended it again; it is ignored, since a requested shutdown is no failure
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            if with_keys and settings.private_key_hash is None:
                nonlocal key_file
                key_file = await asyncio.to_thread(make_first_key, application.state.keyring.table, database)
            await LocalServer(config).serve(sockets=[listener])
        log.info("the server has ended")

    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(main())
    except ValueError as error:
        raise UsageError(str(error)) from None
    except HpoError as error:
        raise CommandFailed(f"{without_password(database)}: {error.detail}") from None
    finally:
        end_tracing()
        log_format.limited.tell()
        log_format.finish()
