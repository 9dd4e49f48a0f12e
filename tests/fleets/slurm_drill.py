"""`python -m tests.fleets.slurm_drill TRIALS SECONDS`: a fleet on three nodes of Slurm, undisturbed and disturbed.

A node is lost with its daemon and its jobs, and comes back once Slurm has seen that; and a job of more importance takes
the place of one task. Prints both wall clocks, and how long Slurm kept those tasks back, by its own log. SECONDS: of a
trial. docs/scale.md has the figures of such a run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hpo_service.client import Client
from tests.fleets.slurm_cluster import CPUS, NODES, SlurmCluster, slurm_cluster, until

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
RANDOM = {"name": "random", "seed": 1}
LEASE_SECONDS = 5
LOST, SPARED = "n0", "n1"  # the node that is lost, and the one on which a task is preempted
MORE_IMPORTANT_SECONDS = 10
ALLOWED = 1.3  # times the undisturbed wall clock, and the engine's own delay beside it
LONGEST_SECONDS = 3600.0

# Lines of slurmctld's log: [when] what.
_LOST_TASK = re.compile(rf"^\[(\S+)\] requeue job JobId=(\S+) due to failure of node {LOST}", re.MULTILINE)
_PREEMPTED = re.compile(r"^\[(\S+)\] preempted JobId=(\S+) has been requeued", re.MULTILINE)
_STARTED = re.compile(r"^\[(\S+)\] .*(?:Allocate|_start_job: Started) JobId=(\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class Disturbed:
    """In seconds; None: the study was over before Slurm had started them again.

    lost: tasks of the node that was lost; until_seen: from the loss until Slurm requeues them; engine_delay: until it
    has started the last of them again; preempted: from when a task has to go until it is started again.
    """

    lost: int
    until_seen: float
    engine_delay: float | None
    preempted: float | None


@dataclass(frozen=True)
class Ran:
    seconds: float
    counts: dict[str, int]
    ends: dict[str, int]
    disturbed: Disturbed | None


class SlurmDrill:
    """A server's studies on a cluster; state: where `hpo fleet` keeps what it has started."""

    def __init__(self, slurm: SlurmCluster, client: Client, state: Path) -> None:
        self._slurm, self._client = slurm, client
        self._environment = {**slurm.environment, "HPO_SERVER": client.server, "XDG_STATE_HOME": str(state)}

    def run(self, study: str, trials: int, trial_seconds: float, *, is_disturbed: bool) -> Ran:
        limits = {"trials": trials, "attempts": 10}
        self._client.create_study(study, SPACE, sampler=RANDOM, limits=limits, lease_seconds=LEASE_SECONDS)
        training = f"import time; time.sleep({trial_seconds}); print('{{\"value\": 1}}')"
        up = ("up", "--study", study, "--engine", "slurm", "-n", str(NODES * CPUS))
        began = time.monotonic()
        self._fleet(*up, "--", sys.executable, "-c", training)
        lost_at = self._disturb(study, trials) if is_disturbed else None
        until(lambda: self._is_over(study), LONGEST_SECONDS)
        seconds = round(time.monotonic() - began, 1)
        disturbed = None if lost_at is None else delays((self._slurm.folder / "slurmctld.log").read_text(), lost_at)
        ends = Counter(end["end"] for number in range(trials) for end in self._client.attempts(study, number))
        counts = self._client.study(study)["counts"]
        self._fleet("down", "--study", study)
        return Ran(seconds, counts, dict(ends), disturbed)

    def _disturb(self, study: str, trials: int) -> datetime:
        """Have a task preempted and a node lost, which comes back; return when it was lost."""
        until(lambda: self._client.study(study)["counts"]["COMPLETE"] >= trials // 10)
        running = self._slurm.run("squeue", "-h", "-r", "-t", "R", "-o", "%N").split()
        assert {LOST, SPARED} <= set(running)
        sleep = ("--wrap", f"sleep {MORE_IMPORTANT_SECONDS}")
        self._slurm.run("sbatch", "--partition=high", "--output=/dev/null", f"--nodelist={SPARED}", *sleep)
        until(lambda: _PREEMPTED.search((self._slurm.folder / "slurmctld.log").read_text()))
        self._slurm.kill_node(int(LOST[1:]))
        lost_at = datetime.now(UTC).astimezone().replace(tzinfo=None)  # as the log has it
        until(lambda: "down" in self._slurm.run("sinfo", "-h", "-n", LOST, "-o", "%t"))
        self._slurm.start_node(int(LOST[1:]))
        return lost_at

    def _is_over(self, study: str) -> bool:
        return bool(self._client.study(study)["state"] == "COMPLETED")

    def _fleet(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "hpo_service", "fleet", *arguments]
        subprocess.run(command, env=self._environment, stdout=subprocess.DEVNULL, check=True)


def delays(log: str, lost_at: datetime) -> Disturbed:
    """What slurmctld's log says of the tasks of the lost node, and of the one that was preempted."""
    lost = [(when, job) for when, job in _events(_LOST_TASK, log) if when > lost_at]
    ((preempted_at, preempted),) = _events(_PREEMPTED, log)
    again = [_started_again(log, job, after) for after, job in lost]
    back = _started_again(log, preempted, preempted_at)
    return Disturbed(
        len(lost),
        _seconds(lost_at, max(when for when, _ in lost)),
        None if None in again else _seconds(lost_at, max(when for when in again if when is not None)),
        None if back is None else _seconds(preempted_at, back),
    )


def _started_again(log: str, job: str, after: datetime) -> datetime | None:
    return next((when for when, started in _events(_STARTED, log) if started == job and when > after), None)


def _events(pattern: re.Pattern[str], log: str) -> Sequence[tuple[datetime, str]]:
    return [(datetime.fromisoformat(when), job) for when, job in pattern.findall(log)]


def _seconds(begin: datetime, end: datetime) -> float:
    return round((end - begin).total_seconds(), 1)


@contextmanager
def _server(folder: Path) -> Iterator[Client]:
    serve = [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*serve, "--database", f"sqlite:///{folder}/hpo.db"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        with Client(json.loads(process.stdout.readline())["url"]) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def main(trials: int, trial_seconds: float) -> int:
    with tempfile.TemporaryDirectory(prefix="hpo-slurm-") as folder:
        place = Path(folder)
        (place / "slurm").mkdir()
        with slurm_cluster(place / "slurm") as slurm, _server(place) as client:
            drill = SlurmDrill(slurm, client, place)
            ran = [drill.run(name, trials, trial_seconds, is_disturbed=name == "disturbed") for name in _NAMES]
    for name, each in zip(_NAMES, ran, strict=True):
        print(name, json.dumps(asdict(each)), flush=True)
    undisturbed, disturbed = ran
    delay = disturbed.disturbed.engine_delay if disturbed.disturbed else None
    allowed = ALLOWED * undisturbed.seconds + (delay or 0.0)
    print(f"allowed: {ALLOWED} x {undisturbed.seconds} s + {delay} s = {allowed:.1f} s; load {os.getloadavg()[0]:.1f}")
    exactly = {"WAITING": 0, "RUNNING": 0, "COMPLETE": trials, "PRUNED": 0, "FAIL": 0}
    good = all(each.counts == exactly and each.ends["told"] == trials for each in ran)
    return 0 if good and disturbed.seconds <= allowed else 1


_NAMES = ("undisturbed", "disturbed")

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
