"""A real Slurm of three nodes on this machine: munged, slurmctld and three slurmd on 127.0.0.1, in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

NODES = 3
CPUS = 3  # of each, as Slurm is told
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")


def why_not() -> str | None:
    """What is missing for it, in one line."""
    missing = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} (apt install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root here"


_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class SlurmCluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        socket_ = folder / "munge.socket"
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(self._configuration(socket_))
        names = {
            "key-file": key,
            "socket": socket_,
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "seed",
        }
        options = [f"--{name}={folder / str(value)}" for name, value in names.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        until(socket_.exists)
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for number in range(NODES):
            self.start_node(number)
        until(lambda: self.run("sinfo", "-h", "-o", "%t %D").split() == ["idle", str(NODES)])

    def _configuration(self, munge: Path) -> str:
        ports = free_ports(NODES + 1)
        nodes = "\n".join(
            f"NodeName=n{number} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS}"
            for number, port in enumerate(ports[1:])
        )
        return f"""
ClusterName=test
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
KillWait=15
JobRequeue=1
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

    def _start(self, key: str, *command: str) -> None:
        with (self.folder / f"{key}.out").open("ab") as output:
            self._processes[key] = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def start_node(self, number: int) -> None:
        self._start(f"n{number}", "slurmd", "-D", "-N", f"n{number}")

    def kill_node(self, number: int) -> None:
        """As if its plug was pulled: the daemon, its keepers of jobs, and all that the jobs have started."""
        daemon = self._processes.pop(f"n{number}")
        daemon.kill()
        daemon.wait()
        of_jobs = processes_with(b"SLURMD_NODENAME=n%d" % number, str(self.folder / "slurm.conf").encode())
        # The keepers first: they would tell Slurm that their jobs have failed, which a lost node tells nobody.
        for pid in [*_keepers_of(of_jobs), *of_jobs]:
            kill(pid)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def close(self) -> None:
        self.run("scancel", "--full", "--signal=KILL", "--user=root")
        for pid in processes_with(b"SLURM_CONF=" + str(self.folder / "slurm.conf").encode()):
            kill(pid)
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()


def processes_with(*variables: bytes) -> list[int]:
    """Those whose environment holds all of these, but ourselves."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if all(variable in environment for variable in variables):
                found.append(int(folder.name))
    return found


def _keepers_of(pids: list[int]) -> set[int]:
    """Their parents, where those are slurmstepd."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            parent = int(status.partition("PPid:")[2].split()[0])
            if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                found.add(parent)
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    for name in ("state", *(f"spool-n{number}" for number in range(NODES))):
        (folder / name).mkdir()
    cluster = SlurmCluster(folder)
    try:
        yield cluster
    finally:
        cluster.close()
