"""Trials to read: with Optuna's names as attributes, and as a DataFrame of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, overload

from hpo_service.client.api_calls import ApiCalls
from hpo_service.client.measures import with_floats
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import TrialState

# Default columns, in order; params and user_attrs become a column for each name that a trial has.
ATTRIBUTES = (
    *("number", "value", "datetime_start", "datetime_complete", "duration"),
    *("params", "user_attrs", "state"),
)


class RecordedTrial:
    """A trial as it was when it was read. What has no attribute is found by its name on the wire: trial["attempt"]."""

    def __init__(self, resource: Json) -> None:
        """resource: the trial's JSON, with values as floats."""
        self._resource = resource

    def __getitem__(self, name: str) -> Any:
        return self._resource[name]

    def keys(self) -> Iterable[str]:
        """With the square brackets they make `dict(trial)` what it is on the wire."""
        return self._resource.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._resource

    def __iter__(self) -> Iterator[str]:
        return iter(self._resource)

    def get(self, name: str, default: Any = None) -> Any:
        return self._resource.get(name, default)

    def __repr__(self) -> str:
        return f"<trial {self.number} of {self['study']}, {self.state}: {self.params} -> {self.values}>"

    @property
    def number(self) -> int:
        return int(self["number"])

    @property
    def state(self) -> TrialState:
        return TrialState(self["state"])

    @property
    def params(self) -> Params:
        params: Params = self["params"]
        return params

    @property
    def values(self) -> list[float] | None:
        values: list[float] | None = self["values"]
        return values

    @property
    def value(self) -> float | None:
        """The value; None without one. Raise RuntimeError with several directions."""
        if self.values is not None and len(self.values) > 1:
            raise RuntimeError("this trial has several values; see `values`")
        return self.values[0] if self.values else None

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What the objective has set, and whatever else was told as metrics."""
        return dict(self["metrics"] or {})

    @property
    def intermediate_values(self) -> dict[int, float]:
        return {report["step"]: report["value"] for report in self["reports"]}

    @property
    def datetime_start(self) -> datetime | None:
        return _time(self["started_at"])

    @property
    def datetime_complete(self) -> datetime | None:
        return _time(self["finished_at"])

    @property
    def duration(self) -> timedelta | None:
        began, ended = self.datetime_start, self.datetime_complete
        return None if began is None or ended is None else ended - began


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


class TrialList(Sequence[RecordedTrial]):
    """The trials of a study, read from the server on access. A call selects by state, or sorts by value."""

    def __init__(self, client: ApiCalls, study: str) -> None:
        self._client, self._study = client, study

    def __call__(self, *, state: str | None = None, order_by: str | None = None) -> Iterator[RecordedTrial]:
        found = self._client.trials(self._study, state=state, order_by=order_by)
        return (RecordedTrial(with_floats(trial)) for trial in found)

    def __iter__(self) -> Iterator[RecordedTrial]:
        return self()

    def __len__(self) -> int:
        return sum(self._client.study(self._study)["counts"].values())

    @overload
    def __getitem__(self, place: int) -> RecordedTrial: ...

    @overload
    def __getitem__(self, place: slice) -> list[RecordedTrial]: ...

    def __getitem__(self, place: int | slice) -> RecordedTrial | list[RecordedTrial]:
        if isinstance(place, slice):
            return list(self)[place]
        number = place if place >= 0 else len(self) + place
        if not 0 <= number < len(self):
            raise IndexError(f"the study has no trial {place}")
        return RecordedTrial(with_floats(self._client.trial(self._study, number)))


def dataframe(trials: Iterator[RecordedTrial], directions: int, attrs: Sequence[str]) -> Any:
    """A row per trial, with Optuna's column names: params_lr, intermediate_values_3, values_0 (several directions)."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("trials_dataframe needs pandas, which is not installed: pip install pandas") from error
    rows, columns = [], dict[str, dict[str, None]]()
    for trial in trials:
        row: dict[str, Any] = {}
        for attr in attrs:
            cells = _cells(trial, attr, directions)
            columns.setdefault(attr, {}).update(dict.fromkeys(cells))
            row |= cells
        rows.append(row)
    in_order = [column for attr in attrs for column in _in_order(attr, columns.get(attr, ()))]
    return pd.DataFrame(rows, columns=in_order)


def _in_order(attr: str, columns: Iterable[str]) -> list[str]:
    """Sorted by name, but steps by number: intermediate_values_9 before intermediate_values_10."""
    return sorted(columns, key=lambda name: (len(name), name) if attr == "intermediate_values" else (0, name))


def _cells(trial: RecordedTrial, attr: str, directions: int) -> dict[str, Any]:
    if attr == "value" and directions > 1:
        values = trial.values or ()
        return {f"values_{place}": values[place] if values else None for place in range(directions)}
    if attr in ("params", "user_attrs", "intermediate_values"):
        return {f"{attr}_{name}": value for name, value in getattr(trial, attr).items()}
    return {attr: trial.state.name if attr == "state" else getattr(trial, attr)}
