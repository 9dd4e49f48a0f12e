"""The body of the tell for whatever an objective has returned or raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from typing import Any

from hpo_service.client.answers import LONE_SURROGATE, in_one_line
from hpo_service.domain.json_types import Json

LONGEST_QUOTE = 200  # characters of an unusable return value, quoted in the reason
LONGEST_REASON = 500


class Retry(Exception):
    """Raised by an objective whose machine has failed, and not its trial: no memory left, a disk that is full.

    The trial is given out again, as often as its study's limits.attempts allow; the message is kept as its reason.
    """


class TrialPruned(Exception):
    """Raised by an objective that gives a hopeless trial up: it ends as PRUNED. Optuna's class is taken for it, too."""


def conclusion(returned: Any, last_report: float | None, obeyed: str | None) -> Json:
    """The body of the tell: the state, and its values or the reason. Never raises.

    returned: None stands for the last report. obeyed: why the objective was told to stop, if it looked; one that never
    looked has trained to its end.
    """
    if obeyed == "pruned":
        return {"state": "PRUNED"}
    if obeyed is not None:
        return {"state": "FAIL", "reason": obeyed}
    if returned is None and last_report is None:
        return {"state": "FAIL", "reason": "the objective returned no value and reported none"}
    try:
        return {"state": "COMPLETE", "values": as_values(last_report if returned is None else returned)}
    except ValueError as error:
        return {"state": "FAIL", "reason": str(error)}


def ended_by(error: BaseException, stop: str | None) -> Json:
    """The body of the tell for an objective that has raised. stop: why it was to end, where it was."""
    if not is_prune(error):
        return failed_by(error)
    return {"state": "PRUNED"} if stop in (None, "pruned") else {"state": "FAIL", "reason": stop}


def is_prune(error: BaseException) -> bool:
    """Whether it is TrialPruned, ours or Optuna's: known by its name, since Optuna need not be installed."""
    return any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__)


def failed_by(error: BaseException) -> Json:
    """The body of the tell for an objective that has failed."""
    if isinstance(error, Retry):
        return {"state": "FAIL", "reason": storable_text(str(error)[:LONGEST_REASON]) or "Retry", "retry": True}
    return {"state": "FAIL", "reason": storable_text(in_one_line(error))}


def as_values(returned: Any) -> list[float]:
    """One value per direction: a number, a text that is one, an array or a sequence of them. Raise ValueError."""
    with suppress(Exception):  # scalars, and arrays or tensors of one element, of NumPy and similar libraries
        return [_number(returned.item())]
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    try:
        if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set):
            numbers = [_number(each) for each in values]
        else:
            numbers = [_number(values)]
    except Exception as error:
        raise ValueError(f"the objective returned {_quoted(returned)}, which is no number") from error
    if not numbers:
        raise ValueError(f"the objective returned {_quoted(returned)}, which holds no value")
    return numbers


def _number(value: Any) -> float:
    if isinstance(value, bytes):  # float() would read it as text
        raise TypeError("bytes")
    return float(value)


def _quoted(value: Any) -> str:
    try:
        said = " ".join(repr(value).split())
    except Exception:
        said = f"a {type(value).__name__}"
    return storable_text(said if len(said) <= LONGEST_QUOTE else said[:LONGEST_QUOTE] + "…")


def storable_text(text: str) -> str:
    """The text with � for what no database keeps: half a surrogate pair, as in undecodable file names, and NUL."""
    return LONE_SURROGATE.sub("\ufffd", text).replace("\x00", "\ufffd")
