"""`hpo agent`: a command a trial, in any language."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Annotated

import structlog
import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say_json
from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.own_training import check_command
from hpo_service.client import Client, new_worker_id
from hpo_service.client.retries import PATIENTLY
from hpo_worker import log_lines
from hpo_worker.command import CommandObjective
from hpo_worker.failure_limit import MAX_FAILURES, FailureLimit
from hpo_worker.gpus import Gpus, gpus_of
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.label_option import Label, labels_of
from hpo_worker.loop import Worker
from hpo_worker.outbox import Outbox
from hpo_worker.release_client import client_for_release
from hpo_worker.shutdown import Leaving, Shutdown
from hpo_worker.start import MaxFailures

END_COMMANDS_SECONDS = 8.0  # longer than a command takes at most from SIGTERM to its end

log = structlog.get_logger()


def agent(
    study: Annotated[str, typer.Argument(help="The study to train for.")],
    command: Annotated[
        list[str], typer.Argument(help="The command, after --; {name} stands for a parameter.", metavar="-- COMMAND…")
    ],
    server: Annotated[str | None, typer.Option(envvar="HPO_SERVER", help="The server's URL.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many trials at the same time; one, or one a GPU.")
    ] = None,
    max_failures: MaxFailures = MAX_FAILURES,
    label: Label = None,
    gpus: Gpus = None,
    json: Annotated[bool, typer.Option("--json", help="Print the trials trained as JSON.")] = False,
) -> None:
    """Run a command a trial until the study gives out no more: hpo agent mine -- python train.py --lr {lr}

    Lines on its standard output report, {"step": 3, "value": 0.8}, and give the result, {"value": 0.9}. An exit
    code other than 0 makes the trial FAIL; 75 has it given out again: it is the machine's fault. The parameters are
    also in the environment, as HPO_PARAM_<NAME>.

    --offset={offset} takes negative numbers, too; {--amsgrad:amsgrad} gives --amsgrad where that boolean is true and
    nothing where it is false; --layers {layers*} gives a list as several arguments.
    """
    worker_id = new_worker_id()
    log_lines.configure(worker_id=worker_id)
    client = Client(server, labels=labels_of(label))
    read = client.study(study)
    if read.get("define_by_run"):  # a server of an older version does not send it
        raise CommandFailed(f"the objective of {study} defines what is searched; a command needs a given search_space")
    space = read["search_space"]
    check_command(command, space)
    failure_limit = FailureLimit(max_failures)
    objective = CommandObjective(command, list(space), Outbox(), gpus_of(gpus))
    team = WorkerThreads(client, study, objective, worker_id, workers or len(objective.gpus) or 1, failure_limit)
    try:
        team.run()
    finally:
        outcome_counts = sum((worker.outcome_counts for worker in team.workers), Counter[str]())
        if json:
            say_json({"trials": dict(outcome_counts)}, indent=None)
        else:
            log.info("trials", **outcome_counts)
    if failure_limit.failed and not failure_limit.successes:
        raise CommandFailed(
            f"{wording.count(failure_limit.failed, 'trial')} failed and none came through: {failure_limit.last_reason}"
        )


class WorkerThreads:
    """One worker thread for each trial that is to run at the same time, and one heartbeat thread for all of them."""

    def __init__(
        self,
        client: Client,
        study: str,
        objective: CommandObjective,
        worker_id: str,
        workers: int,
        failure_limit: FailureLimit,
    ) -> None:
        self.client, self.objective = client, objective
        self.heartbeat = HeartbeatSender(Client(client.server, retries=PATIENTLY.for_heartbeats()), objective.outbox)
        self.workers = [
            Worker(
                client,
                self.heartbeat,
                objective.outbox,
                objective,
                worker_id=worker_id,
                studies=[study],
                until_done=True,
                failure_limit=failure_limit,
            )
            for _ in range(workers)
        ]
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train until the study is over or a signal ends the agent; its commands end with it."""
        shutdown = Shutdown(self._leave, at_once=self.objective.kill, before_seconds=END_COMMANDS_SECONDS)
        shutdown.install()
        self.heartbeat.start()
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in self.workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except Leaving:
            shutdown.hand_back()
        if self.error is not None:
            shutdown.hand_back()
            raise self.error

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except Leaving:
            return
        except BaseException as error:
            self.error = self.error or error
            self.objective.leave()

    def _leave(self, is_patient: bool) -> None:
        """At shutdown: end the commands, then release their trials, so that no trial is trained twice at a time."""
        self.objective.leave()
        client = client_for_release(self.client.server, self.client.labels, is_patient)
        for worker in self.workers:
            worker.hand_back(client)
