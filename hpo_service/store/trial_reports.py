"""The reports of one trial in the writer's memory: all values, and of the metrics the last ones, as text.

A worker's answer carries the last reports that fit into CARRIED_REPORTS; what lies before them is read where somebody
asks for all. A trial at its bounds takes some 3 MB here, whatever its reports would take as objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from hpo_service.domain import sizes
from hpo_service.domain.curve import Curve
from hpo_service.domain.errors import Fault, Invalid, TooLarge
from hpo_service.domain.measure import to_json as jsonable
from hpo_service.domain.sizes import CARRIED_REPORTS, MOST_STEPS, TRIAL_REPORTS
from hpo_service.domain.trial import Report

_NONE = b"{}"
_BESIDE_METRICS = len(b'{"step":,"value":,"metrics":},')
_BYTES_A_STEP = 24


def report_text(step: int, value: float, metrics: bytes | None) -> bytes:
    """The report as it reads."""
    return b'{"step":%d,"value":%s,"metrics":%s}' % (step, to_json(jsonable(value)), metrics or _NONE)


class KeptReport(NamedTuple):
    """size: the bytes of its text and a comma; metrics: as text; None where there are none, or they are not kept."""

    value: float
    size: int
    metrics: bytes | None


def kept_report(step: int, value: float, metrics: bytes | None) -> KeptReport:
    value_text = to_json(value) if value - value == 0 else to_json(jsonable(value))  # finite, as nearly all are
    size = _BESIDE_METRICS + len(b"%d" % step) + len(value_text) + len(metrics or _NONE)
    return KeptReport(value, size, metrics)


def checked_report(step: int, value: float, metrics: Mapping[str, Any] | None) -> KeptReport:
    """As a caller gives it; raise TooLarge."""
    text = to_json(metrics, inf_nan_mode="strings") if metrics else None
    if text is not None and len(text) > sizes.REPORT_METRICS:
        raise TooLarge(
            f"the metrics of step {step} take {len(text):,} bytes as JSON, and those of one report may take "
            f"{sizes.REPORT_METRICS:,}; keep what is larger where it was made, and report its place"
        )
    return kept_report(step, value, text)


class TrialReports:
    """A mapping of steps to reports, with the methods that the writer needs."""

    def __init__(self, found: Iterable[tuple[int, KeptReport]] = ()) -> None:
        """found: the trial's reports in the database."""
        self.curve = Curve()
        self._metrics: dict[int, bytes] = {}
        self._metrics_bytes = 0
        self._is_whole = True  # whether the metrics of all reports are kept
        for step, report in found:
            self[step] = report

    @property
    def weight(self) -> int:
        """Bytes in memory, as far as they can be large."""
        return _BYTES_A_STEP * len(self.curve) + self._metrics_bytes

    def check(self, new: Mapping[int, KeptReport]) -> None:
        """Raise Invalid or TooLarge if the trial would have too many. Those that an earlier version took may stay."""
        more = grows = 0
        for step, report in new.items():
            before = self.curve.find(step)
            more += before is None
            grows += report.size - (0 if before is None else before[1])
        if more and len(self.curve) + more > MOST_STEPS:
            detail = f"the trial would have {len(self.curve) + more:,} different steps, and may have {MOST_STEPS:,}"
            raise Invalid([Fault("/reports", f"{detail}; report every tenth step, or fewer")])
        if grows > 0 and self.curve.bytes + grows > TRIAL_REPORTS:
            raise TooLarge(
                f"the reports of the trial would take {self.curve.bytes + grows:,} bytes as JSON, and those of one "
                f"trial may take {TRIAL_REPORTS:,}; report fewer metrics, or fewer steps"
            )

    def __setitem__(self, step: int, report: KeptReport) -> None:
        self.curve.put(step, report.value, report.size)
        if step in self._metrics:
            self._drop_metrics(step)
        if report.metrics is not None:
            self._metrics[step] = report.metrics
            self._metrics_bytes += len(report.metrics)
            if self._metrics_bytes > 2 * CARRIED_REPORTS:
                self._forget_the_first()

    def _drop_metrics(self, step: int) -> None:
        self._metrics_bytes -= len(self._metrics.pop(step))

    def _forget_the_first(self) -> None:
        self._is_whole = False
        first = self.curve.first_of_the_last(CARRIED_REPORTS)
        for step in [step for step in self._metrics if first is None or step < first]:
            self._drop_metrics(step)

    def all(self) -> list[Report] | None:
        """By rising step; None where some of it is not kept."""
        return self._from(-(2**31))

    def first_step_carried(self) -> int | None:
        """From which step on a worker's answer carries the reports; None: none of them."""
        return self.curve.first_of_the_last(CARRIED_REPORTS)

    def carried(self) -> list[Report] | None:
        """What a worker's answer carries; None where some of it is not kept."""
        first = self.first_step_carried()
        return [] if first is None else self._from(first)

    def _from(self, first: int) -> list[Report] | None:
        found = []
        for step, value, size in self.curve.steps_from(first):
            metrics = self._metrics.get(step)
            if metrics is None and not self._is_whole and kept_report(step, value, None).size != size:
                return None
            found.append(Report(step, value, {} if metrics is None else from_json(metrics)))
        return found
