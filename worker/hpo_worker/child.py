"""One process that trains: `python -m hpo_worker.child OPTIONS`, started by the supervisor with one BLAS thread.

Exit codes: 0 done, or left; 1 error; 2 usage; 3 no such study; 4 not allowed; 5 unreachable.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import structlog
from threadpoolctl import threadpool_limits

from hpo_service.client import Client, Forbidden, Unauthenticated, Unreachable, in_one_line, new_worker_id
from hpo_service.client.retries import PATIENTLY
from hpo_service.domain.errors import HpoError, Invalid, NotFound
from hpo_worker import log_lines
from hpo_worker.failure_limit import FailureLimit
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.loop import Worker
from hpo_worker.objective import NeuralNetwork, import_objective
from hpo_worker.outbox import Outbox
from hpo_worker.release_client import client_for_release
from hpo_worker.shutdown import Leaving, Shutdown, leave_with_parent
from hpo_worker.worker_options import Options

EXIT_CODES = {Invalid: 2, NotFound: 3, Unauthenticated: 4, Forbidden: 4, Unreachable: 5}

log = structlog.get_logger()
_said = threading.Lock()  # acquired by the first _say and never released: the counts are printed once


def main() -> int:
    options = Options.from_argument(sys.argv[1])
    answers = _keep_standard_output()
    worker_id = new_worker_id()
    log_lines.configure(worker_id=worker_id)
    threadpool_limits(1)
    try:
        worker = _worker(options, worker_id)
    except HpoError as error:
        _say(answers, {})
        return _refused(error)

    def leave(is_patient: bool) -> None:
        try:
            worker.hand_back(client_for_release(options.server, options.labels, is_patient))
        finally:
            _say(answers, worker.outcome_counts)  # here, since the main thread may be stuck in an objective

    shutdown = Shutdown(leave)
    shutdown.install()
    leave_with_parent()
    try:
        worker.client.version()
        worker.check_studies()
        worker.heartbeat.start()
        worker.run()
    except Leaving:
        shutdown.hand_back()
        log.info("left", **worker.outcome_counts)
    except HpoError as error:
        shutdown.hand_back()
        return _refused(error)
    finally:
        _say(answers, worker.outcome_counts)
    return 0


def _worker(options: Options, worker_id: str) -> Worker:
    data = None if options.data is None else Path(options.data)
    objective = NeuralNetwork(data) if options.objective is None else import_objective(options.objective)
    outbox = Outbox()
    return Worker(
        Client(options.server, labels=options.labels),
        HeartbeatSender(Client(options.server, retries=PATIENTLY.for_heartbeats()), outbox),
        outbox,
        objective,
        worker_id=worker_id,
        studies=options.studies,
        until_done=options.until_done,
        data=data,
        failure_limit=FailureLimit(options.max_failures),
    )


def _refused(error: HpoError) -> int:
    log.error("the worker ends", error=in_one_line(error))
    return EXIT_CODES.get(type(error), 1)


def _say(answers: TextIO, outcome_counts: Mapping[str, int]) -> None:
    """Print the outcome counts for the supervisor, once; a process that ends without them counts as crashed."""
    if _said.acquire(blocking=False):
        print(json.dumps(outcome_counts), file=answers, flush=True)


def _keep_standard_output() -> TextIO:
    """Standard output is for the supervisor; what an objective prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # A process that an objective forks must not hold the pipe open: the supervisor waits for its end of file.
    os.register_at_fork(after_in_child=lambda: os.dup2(2, answers.fileno()))
    return answers


if __name__ == "__main__":
    sys.exit(main())
