"""The tuners in memory, one a study, kept up with the record by its revisions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hpo_service.domain.sizes import MIB, size_of
from hpo_service.domain.study import Study, StudySpec
from hpo_service.domain.trial import HistoryTrial, Trial
from hpo_service.operations.not_ready import NotReady
from hpo_service.store.transaction import Transaction
from hpo_service.tuning.tuner import Tuner, history_bytes, is_quick, needs_history

MOST_TUNERS = 200
MOST_BYTES = 256 * MIB  # of all tuners, but for the last one used
MODELS = 10  # a search space takes so many times the bytes of its text
MOST_NEEDS = 10_000
# If a tuner is more revisions behind, the history is read outside of the writer.
MOST_READ_HERE = 1_000


class Needs(NamedTuple):
    """What the draws and the judgements of a study need.

    slow_draws: a draw may take long, and is made outside of the writer. history: the sampler has to know the trials
    before. in_writer: the writer's own tuner draws or prunes by what trials have done.
    """

    slow_draws: bool
    history: bool
    in_writer: bool


@dataclass
class _Entry:
    """spec: the study's, when the entry was last used; its search space is the tuner's."""

    tuner: Tuner
    weight: int
    spec: StudySpec
    seen: int = 0


class Tuners:
    """Changed only by the holder of the write lock, in any thread; `needs` and `has_nothing_to_read` need no lock.

    A tuner that has seen trials that were not committed is dropped.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._weight = 0
        self._needs: dict[tuple[int, int], Needs] = {}  # by study and how many parameters it has

    def needs(self, study: Study) -> Needs:
        key = study.id, len(study.spec.search_space)
        needs = self._needs.get(key)
        if needs is None:
            if len(self._needs) >= MOST_NEEDS:
                self._needs.clear()
            slow_draws, history = not is_quick(study.spec), needs_history(study.spec)
            in_writer = study.spec.pruner.name != "none" or (history and not slow_draws)
            needs = self._needs[key] = Needs(slow_draws, history, in_writer)
        return needs

    def without_history(self, study: Study) -> Tuner:
        """The tuner for a draw or a judgement that needs no history."""
        return self._entry(study).tuner

    def has_nothing_to_read(self, study: Study) -> bool:
        """Whether calls on the study need no SQL for a draw or a judgement: its tuner is not used, or up to date."""
        if not self.needs(study).in_writer:
            return True
        entry = self._known(study)
        return entry is not None and entry.seen == study.revision

    def up_to_date(self, transaction: Transaction, study: Study) -> Tuner:
        """The study's tuner with its whole history. Raise NotReady when much of that has to be read first."""
        entry = self._entry(study)
        if entry.seen < study.revision - MOST_READ_HERE:
            raise NotReady(study)
        if entry.seen < study.revision:
            with_reports = study.spec.pruner.name != "none"
            self._show(
                transaction, study, entry, transaction.sql().trials.history_since(study, entry.seen, with_reports)
            )
        return entry.tuner

    def adopt(self, study: Study, tuner: Tuner, seen: int, history_bytes: int) -> None:
        """Take a tuner that has learnt the study up to this revision elsewhere, unless the one here knows more."""
        if self._entry(study).seen < seen:
            self._put(study, tuner, history_bytes).seen = seen
            self._evict()

    def apply_foreign_changes(self, transaction: Transaction, study: Study) -> None:
        """Show the study's tuner, if there is one, what another server has changed, if that is in memory."""
        entry = self._known(study)
        if entry is not None and entry.seen < study.revision:
            trials = transaction.foreign_changes_since(study, entry.seen, study.spec.pruner.name != "none")
            if trials is not None:
                self._show(transaction, study, entry, trials)

    def note(self, transaction: Transaction, before: int, study: Study, changed: Iterable[Trial]) -> None:
        """Show a tuner that knows the study up to revision `before` what has changed since, without asking SQL."""
        entry = self._known(study)
        if entry is None or entry.seen != before:
            return  # it reads the difference when it is next needed
        with_reports = study.spec.pruner.name != "none"
        known = [trial for trial in changed if trial.is_known_to_samplers]
        self._show(transaction, study, entry, [_history(transaction, study, trial, with_reports) for trial in known])

    def _show(self, transaction: Transaction, study: Study, entry: _Entry, trials: Iterable[HistoryTrial]) -> None:
        transaction.changed_tuners.add(study.id)
        given = list(trials)
        weight = history_bytes(given)
        entry.weight += weight
        self._weight += weight
        entry.tuner.absorb(given)
        entry.seen = study.revision

    def forget_all_of(self, study_ids: Collection[int]) -> None:
        for study_id in study_ids:
            self._drop(study_id)

    def _drop(self, study_id: int) -> None:
        entry = self._entries.pop(study_id, None)
        if entry is not None:
            self._weight -= entry.weight

    def _known(self, study: Study) -> _Entry | None:
        """None, too, where the search space has grown: at the next draw a new tuner reads the whole history."""
        entry = self._entries.get(study.id)
        if entry is not None and entry.spec is not study.spec:
            if len(entry.spec.search_space) != len(study.spec.search_space):
                return None
            entry.spec = study.spec  # whose limits or metadata have changed
        return entry

    def _entry(self, study: Study) -> _Entry:
        entry = self._known(study)
        if entry is None:
            entry = self._put(study, Tuner(study.spec, draws=not self.needs(study).slow_draws))
        self._entries.move_to_end(study.id)
        self._evict()
        return entry

    def _put(self, study: Study, tuner: Tuner, history_bytes: int = 0) -> _Entry:
        self._drop(study.id)
        weight = MODELS * size_of(study.spec.search_space.model_dump(mode="json")) + history_bytes
        entry = self._entries[study.id] = _Entry(tuner, weight, study.spec)
        self._weight += weight
        return entry

    def _evict(self) -> None:
        while len(self._entries) > MOST_TUNERS or (self._weight > MOST_BYTES and len(self._entries) > 1):
            self._drop(next(iter(self._entries)))


def _history(transaction: Transaction, study: Study, trial: Trial, with_reports: bool) -> HistoryTrial:
    with_curve = with_reports and trial.state.is_finished
    return trial.as_history(transaction.curve(study, trial).items() if with_curve else ())
