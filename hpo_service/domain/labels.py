"""Labels of a worker's machine, and a study's requirements: names and texts; each requirement needs an equal label."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

MOST_LABELS = 32
LONGEST_NAME, LONGEST_TEXT = 64, 128
NO_NUL = r"^[^\x00]*$"  # no database keeps one

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, pattern=NO_NUL)]
LabelText = Annotated[str, StringConstraints(max_length=LONGEST_TEXT, pattern=NO_NUL)]
# In the JSON schema, a name that breaks its pattern is an additional property, and refused.
_NO_OTHERS = {"additionalProperties": False}
Labels = Annotated[dict[LabelName, LabelText], Field(max_length=MOST_LABELS, json_schema_extra=_NO_OTHERS)]


def fit(labels: Mapping[str, str], requires: Mapping[str, str]) -> bool:
    """Whether every requirement is met."""
    return all(labels.get(name) == text for name, text in requires.items())


def as_text(labels: Mapping[str, str]) -> str:
    """One text for equal labels, in whatever order."""
    return json.dumps(labels, sort_keys=True, separators=(",", ":"))


def said(labels: Mapping[str, str]) -> str:
    """A text for messages."""
    return json.dumps(dict(sorted(labels.items())), ensure_ascii=False)
