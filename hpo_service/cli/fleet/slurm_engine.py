"""Workers as tasks of a Slurm job array: requeued when their node is lost, or when they are preempted."""

from __future__ import annotations

from hpo_service.cli.fleet.fleet_record import Fleet, FleetWorker, output_of, wait_until_ended

SAY_SECONDS = 60  # that SIGTERM comes before the time limit

# deploy/slurm/workers.sbatch ends with the same text.
SCRIPT = """\
# What is killed is started again. SIGTERM has the worker hand its trial back and end.
leaving=
trap 'leaving=yes; kill -TERM "$worker" 2>/dev/null' TERM
for pause in 1 2 4 8 16 32 60 60 60 60; do
    "$@" &
    worker=$!
    wait "$worker"
    code=$?
    while kill -0 "$worker" 2>/dev/null; do
        wait "$worker"
        code=$?
    done
    [ -n "$leaving" ] || [ "$code" -lt 128 ] && exit "$code"
    sleep "$pause"
done
exit "$code"
"""


class SlurmEngine:
    def up(self, fleet: Fleet) -> tuple[str, ...]:
        script = fleet.folder / "worker.sbatch"
        script.write_text(f"#!/bin/bash\n{SCRIPT}", encoding="utf-8")
        said = output_of("sbatch", *_options(fleet), str(script), *fleet.argv)
        return (said.strip().partition(";")[0],)

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        """Filters all jobs of the user: squeue fails for the id of a job that ended some minutes ago."""
        if not fleet.ids:
            return []
        rows = output_of("squeue", "--me", "--noheader", "--array", "--format=%i|%F|%T|%N")
        found = [row.split("|") for row in rows.splitlines() if row.count("|") == 3]
        return [FleetWorker(id, state, node or None) for id, job, state, node in found if job in fleet.ids]

    def logs(self, fleet: Fleet) -> str:
        return str(fleet.folder)

    def down(self, fleet: Fleet) -> None:
        """scancel sends SIGTERM, and SIGKILL after the KillWait of slurm.conf."""
        if self.workers(fleet):
            output_of("scancel", *fleet.ids)
        wait_until_ended("job", lambda: self.workers(fleet))


def _options(fleet: Fleet) -> list[str]:
    gpus = [f"--gres=gpu:{fleet.gpus}"] if fleet.gpus else []
    return [
        "--parsable",
        f"--array=0-{fleet.count - 1}",
        f"--job-name=hpo-{fleet.study}",
        "--requeue",
        "--open-mode=append",
        f"--output={fleet.folder}/worker-%a.log",
        f"--signal=B:TERM@{SAY_SECONDS}",
        f"--cpus-per-task={fleet.cpus}",
        *gpus,
        *fleet.options,
    ]
