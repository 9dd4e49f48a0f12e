"""How many of the trials asked for fit into one answer."""

from __future__ import annotations

from hpo_service.domain.sizes import size_of
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial


class AnswerBudget:
    """Of one answer to an ask: of large trials it has room for fewer than asked for, but always for one."""

    def __init__(self, study: Study, most_bytes: int) -> None:
        self._study = study
        self._left = most_bytes
        self._trials = 0
        self._objective = 0

    def has_room_for(self, trial: Trial) -> bool:
        self._trials += 1
        if self._trials == 1:
            return True  # as most asks are for one; it need not be measured
        if self._trials == 2:
            self._objective = size_of(self._study.spec.objective)
            self._left -= self._objective
        self._left -= self._objective + size_of(trial.params)
        return self._left >= 0
