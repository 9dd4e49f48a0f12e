"""A trial as an objective sees it, with the names and the argument orders of Optuna's."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol, cast

from pydantic import ValidationError
from pydantic_core import from_json

from hpo_service.client.http_transport import write_json
from hpo_service.client.stop_signal import StopSignal
from hpo_service.domain.choices import identity
from hpo_service.domain.growing_space import same_definition
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import CategoricalParameter, FloatParameter, IntParameter, Params, Value

AnyParameter = FloatParameter | IntParameter | CategoricalParameter
# Parameter definitions that the server has accepted, by study and parameter name.
Definitions = MutableMapping[tuple[str, str], AnyParameter]


class TrialLink(Protocol):
    """How a trial speaks with the server: at once, or by way of a worker's outbox."""

    @property
    def stop_reason(self) -> str | None:
        """Why the objective is to end, as far as is known."""

    def report(self, step: int, value: float, metrics: Mapping[str, Any] | None) -> None: ...

    def suggest(self, parameters: Mapping[str, AnyParameter]) -> Params:
        """The values that the trial has for these; a name that does not exist in it is left out."""


class ObjectiveTrial:
    """What an objective is given.

    params: the hyperparameters that it has so far; with define_by_run those that it has suggested
    seed: for the objective's random numbers, the same in every attempt; objective: of the study, as it was given
    last_value: the last report's; metrics: what is told beside the result, the user attributes among them
    obeyed: why it was told to end, once it has looked
    """

    def __init__(self, given: Json, link: TrialLink, definitions: Definitions) -> None:
        self.study: str = given["study"]
        self.number: int = given["number"]
        self.attempt: int = given["attempt"]
        self.params: Params = dict(given["params"])
        self.seed: int = given["seed"]
        self.objective: Json | None = given["objective"]
        self.last_value: float | None = None
        self.obeyed: str | None = None
        self.metrics: Json = {}
        self._link, self._definitions = link, definitions

    def __repr__(self) -> str:
        return f"<trial {self.number} of {self.study}, attempt {self.attempt}: {self.params}>"

    @property
    def stop_reason(self) -> str | None:
        """Why it is to end, as far as is known; to look here is not to obey."""
        return self._link.stop_reason

    # -- what is searched

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        parameter = _defined(name, FloatParameter, low=_plain(low), high=_plain(high), step=_plain(step), log=log)
        return float(cast("float", self._suggest(name, parameter)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        whole = None if step == 1 else _plain(step)
        parameter = _defined(name, IntParameter, low=_plain(low), high=_plain(high), step=whole, log=log)
        return int(cast("int", self._suggest(name, parameter)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices, as it stands there: a tuple comes back as the tuple."""
        plain = [_plain(choice) for choice in choices]
        parameter = _defined(name, CategoricalParameter, choices=plain)
        chosen = identity(self._suggest(name, parameter))
        return next(given for given, choice in zip(choices, plain, strict=True) if identity(choice) == chosen)

    def _suggest(self, name: str, parameter: AnyParameter) -> Value:
        """Ask the server, unless it has accepted this definition before and the trial has a value that fits it."""
        known = self._definitions.get((self.study, name))
        is_known = known is not None and same_definition(known, parameter)
        if not (is_known and name in self.params and parameter.contains(self.params[name])):
            self.params.update(self._link.suggest({name: parameter}))
            self._definitions[self.study, name] = parameter
        if name not in self.params:
            raise ValueError(f"{name!r} does not exist in this trial: the study's search space says when it does")
        return self.params[name]

    # -- what is measured

    def report(self, value: float, step: int, metrics: Mapping[str, Any] | None = None) -> bool:
        """Report an intermediate value; return whether the objective should return now, as should_stop says."""
        number = _whole_step(value, step)
        self.last_value = float(value)
        self._link.report(number, self.last_value, metrics)
        return False if self._link.stop_reason is None else cast("bool", StopSignal(self._obey))

    def should_prune(self) -> bool:
        """Whether the objective should raise TrialPruned now, or return: pruned, stopped, cancelled or lost."""
        self._obey()
        return self.obeyed is not None

    @property
    def should_stop(self) -> bool:
        """The same, as a property."""
        return self.should_prune()

    def _obey(self) -> None:
        self.obeyed = self._link.stop_reason

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep something with the trial: it is told among its metrics. Raise TypeError for what has no form in JSON."""
        self.metrics[str(key)] = from_json(write_json({"value": value}))["value"]

    @property
    def user_attrs(self) -> dict[str, Any]:
        return dict(self.metrics)


def _defined(name: str, kind: type[AnyParameter], **fields: Any) -> AnyParameter:
    """Build the parameter. Raise ValueError, in one sentence, for an invalid range or invalid choices."""
    try:
        return kind(**fields)
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"suggest {name!r}: {why}") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; a range may be given in either."""
    return value.item() if hasattr(value, "item") else value


def _whole_step(value: object, step: Any) -> int:
    try:
        whole = int(step)
        if whole == step and whole >= 0 and not isinstance(step, bool):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(
        f"report(value, step): the step is {step!r}, and a step is a whole number from 0 up; "
        f"the value comes first (here {value!r})"
    )
