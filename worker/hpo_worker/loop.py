"""The worker's loop: ask for a trial, train it, tell the result, until there is nothing left to do."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import structlog

from hpo_service.client import FINAL_STATES, AnyParameter, Client, Json, in_one_line, new_request_id
from hpo_service.domain.errors import Fault, HpoError, Invalid, LeaseLost, NotFound, StudyStateConflict, TrialFinished
from hpo_service.domain.search_space import Params
from hpo_worker.datasets import Dataset, DatasetDiffers, DatasetError, DatasetMissing
from hpo_worker.failure_limit import FailureLimit
from hpo_worker.heartbeat import TRANSIENT_ERRORS, HeartbeatSender, send
from hpo_worker.objective import (
    DIVERGED,
    KINDS,
    LostTrial,
    NeuralNetwork,
    Objective,
    TrainingTrial,
    result_of,
    result_of_test,
)
from hpo_worker.outbox import HeldJob, Outbox, flush_interval
from hpo_worker.side_by_side import extra_trials_in, train_side_by_side, trains_in_groups

WAIT_SECONDS = 20.0
SHORT_WAIT_SECONDS = 2.0  # with several studies to ask, or with --until-done
IDLE_SECONDS = 5.0  # between asks while no study gives out trials
GIVE_UP_SECONDS = 900.0  # without an answer from the server
RETRY_SECONDS = 2.0  # pause after a trial was retried: another machine may take it first
ATTEMPTS_WITHOUT_DATA = 3  # from this attempt on the trial fails: the study is wrong, not the worker

_NO_OBJECTIVE = (
    "{name} has no objective of its own, and this worker trains the built-in network; name what trains it: "
    "hpo worker --study {name} --objective package.module:function, or hpo agent {name} -- COMMAND"
)

Answer = TypeVar("Answer")

log = structlog.get_logger()


@dataclass(frozen=True)
class StudyFacts:
    """What a worker needs to know of a study beside its trials; none of it ever changes."""

    seed: int
    pruned: bool
    trains_in_groups: bool


@dataclass(frozen=True)
class WorkRequest:
    """One ask for trials. Repeated with the same request_id, it returns the same trials."""

    study: str | None
    wait_seconds: float
    request_id: str
    count: int = 1


class Worker:
    """Trains one trial, or one group of trials, after the other. `outcome_counts`: trials by outcome."""

    def __init__(
        self,
        client: Client,
        heartbeat: HeartbeatSender,
        outbox: Outbox,
        objective: Objective,
        *,
        worker_id: str,
        studies: Sequence[str] = (),
        until_done: bool = False,
        data: Path | None = None,
        failure_limit: FailureLimit | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.client, self.heartbeat, self.outbox, self.objective = client, heartbeat, outbox, objective
        self.worker_id, self.studies, self.until_done = worker_id, list(dict.fromkeys(studies)), until_done
        self.network = objective if isinstance(objective, NeuralNetwork) else NeuralNetwork(data)
        self.failure_limit = failure_limit or FailureLimit()
        self.rng = rng or random.Random()
        self.outcome_counts: Counter[str] = Counter()
        self.asking: WorkRequest | None = None
        self._perhaps_the_last = False
        self._is_paused = False
        self.refused: dict[str, DatasetError] = {}  # by study: the data is missing or broken here, or not the study's
        self._bound: set[str] = set()
        self._next_place = count()
        self._facts: dict[str, StudyFacts] = {}

    def check_studies(self) -> None:
        """Called before the first ask: raise Invalid if the built-in network is to train a study without an objective.

        Studies whose dataset is missing or broken here go to `refused`: none of their trials is asked for.
        """
        if self.objective is not self.network:
            return
        for name in self.studies:
            objective = self._call_until_answered(partial(self.client.study, name))["objective"]
            if objective is None:
                raise Invalid([Fault("study", _NO_OBJECTIVE.format(name=name))])
            try:
                self.network.dataset(objective)
            except DatasetError as error:
                log.error("data refused", study=name, reason=str(error))
                self.refused[name] = error

    def run(self) -> None:
        """Work until drained or, with --until-done, until all studies are over. The heartbeat thread runs already."""
        empty = 0  # asks in a row that were answered at once, without a trial
        while True:
            ask = WorkRequest(self._next_study(), self._wait_seconds(), new_request_id())
            began = time.monotonic()
            try:
                answer, jobs = self._ask(ask)
            except NotFound as error:
                self._go_on_without(ask.study, error)
                continue
            for given, job in zip(answer["trials"], jobs, strict=True):
                self._work_on(given, job)
            self._perhaps_the_last = self.until_done and bool(jobs)
            if answer.get("drain"):
                log.info("drained")
                return
            self._say_if_paused(ask.study, answer)
            if jobs:
                empty = 0
                continue
            if self.until_done and self._all_done():
                if self.refused:
                    raise next(iter(self.refused.values()))
                log.info("all done")
                return
            empty = empty + 1 if time.monotonic() - began < ask.wait_seconds / 2 else 0
            if empty >= max(1, len(self.studies)):
                empty = 0
                self._rest()

    def _say_if_paused(self, name: str | None, answer: Json) -> None:
        """Where only one study is trained, log once that it is paused and why: the worker idles until it is resumed."""
        is_paused = len(self.studies) == 1 and answer.get("study_state") == "PAUSED"
        if is_paused and not self._is_paused and name is not None:
            reason = self._call_until_answered(partial(self.client.study, name)).get("state_reason")
            log.warning("the study is paused; waiting until it is resumed", study=name, reason=reason)
        self._is_paused = is_paused

    def _go_on_without(self, name: str | None, error: NotFound) -> None:
        """Drop a study that the server does not find: deleted, perhaps. Raise the error if no other one is left."""
        self.asking = None
        if name not in self.studies or len(self.studies) == 1:
            raise error
        log.warning("the study is not there (any more)", study=name)
        self.studies.remove(name)

    def _rest(self) -> None:
        """Sleep before the next round of asks: every study has answered at once that it has no trial."""
        time.sleep(self.rng.uniform(0.5, 1) * (SHORT_WAIT_SECONDS if self.until_done else IDLE_SECONDS))

    def hand_back(self, client: Client) -> None:
        """Called at shutdown: send finished results, release all other held trials, and those of a pending ask.

        In few calls: whoever stops this process may kill it soon. Whether a call is retried, `client` decides.
        """
        jobs = list(self.outbox.jobs)
        for job in jobs:
            if job.result is not None and not job.is_resolved:  # else an earlier send() took it along
                with suppress(HpoError):
                    send(client, self.outbox, time.monotonic())
        unfinished = [job for job in jobs if job.result is None]
        with suppress(HpoError):
            self._release_all(client, [(job.study, job.number, job.attempt) for job in unfinished])
            for job in unfinished:
                self.outbox.drop(job)
        if self.asking is not None:
            # The answer may be on its way, or lost: the same request_id brings the same trials.
            with suppress(HpoError):
                given = self._put(replace(self.asking, wait_seconds=0), client)["trials"]
                self._release_all(client, [(each["study"], _number(each), each["attempt"]) for each in given])

    def _release_all(self, client: Client, held: Sequence[tuple[str, int | None, int]]) -> None:
        """held: study, number (None: the sealed test) and attempt."""
        reason = "worker_left"
        trials = [
            {"study": study, "number": number, "call": "release", "attempt": attempt, "reason": reason}
            for study, number, attempt in held
            if number is not None
        ]
        if trials:
            self.outcome_counts["released"] += sum(result["status"] < 300 for result in client.batch(trials))
        for study, number, attempt in held:
            if number is None:
                client.test_release(study, attempt, reason)
                self.outcome_counts["released"] += 1

    # Asking

    def _next_study(self) -> str | None:
        """The study to ask next: the named ones (or all open ones) round-robin, without the refused. None: any."""
        if not self.studies and not self.refused:
            return None
        names = self.studies or [each["name"] for each in self._trainable() if each["state"] not in FINAL_STATES]
        names = [name for name in names if name not in self.refused]
        if not names:
            raise next(iter(self.refused.values()))
        return names[next(self._next_place) % len(names)]

    def _trainable(self) -> list[Json]:
        """All studies on the server that the built-in network trains."""
        read = self._call_until_answered(lambda: list(self.client.studies()))
        return [study for study in read if (study["objective"] or {}).get("kind") in KINDS]

    def _wait_seconds(self) -> float:
        """How long the server may hold the ask open. An ask of one study returns when it ends, one of any does not."""
        if len(self.studies) == 1:
            return WAIT_SECONDS
        if self.refused:
            return SHORT_WAIT_SECONDS
        if self._perhaps_the_last:
            return 0.0
        return SHORT_WAIT_SECONDS if self.until_done or self.studies else WAIT_SECONDS

    def _put(self, ask: WorkRequest, client: Client) -> Json:
        """Send the ask, once."""
        return client.ask(
            self.worker_id,
            ask.study,
            count=ask.count,
            wait_seconds=ask.wait_seconds,
            objectives=None if self.studies else KINDS,
            request_id=ask.request_id,
        )

    def _ask(self, ask: WorkRequest) -> tuple[Json, list[HeldJob]]:
        """Ask until answered; return the answer, and for each of its trials the job that is held from now on."""
        self.asking = ask
        answer = self._call_until_answered(partial(self._put, ask, self.client))
        jobs = [_hold(self.outbox, given) for given in answer["trials"]]
        self.asking = None
        return answer, jobs

    def _call_until_answered(self, call: Callable[[], Answer]) -> Answer:
        """Repeat the call while the server is unavailable, for at most GIVE_UP_SECONDS; raise other errors at once."""
        began = time.monotonic()
        while True:
            if self.heartbeat.failed is not None:
                raise self.heartbeat.failed
            try:
                return call()
            except TRANSIENT_ERRORS as error:
                if time.monotonic() - began > GIVE_UP_SECONDS:
                    raise
                log.warning("no answer; asking again", error=str(error))

    def _all_done(self) -> bool:
        """Whether all studies are over, for --until-done: no trials, and no sealed test that this worker could take."""
        if self.studies:
            names = [name for name in self.studies if name not in self.refused]
            return all(self._gives_out_no_more(name) for name in names)
        return all(
            study["state"] in FINAL_STATES and (study["test"] or {}).get("state") not in ("WAITING", "RUNNING")
            for study in self._trainable()
            if study["name"] not in self.refused
        )

    def _gives_out_no_more(self, name: str) -> bool:
        try:
            return self._call_until_answered(partial(self.client.study, name))["state"] in FINAL_STATES
        except NotFound as error:
            self._go_on_without(name, error)
            return True

    # Training

    def _work_on(self, given: Json, job: HeldJob) -> None:
        """Train a trial, and others of its study beside it where that pays; or do the sealed test."""
        try:
            facts = self._study_facts(job.study)
            self._begin(given, job, facts)
            has_data = self._has_data(given, job)
            if job.number is not None and facts.trains_in_groups and has_data:
                self._train_together({job: given} | self._extra_trials(job.study, facts, job.dataset_sha256), facts)
                return
            result = self._train(given, job, facts)
        except DatasetMissing as error:
            self._without_data(job, error)
            return
        except DatasetError as error:
            self._refuse_study(job, error)
            return
        except (NotFound, LeaseLost, TrialFinished, LostTrial) as error:
            self.outbox.drop(job)
            log.warning("dropped", **_words(job), reason=str(error))
            self.outcome_counts["lost"] += 1
            return
        self.outbox.finish(job, result)
        self._wait_for_result(job, result)

    def _begin(self, given: Json, job: HeldJob, facts: StudyFacts) -> None:
        job.flush_seconds = flush_interval(job.lease_seconds, pruned=facts.pruned)
        # somebody at a terminal reads one line a trial, at its end
        begins = log.debug if sys.stderr.isatty() else log.info
        begins("training", **_words(job), attempt=job.attempt, params=given["params"])

    def _wait_for_result(self, job: HeldJob, result: Json) -> None:
        """Block until the heartbeat thread has sent the result or lost the trial; then count and log the outcome."""
        self.outbox.wait_until_resolved(job)
        told = {**(job.result or result), **(job.told or {})}  # the server turns a NaN into a FAIL
        self.outcome_counts["lost" if job.lost else "tested" if job.number is None else _outcome_name(told)] += 1
        what = {"reason": job.lost} if job.lost else {"state": told["state"], **_values(told)}
        if sys.stderr.isatty() and told.get("params"):
            what["params"] = told["params"]
        log.info("dropped" if job.lost else "told", **_words(job), **what)
        if job.number is not None and job.lost is None:
            self._count_outcome(job, told)

    def _count_outcome(self, job: HeldJob, told: Json) -> None:
        """Count a trial's outcome for the failure limit. Raise TooManyFailures.

        Not counted: a trial that was stopped from outside, and one that is retried because the machine failed.
        """
        if told["state"] in ("COMPLETE", "PRUNED"):
            self.failure_limit.record_success()
        elif told.get("retry"):
            time.sleep(self.rng.uniform(0.5, 1) * RETRY_SECONDS)
        elif job.stop_reason is None:
            # If the built-in network diverges, its parameters are the fault, even before the first report.
            diverged = self.objective is self.network and job.result == DIVERGED
            self.failure_limit.fail(str(told.get("reason")), reported=job.reported or diverged)

    def _has_data(self, given: Json, job: HeldJob) -> bool:
        """Load the built-in network's dataset, and bind the study to its sha256; False for the user's own objective.

        Raise DatasetMissing, DatasetError for broken files, and DatasetDiffers where the study is bound to other data.
        """
        if self.objective is not self.network and job.number is not None:
            return False
        dataset = self.network.dataset(given["objective"] or {})
        if job.number is not None:
            job.dataset_sha256 = dataset.sha256
        if job.study not in self._bound:
            self._bind(job, dataset)
            self._bound.add(job.study)
        return True

    def _bind(self, job: HeldJob, dataset: Dataset) -> None:
        if job.number is None:
            beat = partial(self.client.test_heartbeat, job.study, job.attempt)
        else:
            beat = partial(self.client.heartbeat, job.study, job.number, job.attempt)
        try:
            self._call_until_answered(partial(beat, dataset_sha256=dataset.sha256))
        except StudyStateConflict as refusal:
            raise DatasetDiffers(f"the dataset {dataset.name!r} of this worker is not the study's: {refusal}") from None

    def _refuse_study(self, job: HeldJob, error: DatasetError) -> None:
        """Release the trial and ask for no other of its study: the data here is broken, or not the study's."""
        log.error("data refused", study=job.study, trial=job.number, reason=str(error))
        self.refused[job.study] = error
        self._release(job, "data_refused")

    def _extra_trials(self, study: str, facts: StudyFacts, dataset_sha256: str | None) -> dict[HeldJob, Json]:
        """Ask for more trials of the study, to be trained in one group with the one that is held."""
        try:
            more = extra_trials_in(self._call_until_answered(lambda: self.client.study(study)))
            if more == 0:
                return {}
            answer, jobs = self._ask(WorkRequest(study, 0.0, new_request_id(), more))
        except NotFound:  # deleted meanwhile, which the first trial's calls will find out
            self.asking = None
            return {}
        extra_trials = dict(zip(jobs, answer["trials"], strict=True))
        for job, given in extra_trials.items():
            job.dataset_sha256 = dataset_sha256
            self._begin(given, job, facts)
        return extra_trials

    def _train_together(self, held: Mapping[HeldJob, Json], facts: StudyFacts) -> None:
        """Train trials as one group. Each result is queued as soon as its trial ends, whatever the others do."""
        results: dict[HeldJob, Json] = {}
        trials = {self._training(given, job, facts): job for job, given in held.items()}
        for trial, result in train_side_by_side(list(trials), self.network.folder):
            results[trials[trial]] = result
            self.outbox.finish(trials[trial], result)
        for job, result in results.items():
            self._wait_for_result(job, result)

    def _train(self, given: Json, job: HeldJob, facts: StudyFacts) -> Json:
        if job.number is None:
            return result_of_test(given, job, facts.seed, self.network.folder, self.client)
        return result_of(self.objective, self._training(given, job, facts))

    def _training(self, given: Json, job: HeldJob, facts: StudyFacts) -> TrainingTrial:
        return TrainingTrial(given, job, self.outbox, facts.seed, self._suggest, self.client.definitions, self.client)

    def _suggest(self, job: HeldJob, parameters: Mapping[str, AnyParameter]) -> Params:
        assert job.number is not None, "the sealed test suggests nothing"
        call = partial(self.client.suggest, job.study, job.number, job.attempt, parameters)
        return self._call_until_answered(call)

    def _study_facts(self, study: str) -> StudyFacts:
        if study not in self._facts:
            read = self._call_until_answered(lambda: self.client.study(study))
            self._facts[study] = StudyFacts(
                read["sampler"]["seed"], read["pruner"]["name"] != "none", trains_in_groups(read)
            )
        return self._facts[study]

    def _without_data(self, job: HeldJob, error: DatasetMissing) -> None:
        """Release the trial for a worker that has the dataset; from ATTEMPTS_WITHOUT_DATA on, let it fail."""
        log.error("no data", study=job.study, trial=job.number, reason=str(error))
        if job.attempt >= ATTEMPTS_WITHOUT_DATA:
            self.outbox.finish(job, {"state": "FAIL", "reason": in_one_line(error)})
            self._wait_for_result(job, job.result or {})
            return
        self._release(job, "no_data")
        time.sleep(self.rng.uniform(0.5, 1) * IDLE_SECONDS)

    def _release(self, job: HeldJob, reason: str) -> None:
        if job.number is None:
            call = partial(self.client.test_release, job.study, job.attempt, reason)
        else:
            call = partial(self.client.release, job.study, job.number, job.attempt, reason)
        try:
            self._call_until_answered(call)
            self.outcome_counts["released"] += 1
        except (
            NotFound,
            LeaseLost,
            TrialFinished,
        ) as error:  # the study was deleted, or the lease is over
            log.warning("dropped", **_words(job), reason=str(error))
            self.outcome_counts["lost"] += 1
        self.outbox.drop(job)


def _hold(outbox: Outbox, given: Json) -> HeldJob:
    now = time.monotonic()
    lease = given["lease"]["duration_seconds"]
    job = HeldJob(
        study=given["study"],
        number=_number(given),
        attempt=given["attempt"],
        lease_seconds=lease,
        flush_seconds=flush_interval(lease, pruned=False),
        renewed_at=now,
        sent_at=now,
    )
    outbox.hold(job)
    return job


def _number(given: Json) -> int | None:
    """The trial's number; None for the sealed test, although that names a trial, too."""
    return None if given.get("purpose") == "test" else given["number"]


def _words(job: HeldJob) -> Json:
    return {"study": job.study, "trial": "sealed test" if job.number is None else job.number}


def _outcome_name(told: Json) -> str:
    return "retried" if told.get("retry") and told["state"] != "FAIL" else str(told["state"])


def _values(told: Json) -> Json:
    return {key: told[key] for key in ("values", "reason", "test_accuracy") if told.get(key) is not None}
