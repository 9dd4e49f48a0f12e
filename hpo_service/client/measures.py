"""Measured values as Python has them: float("inf") for the text "Infinity" that JSON has to write."""

from __future__ import annotations

from hpo_service.domain import measure
from hpo_service.domain.json_types import Json


def with_floats(resource: Json) -> Json:
    """A copy of a study's or a trial's JSON, with its values and those of its reports as floats."""
    read = dict(resource)
    if isinstance(read.get("values"), list):
        read["values"] = [measure.from_json(value) for value in read["values"]]
    if isinstance(read.get("reports"), list):
        read["reports"] = [{**report, "value": measure.from_json(report["value"])} for report in read["reports"]]
    if isinstance(read.get("best"), dict):
        read["best"] = with_floats(read["best"])
    if isinstance(read.get("front"), list):
        read["front"] = [with_floats(trial) for trial in read["front"]]
    return read
