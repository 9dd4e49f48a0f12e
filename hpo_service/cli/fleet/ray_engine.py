"""Workers as actors of a Ray cluster: each owns the process of a worker, and is moved when its node is lost."""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from hpo_service.cli.exits import CommandFailed, UsageError, need
from hpo_service.cli.fleet.fleet_record import Fleet, FleetWorker, options_of
from hpo_service.cli.fleet.keeper import KILLED, LONGEST_PAUSE_SECONDS
from hpo_service.cli.parent_death_pipe import ParentDeathPipe

NAMESPACE = "hpo"
POLL_SECONDS, ANSWER_SECONDS = 0.2, 10.0  # a node that is busy answers late
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL
STOP_SECONDS = 120.0
MOST_CPUS = 1024
# The names that --option NAME=TEXT takes, and their defaults. cpus: for each worker, also 0.5, instead of --cpus.
OPTIONS = {"address": "auto", "cpus": ""}
CARRIED = ("HPO_TOKEN", "HPO_TOKEN_FILE", "HPO_DATA")  # variables that the workers on the nodes get


class RayEngine:
    def up(self, fleet: Fleet) -> tuple[str, ...]:
        name = f"hpo-{secrets.token_hex(4)}"
        environment = {each: os.environ[each] for each in CARRIED if each in os.environ}
        cpus = _cpus(fleet)
        with _cluster(fleet) as ray:
            actor = ray.remote(namespace=NAMESPACE, lifetime="detached", max_restarts=-1)(RayWorker)
            for place in range(fleet.count):
                own = actor.options(name=f"{name}-{place}", num_cpus=cpus, num_gpus=fleet.gpus)
                own.remote(fleet.argv, environment, os.getcwd())
        return (name,)

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        """PENDING: its actor does not answer, since no node has free CPUs or GPUs for it, or its node was just lost."""
        with _cluster(fleet) as ray:
            hosts = _hosts(ray, _actors(ray, fleet))
        return [FleetWorker(name, "RUNNING" if host else "PENDING", host) for name, host in sorted(hosts.items())]

    def logs(self, fleet: Fleet) -> str:
        return "in the folder logs of Ray's session, on each node"

    def down(self, fleet: Fleet) -> None:
        with _cluster(fleet) as ray:
            actors = _actors(ray, fleet)
            for name, there in _hosts(ray, actors).items():
                if there is None:  # waits for a node, or is lost; a worker that it has still releases its trials
                    ray.kill(actors[name], no_restart=True)
                else:
                    actors[name].leave.remote()
            deadline = time.monotonic() + STOP_SECONDS
            while left := _actors(ray, fleet):
                if time.monotonic() > deadline:
                    raise CommandFailed(f"{next(iter(left))} has not ended within {STOP_SECONDS:.0f} s")
                time.sleep(POLL_SECONDS)


class RayWorker:
    """A Ray actor that runs one worker: restarts it when it was killed, and exits when it has ended by itself.

    The worker is a child process, since Ray handles the actor's signals. It ends with its actor, however that ends.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        import ray

        self._argv = (sys.executable, *argv[1:])
        self._environment = environment
        self._folder = folder if os.path.isdir(folder) else None
        self._death_pipe = ParentDeathPipe()
        self._leaving = False
        self._myself = ray.get_runtime_context().current_actor
        self._process = self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def host(self) -> str:
        return socket.gethostname()

    def leave(self) -> None:
        import ray

        self._leaving = True
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        ray.actor.exit_actor()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - no shell
            self._argv,
            stdin=subprocess.DEVNULL,
            cwd=self._folder,
            env={**os.environ, **self._environment, **self._death_pipe.environment()},
            pass_fds=(self._death_pipe.read_end,),
            start_new_session=True,
        )

    def _keep(self) -> None:
        pause = 1.0
        while not 0 <= self._process.wait() < KILLED and not self._leaving:
            time.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
            if not self._leaving:
                self._process = self._start()
        if not self._leaving:
            self._myself.leave.remote()


@contextmanager
def _cluster(fleet: Fleet) -> Iterator[Any]:
    need("ray")
    import ray

    address = os.environ.get("RAY_ADDRESS") or options_of(fleet, OPTIONS)["address"]
    # Ray prints messages of its own, such as on lost nodes, and standard output may carry our JSON.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())[:300]
            gone = f"; if it is gone for good, so is the fleet: delete {fleet.folder}" if fleet.ids else ""
            raise CommandFailed(f"no Ray cluster at {address} (ray start, or RAY_ADDRESS): {words}{gone}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _cpus(fleet: Fleet) -> float:
    given = options_of(fleet, OPTIONS)["cpus"]
    try:
        cpus = float(given or fleet.cpus)
    except ValueError:
        cpus = math.nan
    if not 0 < cpus <= MOST_CPUS:
        raise UsageError(f"--option cpus={given}: it is a number above 0, such as 0.5")
    return cpus


def _actors(ray: Any, fleet: Fleet) -> dict[str, Any]:
    found = {}
    for name in ray.util.list_named_actors():
        if fleet.ids and name.startswith(f"{fleet.ids[0]}-"):
            try:
                found[name] = ray.get_actor(name)
            except ValueError:
                continue  # it has just ended
    return found


def _hosts(ray: Any, actors: Mapping[str, Any]) -> dict[str, str | None]:
    """The host of each actor, by name; None if it does not answer: it is not placed yet, or its node was just lost."""
    asked = {name: actor.host.remote() for name, actor in actors.items()}
    if not asked:
        return {}
    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)

    def host(reference: Any) -> str | None:
        try:
            return str(ray.get(reference)) if reference in answered else None
        except ray.exceptions.RayError:
            return None

    return {name: host(reference) for name, reference in asked.items()}
