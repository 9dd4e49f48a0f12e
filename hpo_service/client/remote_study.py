"""A study on a server: ask it for trials, optimize an objective with it, read its results."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hpo_service.client.api_calls import ApiCalls
from hpo_service.client.held_trial import HeldTrial, Objective
from hpo_service.client.measures import with_floats
from hpo_service.client.optimizing import Optimization, ProgressLine
from hpo_service.client.recorded_trial import ATTRIBUTES, RecordedTrial, TrialList, dataframe
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteStudy:
    """A study to search with; what Optuna's studies have under the same names."""

    client: ApiCalls
    name: str

    def read(self) -> Json:
        """The study as it reads; values are floats, inf and nan too."""
        return with_floats(self.client.study(self.name))

    # -- trials to train

    def ask(self, count: int = 1, *, wait_seconds: float = 0, worker_id: str | None = None) -> list[HeldTrial]:
        """Trials to train, held by this program until told, released, or silent for the length of their lease."""
        return self.ask_for(count, wait_seconds, worker_id or _this_program())[0]

    def ask_for(self, count: int, wait_seconds: float, worker_id: str) -> tuple[list[HeldTrial], str | None]:
        """The trials, and the study's state; None where this worker is to ask no more."""
        answer = self.client.ask(worker_id, self.name, count=count, wait_seconds=wait_seconds)
        return self.held(answer), None if answer.get("drain") else answer["study_state"]

    def held(self, answer: Json) -> list[HeldTrial]:
        return [HeldTrial(self.client, given) for given in answer["trials"]]

    def tell(self, trial: HeldTrial, values: float | Sequence[float] | None = None, state: Any = None) -> RecordedTrial:
        """Tell the result of a trial that was asked for. state: COMPLETE, PRUNED or FAIL, a text or Optuna's word."""
        word = ("COMPLETE" if values is not None else "FAIL") if state is None else str(getattr(state, "name", state))
        return RecordedTrial(trial.tell(values, state=word))

    def enqueue(self, *params: Mapping[str, Any]) -> list[Json]:
        return self.client.enqueue(self.name, [{"params": dict(each)} for each in params])

    def confirm(self, top: int = 5, seeds: int = 5) -> Json:
        """Have the best trials trained again with fresh seeds, when the search is over; return what is known of them.

        `optimize` and workers train these as any others. A trial that is one has `replicate_of`.
        """
        confirmation: Json = with_floats(self.client.confirm(self.name, top, seeds)["confirmation"])
        return confirmation

    def enqueue_trial(self, params: Mapping[str, Any]) -> None:
        self.enqueue(params)

    def optimize(
        self,
        objective: Objective,
        n_trials: int | None = None,
        timeout: float | None = None,
        n_jobs: int = 1,
        catch: type[BaseException] | Iterable[type[BaseException]] = (),
        callbacks: Iterable[Callable[[RemoteStudy, RecordedTrial], object]] | None = (),
        show_progress_bar: bool = False,
        *,
        worker_id: str | None = None,
    ) -> None:
        """Train trials until n_trials are done here, `timeout` seconds have passed, or the study gives out no more.

        The lease is kept while the objective runs. An exception makes its trial FAIL, and is raised again unless it is
        one of `catch`; TrialPruned makes it PRUNED, Retry has it given out again. A return value that is no number, or
        too many or too few of them, makes it FAIL, and the next trial is trained. n_jobs: so many threads; -1: as many
        as there are cores. callbacks: called with this study and the trial as it was told.
        """
        progress = ProgressLine(n_trials, self.directions) if show_progress_bar else None
        who = worker_id or _this_program()
        calls = [partial(callback, self) for callback in callbacks or ()]
        caught = (catch,) if isinstance(catch, type) else tuple(catch)
        Optimization(self, objective, n_trials, timeout, caught, calls, who, progress).run(n_jobs)

    def say_if_paused(self, state: str | None, said: bool) -> bool:
        """Say once, while the study is paused, that it is, and why."""
        if state == "PAUSED" and not said:
            reason = self.read().get("state_reason")
            log.warning("study %s is paused; waiting until it is resumed%s", self.name, f": {reason}" if reason else "")
        return state == "PAUSED"

    # -- the study's state

    def pause(self) -> Json:
        """Give out no trials for now; running ones go on."""
        return self.client.pause(self.name)

    def resume(self) -> Json:
        return self.client.resume(self.name)

    def stop(self) -> Json:
        """End the study: running trials finish, no others begin, here and everywhere."""
        return self.client.stop(self.name)

    def cancel(self) -> Json:
        """End the study at once: running trials are told to stop."""
        return self.client.cancel(self.name)

    # -- what it has found

    @property
    def trials(self) -> TrialList:
        """All trials, by number: a sequence; called, some: study.trials(state="COMPLETE", order_by="value")."""
        return TrialList(self.client, self.name)

    def get_trials(self, deepcopy: bool = True, states: Iterable[Any] | None = None) -> list[RecordedTrial]:
        """states: as texts, or as Optuna's words."""
        wanted = None if states is None else {str(getattr(state, "name", state)) for state in states}
        return [trial for trial in self.trials if wanted is None or trial.state.name in wanted]

    @property
    def directions(self) -> list[str]:
        directions: list[str] = self.read()["directions"]
        return directions

    @property
    def best(self) -> Json | None:
        best: Json | None = self.read().get("best")
        return best

    @property
    def best_trial(self) -> RecordedTrial:
        """Raise ValueError while no trial is COMPLETE, RuntimeError where several directions have a front instead."""
        study = self.read()
        if "front" in study:
            raise RuntimeError("a study with several directions has no one best trial; see best_trials")
        if study["best"] is None:
            raise ValueError(f"no trial of {self.name} is COMPLETE yet")
        return self.trials[int(study["best"]["number"])]

    @property
    def best_trials(self) -> list[RecordedTrial]:
        """Those that no other trial beats in every direction."""
        study = self.read()
        best = study["front"] if "front" in study else [study["best"]] if study["best"] else []
        return [self.trials[int(each["number"])] for each in best]

    @property
    def best_value(self) -> float:
        values = self.best_trial.values
        assert values is not None
        return values[0]

    @property
    def best_params(self) -> Params:
        return self.best_trial.params

    def trials_dataframe(self, attrs: Sequence[str] = ATTRIBUTES) -> Any:
        """The trials as a DataFrame of pandas, which has to be installed, in Optuna's columns.

        attrs: which of them, in this order; "intermediate_values" has the curves, a column a step.
        """
        return dataframe(self.trials(), len(self.directions), attrs)


def new_worker_id() -> str:
    """host-pid-random, in printable ASCII: who holds a trial, for people who look for it."""
    host = "".join(letter if " " < letter <= "~" else "-" for letter in socket.gethostname())[:80]
    return f"{host or 'localhost'}-{os.getpid()}-{secrets.token_hex(3)}"


_worker_ids: dict[int, str] = {}  # by process id: a fork is another worker


def _this_program() -> str:
    return _worker_ids.setdefault(os.getpid(), new_worker_id())
