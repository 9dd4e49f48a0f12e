"""Trials as JSON in pieces of about a megabyte, each read by itself, so that a page is never in memory as a whole.

A page ends after about PAGE bytes, at a trial's end; a trial with many reports spans several pieces. The part of a
trial that was sent stays as it was read; reports that arrive meanwhile may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic_core import to_json

from hpo_service.domain.errors import Fault, Invalid, NotFound
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.reading.resources import trial_resource
from hpo_service.store.record import Record
from hpo_service.store.report_rows import PIECE

PAGE = 8 * 2**20
Key = tuple[float | None, int, int]  # of the last trial of a page: its value, its number, its study's id


@dataclass(frozen=True)
class Inside:
    """A position within a trial's reports. first: the next step; rest: the trial's JSON after its reports."""

    study_id: int
    trial: Trial
    first: int
    rest: bytes


@dataclass(frozen=True)
class Place:
    """Where a page continues. left, room: trials and bytes that still fit; begun: whether an item was sent already."""

    after: Key | None
    left: int
    room: int = field(default_factory=lambda: PAGE)
    begun: bool = False
    inside: Inside | None = None


Piece = tuple[bytes, Inside | None]
PieceOfPage = tuple[bytes, Place | None, Key | None]  # where it continues, or at its end the next page's key


def trial(record: Record, study: Study, *, number: int) -> Piece:
    return _begin(record, study, record.trials.numbered(study, number))


def rest_of_trial(record: Record, study: Study, *, inside: Inside) -> Piece:
    if study.id != inside.study_id:
        raise NotFound(f"study {study.name!r} was deleted")
    texts, following = record.reports.texts(inside.trial, inside.first)
    piece = b"".join(b"," + text for text in texts)
    return (piece + inside.rest, None) if following is None else (piece, replace(inside, first=following))


def _begin(record: Record, study: Study, found: Trial) -> Piece:
    texts, following = record.reports.texts(found)
    head, rest = _around_reports(study, found)
    piece = head + b",".join(texts)
    if following is None:
        return piece + rest, None
    return piece, Inside(study.id, fast_replace(found, metrics=None), following, rest)


def _around_reports(study: Study, found: Trial) -> tuple[bytes, bytes]:
    resource = trial_resource(study, found, ())
    names = list(resource)
    at = names.index("reports")
    before = to_json({name: resource[name] for name in names[:at]})
    after = to_json({name: resource[name] for name in names[at + 1 :]})
    return before[:-1] + b',"reports":[', b"]," + after[1:]


def whole_trial(study: Study, found: Trial, texts: list[bytes]) -> bytes:
    """The trial as JSON. texts: its reports as JSON."""
    head, rest = _around_reports(study, found)
    return head + b",".join(texts) + rest


def page(record: Record, study: Study, *, state: str | None, order_by: str, place: Place) -> PieceOfPage:
    """The page's next piece: items, with the commas between them."""
    if place.inside is not None:
        piece, inside = rest_of_trial(record, study, inside=place.inside)
        if inside is not None:
            return piece, replace(place, inside=inside), None
        return _after(piece, replace(place, inside=None), record, study, state, order_by)
    trials, more = _next(record, study, state, order_by, place)
    some = read_together(record, trials)
    if len(some) == 1:
        piece, inside = _begin(record, study, some[0])
    else:
        texts = record.reports.texts_of(some)
        piece, inside = b",".join(whole_trial(study, each, texts.get(each.number, [])) for each in some), None
    if place.begun and some:
        piece = b"," + piece
    place = replace(place, left=place.left - len(some), room=place.room - len(piece), begun=True)
    if some:
        place = replace(place, after=_key(some[-1], study))
    if inside is not None:
        return piece, replace(place, inside=inside), None
    return _ended(piece, place, more or len(some) < len(trials))


def _after(piece: bytes, place: Place, record: Record, study: Study, state: str | None, order_by: str) -> PieceOfPage:
    """Called with the last piece of a trial that spans several."""
    place = replace(place, room=place.room - len(piece))
    _, more = _next(record, study, state, order_by, replace(place, left=0))
    return _ended(piece, place, more)


def _ended(piece: bytes, place: Place, more: bool) -> PieceOfPage:
    if not more:
        return piece, None, None
    return (piece, place, None) if place.left > 0 and place.room > 0 else (piece, None, place.after)


def _next(record: Record, study: Study, state: str | None, order_by: str, place: Place) -> tuple[list[Trial], bool]:
    if place.after is not None and place.after[2] != study.id:
        raise Invalid([Fault("/page_token", "made for a study of this name that was deleted; begin the list anew")])
    if order_by != "value":
        return record.trials.by_number(study, state, -1 if place.after is None else place.after[1], place.left)
    if len(study.spec.directions) > 1:
        raise Invalid([Fault("/order_by", "a study with several directions has no order by value")])
    return record.trials.by_value(study, state, place.after and place.after[:2], place.left)


def read_together(record: Record, trials: Sequence[Trial]) -> Sequence[Trial]:
    """The first of these trials, as many as fit into a piece: at least one, if there is one."""
    sizes = record.reports.bytes_of(trials)
    left = PIECE
    for index, each in enumerate(trials):
        left -= sizes.get(each.number, 0)
        if left < 0:
            return trials[: max(index, 1)]
    return trials


def _key(last: Trial, study: Study) -> Key:
    value = last.values[0] if last.values and last.replicate_of is None else None
    return (value, last.number, study.id)
