"""Draws that take long, made outside of the writer from the database as it stands.

The functions run in the drawing process, or in a thread of a server that has none. What trial n draws follows from the
study's seed, n and the history, so that it does not matter where it is drawn; only the params are sent back.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial

from hpo_service.domain.growing_space import EXPECTED, drawn_before
from hpo_service.domain.search_space import SearchSpace
from hpo_service.domain.study import Study
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.operations.not_ready import Ready, Wanted
from hpo_service.store.reader import Readable
from hpo_service.store.record import Record
from hpo_service.tuning.tuner import DrawnParams, Exhausted, Tuner, history_bytes

PAGE = 2_000  # trials of a history that are read at once
MOST_STUDIES = 50


class KnownStudy:
    """A study's tuner, kept up with the record page by page."""

    def __init__(self, study: Study, *, draws: bool = True) -> None:
        self.tuner = Tuner(study.spec, draws=draws)
        self.seen = 0
        self.history_bytes = 0
        self._id, self._name, self._parameters = study.id, study.name, len(study.spec.search_space)
        self._with_reports = study.spec.pruner.name != "none"

    def catch_up(self, database: Readable) -> Study:
        """Take in what has changed; raise NotFound when the study is no longer there."""
        while True:
            study, page, upto = database.read(self._page)
            self.absorb(page)
            self.seen = upto
            if upto >= study.revision:
                return study

    def is_outgrown_by(self, study: Study) -> bool:
        """Whether the search space has grown since."""
        return len(study.spec.search_space) != self._parameters

    def warm_up(self, study: Study, database: Readable) -> None:
        """Draw once, for no trial: the first draw builds what the following ones only update."""
        space = database.read(partial(_search_space, name=self._name, study_id=self._id, number=study.round))
        with contextlib.suppress(Exception):  # the next draw raises it
            self.tuner.draw(study.next_number, space, {})

    def absorb(self, page: Sequence[HistoryTrial]) -> None:
        self.history_bytes += history_bytes(page)
        self.tuner.absorb(page)

    def _page(self, record: Record) -> tuple[Study, list[HistoryTrial], int]:
        study = record.same_study(self._name, self._id)
        return study, *record.trials.history_page(study, self.seen, self._with_reports, PAGE)


class DrawnStudy(KnownStudy):
    """A study whose trials are drawn here. Each trial of a call is drawn as if those before it were running."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.in_use = threading.Lock()
        self._differs_from_draw = False  # whether a trial assumed to run has other params
        self._taken_to_run: dict[int, DrawnParams] = {}  # assumed to run, and not yet found in the record
        self._spaces: dict[int, SearchSpace] = {}

    def absorb(self, page: Sequence[HistoryTrial]) -> None:
        for trial in page:
            drawn = self._taken_to_run.pop(trial.number, None)
            self._differs_from_draw |= drawn is not None and not is_of_draw(trial, drawn)
        super().absorb(page)

    def is_wrong_about(self, wanted: Sequence[Wanted]) -> bool:
        """Whether a trial that was assumed to run was never given out, or with other params."""
        return self._differs_from_draw or any(each.number in self._taken_to_run for each in wanted)

    def draw(self, wanted: Wanted, database: Readable) -> DrawnParams | None:
        space = self._space(wanted.round, database)
        try:
            return self.tuner.draw(wanted.number, space, wanted.fixed)
        except Exhausted:
            return None

    def take_to_run(self, wanted: Wanted, drawn: DrawnParams) -> None:
        running = HistoryTrial(
            wanted.number, TrialState.RUNNING, drawn.params, None, (), drawn.system_attrs, wanted.round
        )
        self.tuner.absorb([running])
        self._taken_to_run[wanted.number] = drawn

    def _space(self, number: int, database: Readable) -> SearchSpace:
        if number not in self._spaces:
            read = partial(_search_space, name=self._name, study_id=self._id, number=number)
            self._spaces = {number: database.read(read)}
        return self._spaces[number]


def _search_space(record: Record, *, name: str, study_id: int, number: int) -> SearchSpace:
    return record.round(record.same_study(name, study_id), number).search_space


def is_of_draw(trial: HistoryTrial, drawn: DrawnParams) -> bool:
    """Whether it has the params that were drawn, with define_by_run as far as it has asked for them."""
    if EXPECTED not in drawn.system_attrs:
        return drawn.params == trial.params
    attrs = drawn.system_attrs
    return all(drawn_before(attrs, name) in (None, (value,)) for name, value in trial.params.items())


class Drawer:
    """Draws for all studies that need it; used by several threads."""

    def __init__(self) -> None:
        self._studies: OrderedDict[int, DrawnStudy] = OrderedDict()
        self._changing = threading.Lock()

    def draws(self, name: str, study_id: int, wanted: Sequence[Wanted], database: Readable) -> Iterator[Ready]:
        """One after the other; raise what the sampler raises, or NotFound."""
        known = self._known(name, study_id, database)
        with known.in_use:
            study = known.catch_up(database)
            if known.is_wrong_about(wanted) or known.is_outgrown_by(study):
                self._forget(study_id)
                yield from self.draws(name, study_id, wanted, database)
                return
            for each in wanted:
                drawn = known.draw(each, database)
                if drawn is not None and each is not wanted[-1]:
                    known.take_to_run(each, drawn)
                yield Ready(each, drawn)
                if drawn is None:
                    return

    def _known(self, name: str, study_id: int, database: Readable) -> DrawnStudy:
        with self._changing:
            known = self._studies.get(study_id)
        if known is None:
            known = DrawnStudy(database.read(lambda record: record.same_study(name, study_id)))
        with self._changing:
            known = self._studies.setdefault(study_id, known)
            self._studies.move_to_end(study_id)
            while len(self._studies) > MOST_STUDIES:
                self._studies.popitem(last=False)
        return known

    def _forget(self, study_id: int) -> None:
        with self._changing:
            self._studies.pop(study_id, None)


_DRAWER = Drawer()  # of the drawing process, which has one database


def draws(database: Readable, *, name: str, study_id: int, wanted: Sequence[Wanted]) -> Iterator[Ready]:
    """What the server has the drawing process call."""
    return _DRAWER.draws(name, study_id, wanted, database)
