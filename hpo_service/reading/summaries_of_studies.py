"""What a page shows of a study or of all of them, as bytes of JSON, thinned so that it fits on a screen.

Functions that the reading process runs, or a thread of the server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from hpo_service.domain import measure
from hpo_service.domain.json_types import Json
from hpo_service.domain.study import Study, StudyState
from hpo_service.domain.trial import TrialState, drawn_by
from hpo_service.reading.resources import counts_by_state, time_if_any, time_text
from hpo_service.store.record import Record
from hpo_service.store.summaries import LastChange, Summaries, TrialMark

LARGEST_HISTORY = 8 * 2**20  # bytes of JSON
FIRST_ROWS = 20  # read first, to estimate how many more have room
ROWS_AT_ONCE = 500
MOST_RUNNING = 1000  # whose leases are listed
MOST_REASONS = 1000  # that are read; those that differ only in numbers are grouped
REASONS_SHOWN = 50
MOST_FIGURES = 30  # of one trial's metrics
LONGEST_FIGURE = 100  # characters
RECENT = 20  # trials by which a study's pace is judged
BEST_LOOKED_AT = 200  # of a study: more steps than a sparkline shows


# -- the history of one study -----------------------------------------------------------------------------


def history(record: Record, study: Study, *, points: int) -> bytes:
    summaries = Summaries(record)
    marks = summaries.marks(study)
    steps = best_so_far(marks, study)
    wanted: Sequence[int] = [number for number, _, _ in marks]
    if len(wanted) > points:
        unfinished = [number for number, state, _ in marks if state in ("RUNNING", "WAITING")]
        best = [row.number for row in summaries.best(study, points // 4)]
        wanted = chosen(wanted, steps, [*unfinished[: -points // 4 : -1], *best], points)
    else:
        wanted = [*dict.fromkeys([*_spread(steps), *_spread(wanted)])]
    items: dict[int, bytes] = {}
    left, size = LARGEST_HISTORY, FIRST_ROWS
    while wanted and left > 0:
        found = dict(_items(summaries, study, wanted[:size]))
        wanted = wanted[size:]
        items |= found
        taken = sum(map(len, found.values()))
        left -= taken
        size = max(1, min(ROWS_AT_ONCE, left * len(found) // max(taken, 1)))
    head = {
        "study": study.name,
        "revision": study.revision,
        "trials": len(marks),
        "shown": len(items),
        "best_so_far": [number for number in steps if number in items],
    }
    return to_json(head)[:-1] + b',"items":[' + b",".join(items[number] for number in sorted(items)) + b"]}"


def best_so_far(marks: Sequence[TrialMark], study: Study) -> list[int]:
    """The COMPLETE trials that were better than every one before; none if there are several directions."""
    if len(study.spec.directions) > 1:
        return []
    sign = -1 if study.spec.maximizes else 1
    found: list[int] = []
    best: float | None = None
    for number, state, value in marks:
        if state == TrialState.COMPLETE and value is not None and (best is None or sign * value < best):
            best = sign * value
            found.append(number)
    return found


def chosen(numbers: Sequence[int], steps: Sequence[int], others: Sequence[int], points: int) -> list[int]:
    """Up to `points` numbers, most important first: `steps`, `others`, and an even choice of the rest."""
    found = dict.fromkeys([*_spread(steps)[:points], *others])
    rest = [number for number in numbers if number not in found]
    left = max(points - len(found), 0)
    even = [rest[index * len(rest) // left] for index in range(min(left, len(rest)))]
    return [*found, *_spread(even)][:points]


def _spread(numbers: Sequence[int]) -> list[int]:
    """Reorder from coarse to fine, both ends first: any number of first elements lie far from each other."""
    ends = [*dict.fromkeys((*numbers[-1:], *numbers[:1]))]
    bits = max(len(numbers) - 1, 1).bit_length()
    places = sorted(range(len(numbers)), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))
    return [*dict.fromkeys([*ends, *(numbers[place] for place in places)])]


def _items(summaries: Summaries, study: Study, numbers: Collection[int]) -> Iterator[tuple[int, bytes]]:
    rows = summaries.some_trials(study, numbers)
    last = summaries.last_reports([row.id for row in rows if row.state == TrialState.RUNNING])
    for row in rows:
        yield row.number, to_json(_item(row, last.get(row.id), study.spec.sampler.name))


def _item(row: Any, last: tuple[int, float] | None, sampler: str) -> Json:
    return {
        "number": row.number,
        "state": row.state,
        "params": row.params,
        "values": row.values,
        "last_report": None if last is None else {"step": last[0], "value": measure.to_json(last[1])},
        "metrics": _figures(row.metrics),
        "attempt": row.attempt,
        "worker_id": row.worker_id,
        "reason": row.reason,
        "round": row.round,
        "started_at": time_if_any(row.started_at),
        "finished_at": time_if_any(row.finished_at),
        "sampler": drawn_by(row.state, row.attempt, row.system_attrs, sampler),
        "replicate_of": row.replicate_of,
    }


def _figures(metrics: str | None) -> Json:
    """The part of a trial's metrics that fits into a cell of a table."""
    told = {} if metrics is None else from_json(metrics)
    fitting = [(name, value) for name, value in told.items() if _is_figure(name) and _is_figure(value)]
    return dict(fitting[:MOST_FIGURES])


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_FIGURE
    return isinstance(value, bool | int | float)


# -- curves, failures and workers of one study ------------------------------------------------------------


def curves(record: Record, study: Study, *, best: int, running: int, points: int) -> bytes:
    """The reported curves of the best trials, best first, and then of running ones."""
    summaries = Summaries(record)
    items: list[Json] = []
    for row in (*summaries.best(study, best), *summaries.running(study, running)):
        count, found = summaries.curve(row.id, points)
        value = getattr(row, "value", None)
        items.append(
            {
                "number": row.number,
                "state": getattr(row, "state", TrialState.RUNNING),
                "value": None if value is None else measure.to_json(value),
                "reports": count,
                "steps": [step for step, _ in found],
                "values": [measure.to_json(value) for _, value in found],
            }
        )
    return to_json({"items": items})


def failures(record: Record, study: Study) -> bytes:
    """FAIL trials by reason; reasons that differ only in numbers form a group, shown by the most frequent of them."""
    groups: dict[str, Json] = {}
    for reason, count, first, last in Summaries(record).failures(study, MOST_REASONS):
        kind = _NUMBERS.sub("#", reason or "")
        group = groups.setdefault(kind, {"reason": reason, "count": 0, "first_trial": first, "last_trial": last})
        group["count"] += count
        group["first_trial"] = min(group["first_trial"], first)
        group["last_trial"] = max(group["last_trial"], last)
    items = sorted(groups.values(), key=lambda group: -group["count"])[:REASONS_SHOWN]
    return to_json({"total": study.counts.fail, "items": items})


_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def workers(record: Record, study: Study) -> bytes:
    """The workers that hold trials of the study, or were the last to hold one."""
    summaries = Summaries(record)
    held: dict[str | None, list[Json]] = {}
    for row in summaries.running(study, MOST_RUNNING):
        lease = {
            "number": row.number,
            "attempt": row.attempt,
            "started_at": time_if_any(row.started_at),
            "lease_expires_at": time_if_any(row.lease_expires_at),
        }
        held.setdefault(row.worker_id, []).append(lease)
    items = [
        {
            "worker_id": worker.worker_id,
            "last_seen_at": time_if_any(worker.last_seen_at),
            "draining": worker.draining,
            "holds": held.get(worker.worker_id, []),
            "counts": {str(state): worker.ended.get(state, 0) for state in TrialState},
        }
        for worker in summaries.workers(study)
    ]
    items.sort(key=lambda item: (bool(item["holds"]), item["last_seen_at"] or ""), reverse=True)
    return to_json({"items": items})


# -- all studies ------------------------------------------------------------------------------------------


def overview(record: Record, *, after: int, size: int, only: Collection[str] | None) -> tuple[bytes, int | None]:
    """Up to `size` studies, a line each, and the id after which the next page starts."""
    found = record.studies(None, after, size + 1, only)
    page = found[:size]
    summaries = Summaries(record)
    at_them = summaries.workers_at(page)
    items = [to_json(_line(summaries, study, at_them.get(study.id, 0), record.now)) for study in page]
    return b"[%s]" % b",".join(items), page[-1].id if len(found) > size else None


def _line(summaries: Summaries, study: Study, workers: int, now: float) -> Json:
    spec = study.spec
    recent = summaries.last_changes(study, RECENT)
    best = summaries.best(study, BEST_LOOKED_AT) if len(spec.directions) == 1 else []
    return {
        "name": study.name,
        "state": study.state,
        "state_reason": study.state_reason,
        "directions": spec.directions,
        "counts": counts_by_state(study.counts),
        "limits": spec.limits.model_dump(mode="json"),
        "best": {"number": best[0].number, "value": measure.to_json(best[0].value)} if best else None,
        "best_so_far": [[number, measure.to_json(value)] for number, value in _last_steps(best)],
        "workers": workers,
        "created_at": time_text(study.created_at),
        "active_at": time_text(_active_at(study, recent)),
        "seconds_left": _seconds_left(study, recent, now),
    }


def _last_steps(best: Iterable[Any]) -> list[tuple[int, float]]:
    """The trials, of these, that are better than all with a lower number, by rising number. best: best first."""
    found: list[tuple[int, float]] = []
    for row in best:
        if not found or row.number < found[-1][0]:
            found.append((row.number, row.value))
    return found[::-1]


def _active_at(study: Study, recent: Sequence[LastChange]) -> float:
    times = [study.created_at]
    for change in recent:
        times += [at for at in (change.started_at, change.finished_at) if at is not None]
        if change.state == TrialState.RUNNING and change.lease_expires_at is not None:
            times.append(change.lease_expires_at - study.spec.lease_seconds)
    return max(times)


def _seconds_left(study: Study, recent: Sequence[LastChange], now: float) -> float | None:
    """Estimated time until a limit is reached, at the pace of the trials that finished last; None if unknown."""
    limits, counts = study.spec.limits, study.counts
    if study.state is not StudyState.ACTIVE:
        return None
    found: list[float] = []
    if limits.seconds is not None:
        found.append(study.created_at + limits.seconds - now)
    finished = sorted(change.finished_at for change in recent if change.finished_at is not None)
    if limits.trials is not None and len(finished) > 1 and counts.running:
        open_trials = limits.trials - study.given_out + counts.unfinished_business
        found.append(open_trials * (now - finished[0]) / len(finished))
    return max(0.0, min(found)) if found else None
