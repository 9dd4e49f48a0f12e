"""The tuners in memory, one a study, kept up with the record by its revisions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from hpo_service.domain.study import Study
from hpo_service.store.record import Record
from hpo_service.tuning.tuner import Tuner

MOST_TUNERS = 200


@dataclass
class _Entry:
    tuner: Tuner
    seen: int = 0


class Tuners:
    """Used by the one writer only. What a transaction has shown a tuner is forgotten when it is rolled back."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._touched: dict[str, int] = {}

    def without_history(self, study: Study) -> Tuner:
        """The tuner for a draw or a judgement that learns from nothing."""
        return self._entry(study).tuner

    def up_to_date(self, record: Record, study: Study) -> Tuner:
        entry = self._entry(study)
        if entry.seen < study.revision:
            self._touched[study.name] = study.id
            with_reports = study.spec.pruner.name != "none"
            entry.tuner.absorb(record.history_since(study, entry.seen, with_reports))
            entry.seen = study.revision
        return entry.tuner

    def committed(self) -> None:
        self._touched.clear()

    def rolled_back(self, studies: Iterable[str]) -> None:
        for name in studies:
            if name in self._touched:
                self._entries.pop(self._touched.pop(name), None)

    def forget(self, study: Study) -> None:
        self._entries.pop(study.id, None)

    def _entry(self, study: Study) -> _Entry:
        entry = self._entries.get(study.id)
        if entry is None:
            entry = self._entries[study.id] = _Entry(Tuner(study.spec))
            if len(self._entries) > MOST_TUNERS:
                self._entries.popitem(last=False)
        self._entries.move_to_end(study.id)
        return entry
