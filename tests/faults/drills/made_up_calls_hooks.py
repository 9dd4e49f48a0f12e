"""What schemathesis loads: calls that would wait do not, and many go to a study that is there.

Names of studies that are made up lead nowhere, so half of the calls that are made up by the rules go to one that the
drill has filled with running trials. Calls that would end it are left alone; those that a
list of the studies leads to it go elsewhere.
"""

from __future__ import annotations

import os
import random
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode

LONGEST_WAIT_SECONDS = 0.02
STUDY = os.environ["HPO_DRILL_STUDY"]
TRIALS = int(os.environ["HPO_DRILL_TRIALS"])
_ENDS_A_STUDY = (":cancel", ":stop", ":test")

_random = random.Random(int(os.environ["HPO_DRILL_SEED"]))


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def before_call(_context: Any, case: Any, _options: Any) -> None:
    if isinstance(case.body, dict):
        wait = case.body.get("wait_seconds")
        if isinstance(wait, int | float) and LONGEST_WAIT_SECONDS < wait <= 30:
            case.body["wait_seconds"] = LONGEST_WAIT_SECONDS
    path, body = (_by_the_rules(case, where) for where in (ParameterLocation.PATH, ParameterLocation.BODY))
    ends_it = case.operation.path.endswith(_ENDS_A_STUDY) or case.operation.method.upper() == "DELETE"
    if ends_it and case.path_parameters.get("study") == STUDY:
        case.path_parameters["study"] = f"not-{STUDY}"  # it was led here by a list of the studies that there are
    if not path or ends_it or _random.random() < 0.5:
        return
    if "study" in case.path_parameters:
        case.path_parameters["study"] = STUDY
    if "number" in case.path_parameters:
        case.path_parameters["number"] = _random.randrange(TRIALS)
        if body and isinstance(case.body, dict) and "attempt" in case.body:
            case.body["attempt"] = 1


def _by_the_rules(case: Any, where: ParameterLocation) -> bool:
    made = case.meta.components.get(where) if case.meta is not None else None
    return made is not None and made.mode is GenerationMode.POSITIVE
