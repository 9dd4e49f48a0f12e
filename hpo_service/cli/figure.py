"""`[metadata.figure]`, `[metadata.confirm]` and `[metadata.test]`: how `hpo run` and `hpo plot` end and show a study.

The server stores metadata without reading it: these sections change no trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from hpo_service.cli.file_lines import Place
from hpo_service.domain.json_types import Json
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.search_space import Value

Section = TypeVar("Section", bound=BaseModel)

Kind = Literal["best", "settings", "grid", "rounds", "ensemble", "values"]
Take = Literal["mean", "median", "highest", "lowest", "below", "above", "share_above"]

# what can be measured of a finished trial; the parameters of the search space, too
OF_TRIALS = ("value", "validation_accuracy", "training_accuracy", "gap")
# what can be measured of the sealed test
OF_TEST = ("test_accuracy", "member_test_accuracy")
WITH_THRESHOLD = ("below", "above", "share_above")


class Expected(BaseModel):
    """One number to hold the study against: of which trials, what is measured, and what is taken of it.

    of: only the trials with these params; round: only those of this round; best: only so many, best first;
    take: their mean, or another statistic; below and above count trials past the threshold;
    reference: what somebody else has found: [mean], [lowest, highest] or [mean, lowest, highest].
    """

    model_config = STRICT
    measure: str
    of: dict[str, Value] = {}
    round: Annotated[int, Field(ge=0)] | None = None
    best: Annotated[int, Field(ge=1)] | None = None
    take: Take = "mean"
    threshold: float | None = None
    reference: list[float]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.threshold is not None) != (self.take in WITH_THRESHOLD):
            rule = f"belongs to take = {', '.join(WITH_THRESHOLD)}, and to these only"
            refuse((["threshold"], rule))
        if len(self.reference) not in (1, 2, 3):
            refuse((["reference"], "is [mean], [lowest, highest] or [mean, lowest, highest]"))
        if self.range is not None:
            lowest, highest = self.range
            if not lowest <= self.reference[0] <= highest:
                refuse((["reference"], "is [lowest, highest] or [mean, lowest, highest], in this order"))
        return self

    @property
    def range(self) -> tuple[float, float] | None:
        return (self.reference[-2], self.reference[-1]) if len(self.reference) > 1 else None


class Figure(BaseModel):
    """The picture of a study, and what its result stands beside.

    kind
        best      the curves of the twenty best trials, a panel each
        settings  a panel for each combination of params, with the curves of all its trials and their mean
        grid      a panel for each value of `panels`, in it a training curve for each value of `lines`
        rounds    the ranges of each round, and its trials' values
        ensemble  each network alone, and all of them together; needs [metadata.test]
        values    the values over the trials and over each parameter
    claim: what was claimed, in words; source: whose numbers the references are; label: how the titles of a grid
    name the panels' parameter; next: the study file to run after this one.
    """

    model_config = STRICT
    kind: Kind
    claim: str | None = None
    source: str = "reference"
    expected: list[Expected] = []
    panels: str | None = None
    lines: str | None = None
    label: str | None = None
    next: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("panels", "lines"):
            if self.kind == "grid" and getattr(self, name) is None:
                refuse(([name], "is required by kind grid: the name of a categorical parameter"))
            if self.kind != "grid" and getattr(self, name) is not None:
                refuse(([name], "belongs to kind grid only"))
        if self.kind == "grid" and self.panels == self.lines:
            refuse((["lines"], "is another parameter than panels"))
        return self


class TestPlan(BaseModel):
    """What `hpo run` does with the test set: how many networks are evaluated together, or that it stays sealed."""

    __test__ = False  # not a test of pytest's
    model_config = STRICT
    ensemble: Annotated[int, Field(ge=1, le=100)] = 1
    leave_sealed: bool = False


class ConfirmPlan(BaseModel):
    """That `hpo run` confirms the winner before the test: so many of the best trials, so many times each."""

    model_config = STRICT
    top: Annotated[int, Field(ge=1, le=50)] = 5
    seeds: Annotated[int, Field(ge=2, le=50)] = 5


SECTIONS: Mapping[str, type[BaseModel]] = {"figure": Figure, "confirm": ConfirmPlan, "test": TestPlan}


def figure_of(study: Json) -> Figure | None:
    """The figure a study asks for; None without one, or with metadata that mean something else or do not fit."""
    figure = _read(Figure, study, "figure")
    return None if figure is None or figure_faults(figure, study) else figure


def test_plan_of(study: Json) -> TestPlan:
    return _read(TestPlan, study, "test") or TestPlan()


def confirm_plan_of(study: Json) -> ConfirmPlan | None:
    """None: its trials are not confirmed."""
    return _read(ConfirmPlan, study, "confirm")


def faults(section: BaseModel, body: Json) -> list[tuple[Place, str]]:
    """What a section asks of the study that the study does not have: (place in the section, rule)."""
    if isinstance(section, ConfirmPlan) and len(body.get("directions") or ["maximize"]) > 1:
        return [((), "a study with several directions has no best trials to confirm; take this section out")]
    return figure_faults(section, body) if isinstance(section, Figure) else []


def _read(model: type[Section], study: Json, name: str) -> Section | None:
    try:
        return model.model_validate(study["metadata"][name])
    except (KeyError, ValidationError):
        return None


def figure_faults(figure: Figure, body: Json) -> list[tuple[Place, str]]:
    """What the figure asks of the study that the study does not have: (place in the figure, rule)."""
    space = body.get("search_space")
    parameters = space if isinstance(space, dict) else {}
    faults: list[tuple[Place, str]] = []
    for name in ("panels", "lines"):
        parameter = getattr(figure, name)
        if parameter is not None and not _choices(parameters.get(parameter)):
            faults.append(((name,), "must be a categorical parameter of the search space"))
    if figure.kind == "rounds" and not body.get("narrowing"):
        faults.append((("kind",), "rounds needs [narrowing] in the study"))
    if figure.kind == "ensemble" and test_plan_of(body).ensemble < 2:
        faults.append((("kind",), "ensemble needs [metadata.test] with ensemble = 2 or more"))
    for position, expected in enumerate(figure.expected):
        faults += [(("expected", position, *place), rule) for place, rule in _expected_faults(expected, parameters)]
    return faults


def _expected_faults(expected: Expected, parameters: Json) -> list[tuple[Place, str]]:
    faults: list[tuple[Place, str]] = []
    measures = (*OF_TRIALS, *OF_TEST, *parameters)
    if expected.measure not in measures:
        faults.append((("measure",), f"must be one of {', '.join(measures)}"))
    for name, value in expected.of.items():
        if name not in parameters:
            faults.append((("of", name), "is no parameter of the search space"))
        elif (choices := _choices(parameters[name])) and value not in choices:
            faults.append((("of", name), f"must be one of the choices {', '.join(map(str, choices))}"))
    if expected.measure in OF_TEST and (expected.of or expected.round is not None or expected.best is not None):
        faults.append((("measure",), f"{expected.measure} is of the sealed test; of, round and best are of trials"))
    return faults


def _choices(parameter: Any) -> list[Any]:
    given = parameter.get("choices") if isinstance(parameter, Mapping) else None
    return given if isinstance(given, list) else []
