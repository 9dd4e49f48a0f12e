"""One call's reads and writes inside a batch.

It reads its own changes first, then the study cache (`study_cache.py`), then SQL. Its changes stay here until the call
is kept, and are dropped if it is refused. Only a trial's reports and a tuner are changed in place: after a refusal they
are evicted, and read again. Work that needs SQL calls `transaction.sql()`, which first writes the pending rows, those
of the call itself inside of a savepoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.curve import Curve
from hpo_service.domain.errors import NotFound
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.outage import Outage
from hpo_service.domain.study import Round, Study
from hpo_service.domain.trial import AttemptEnd, HistoryTrial, Report, Trial, TrialState
from hpo_service.store.engine import raw
from hpo_service.store.outages import Beat, beat
from hpo_service.store.pending_rows import PendingRows, TrialKey
from hpo_service.store.record import Record, StudyChange
from hpo_service.store.study_cache import CachedStudy
from hpo_service.store.tables import answers
from hpo_service.store.trial_reports import KeptReport, TrialReports
from hpo_service.store.write_batch import WriteBatch


class Transaction:
    """One call's view of the record inside of its batch; `now` is the database's clock.

    draws: computed before the call, by trial number. changes: studies whose waiting callers are woken after the commit.
    changed_tuners: ids of the studies whose tuner has seen what this call has changed.
    """

    def __init__(self, batch: WriteBatch, draws: Mapping[int, Any]) -> None:
        self.now = batch.now
        self.draws = draws
        self.changes: list[StudyChange] = []
        self.changed_tuners: set[int] = set()
        self._batch = batch
        self._cache = batch.cache
        self._rows = PendingRows()
        self._studies: dict[int, Study] = {}
        self._rounds: dict[tuple[int, int], Round] = {}
        self._trials: dict[TrialKey, Trial] = {}
        self._reported: set[TrialKey] = set()  # trials whose reports were changed in the cache
        self._lease_ends: dict[tuple[int, int | str, int], AttemptEnd | None] = {}
        self._loaded: list[int] = []  # studies that came into the cache with changes of this call in them
        self.has_savepoint = False

    # -- the call as a whole ------------------------------------------------------------------------------

    def merge_into_batch(self) -> None:
        if self.has_savepoint:
            self._batch.connection.exec_driver_sql("RELEASE SAVEPOINT one_call")
        batch, cached = self._batch, self._cache.studies
        batch.add(self._rows)
        for study_id, study in self._studies.items():
            batch.saved_studies.add(study_id)
            if study_id in cached:
                cached[study_id].study = study
        for (study_id, number), round_ in self._rounds.items():
            if study_id in cached:
                cached[study_id].rounds[number] = round_
        for (study_id, _), trial in self._trials.items():
            batch.saved_trials_of.add(study_id)
            if study_id in cached:
                cached[study_id].store(trial)
        if self._lease_ends:
            batch.lease_ends.update(self._lease_ends)
        batch.changed_tuners |= self.changed_tuners

    def refuse(self) -> None:
        """Roll back this call only. Reports, which were changed in place, are evicted and read again when needed."""
        if self.has_savepoint:
            self._batch.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one_call")
            self._batch.connection.exec_driver_sql("RELEASE SAVEPOINT one_call")
        for study_id, number in self._reported:
            if study_id in self._cache.studies:
                self._cache.studies[study_id].drop_reports(number)
        for study_id in self._loaded:
            self._cache.forget(study_id)

    def sql(self) -> Record:
        """Write the pending rows, in a savepoint of this call, and return the SQL record. Raise WouldBlock."""
        connection = self._batch.connection
        if not self.has_savepoint:
            self._batch.flush()
            connection.exec_driver_sql("SAVEPOINT one_call")
            self.has_savepoint = True
        ids = self._rows.flush(connection, self._trial_id)
        for key, trial in self._trials.items():
            if trial.id is None:
                self._trials[key] = fast_replace(trial, id=ids.get(key) or self._cache.trial_id(*key))
        return Record(connection, self.now)

    def _trial_id(self, study_id: int, number: int) -> int | None:
        trial = self._trials.get((study_id, number))
        return self._cache.trial_id(study_id, number) if trial is None or trial.id is None else trial.id

    # -- studies ------------------------------------------------------------------------------------------

    def study(self, name: str) -> Study:
        found = self.find_study(name)
        if found is None:
            raise NotFound(f"there is no study {name!r}")
        return found

    def find_study(self, name: str) -> Study | None:
        known = self._cache.ids.get(name)
        if known is not None:
            if self._batch.cache_is_current(name):
                return self._studies.get(known) or self._cache.studies[known].study
            self._cache.forget(known)
        found = self.sql().find_study(name)
        if found is None:
            return None
        self._batch.locked_or_assumed_current.add(name)
        self._cached(found)
        return found

    def _cached(self, study: Study) -> CachedStudy:
        """The cached study, read from SQL when it is not in the cache."""
        cached = self._cache.studies.get(study.id)
        if cached is None:
            record = self.sql()
            cached = CachedStudy(study, {round_.round: round_ for round_ in record.rounds(study)})
            for trial in record.trials.in_state(study, TrialState.RUNNING):
                cached.store(trial)
            self._cache.add(cached)
            if self._studies or self._rounds or self._trials:
                self._loaded.append(study.id)
        return cached

    def save_study(self, study: Study) -> None:
        self._studies[study.id] = study
        self._rows.studies[study.id] = study
        self._cached(study)  # so that the next call finds it in the cache

    def delete_study(self, study: Study) -> None:
        self.sql().delete_study(study)
        self._cache.forget(study.id)

    def foreign_changes_since(self, study: Study, revision: int, with_reports: bool) -> list[HistoryTrial] | None:
        """What history_since would read, if the last foreign changes are exactly those since `revision`; else None."""
        before, after, changed = self._cached(study).foreign_changes
        if (before, after) != (revision, study.revision):
            return None
        return [
            trial.as_history(self.curve(study, trial).items() if with_reports and trial.state.is_finished else ())
            for trial in changed
            if trial.is_known_to_samplers
        ]

    # -- rounds -------------------------------------------------------------------------------------------

    def rounds(self, study: Study) -> list[Round]:
        changed = {number: round_ for (study_id, number), round_ in self._rounds.items() if study_id == study.id}
        return [round_ for _, round_ in sorted({**self._cached(study).rounds, **changed}.items())]

    def round(self, study: Study, number: int) -> Round:
        return self._rounds.get((study.id, number)) or self._cached(study).rounds[number]

    def add_round(self, study: Study, round_: Round) -> None:
        self.sql().add_round(study, round_)
        self._rounds[study.id, round_.round] = round_

    def count_in_round(self, study: Study, round_: Round) -> None:
        """Change the round in memory only: the counts of the current round are columns of the study, saved too."""
        self._rounds[study.id, round_.round] = round_

    def save_round(self, study: Study, round_: Round) -> None:
        self._rounds[study.id, round_.round] = round_
        self._rows.rounds[study.id, round_.round] = round_

    # -- trials -------------------------------------------------------------------------------------------

    def trial(self, study: Study, number: int) -> Trial:
        known = self._trials.get((study.id, number)) or self._cached(study).trials.get(number)
        return self.sql().trials.numbered(study, number) if known is None else known

    def add_trial(self, study: Study, new: Trial) -> None:
        key = (study.id, new.number)
        self._rows.new_trials[key] = self._trials[key] = new

    def save_trial(self, study: Study, trial: Trial) -> None:
        key = (study.id, trial.number)
        self._trials[key] = trial
        (self._rows.new_trials if key in self._rows.new_trials else self._rows.trials)[key] = trial

    def trials_with_expired_lease(self, study: Study) -> list[Trial]:
        """RUNNING trials whose lease has run out, or was set by a clock that has since stepped back.

        Not those that this call itself has changed.
        """
        lapsed = self._cached(study).lapsed(self.now, lambda: self.outages(study))
        return [trial for trial in lapsed if (study.id, trial.number) not in self._trials]

    # -- outages ------------------------------------------------------------------------------------------

    def outages(self, study: Study) -> tuple[Outage, ...]:
        """When the study's workers could not reach a server, through no fault of theirs. Raise WouldBlock."""
        return self._batch.outages(study.name)

    def beat(self) -> Beat:
        """Record that this server serves, and any outage of it before."""
        self._cache.outages = None
        self.sql()
        return beat(self._batch.connection, self._batch.time(), self._cache.uptime)

    # -- reports and attempts -----------------------------------------------------------------------------

    def reports(self, study: Study, trial: Trial) -> list[Report]:
        found = self._reports(study, trial).all()
        return self.sql().reports.of(trial) if found is None else found

    def curve(self, study: Study, trial: Trial) -> Curve:
        return self._reports(study, trial).curve

    def carried_reports(self, study: Study, trial: Trial) -> list[Report]:
        """The last reports, as many as a worker's answer carries."""
        kept = self._reports(study, trial)
        found = kept.carried()
        return self.sql().reports.of(trial, kept.first_step_carried()) if found is None else found

    def _reports(self, study: Study, trial: Trial) -> TrialReports:
        cached = self._cached(study)
        known = cached.reports.get(trial.number)
        if known is None:
            key = (study.id, trial.number)
            if key in self._rows.new_trials:
                known = TrialReports()
            else:
                record = self.sql()
                known = TrialReports(record.reports.kept(fast_replace(trial, id=self._trial_id(*key))))
            if trial.number in cached.trials or key in self._trials:
                self._put_reports(cached, key, known)
        return known

    def _put_reports(self, cached: CachedStudy, key: TrialKey, reports: TrialReports) -> None:
        cached.reports[key[1]] = reports
        cached.uncounted.add(key[1])
        self._reported.add(key)

    def put_reports(self, study: Study, trial: Trial, new: Mapping[int, KeptReport]) -> None:
        """By step; one value per step, the last one. Raise Invalid, TooLarge before anything is kept."""
        kept = self._reports(study, trial)
        kept.check(new)
        key = (study.id, trial.number)
        self._reported.add(key)
        self._cached(study).uncounted.add(trial.number)
        for step, report in new.items():
            kept[step] = report
            self._rows.reports[*key, step] = report

    def drop_reports(self, study: Study, trial: Trial) -> None:
        self.sql().reports.drop(trial)
        self.begin_attempt(study, trial)

    def begin_attempt(self, study: Study, trial: Trial) -> None:
        """An attempt begins without any reports."""
        self._put_reports(self._cached(study), (study.id, trial.number), TrialReports())

    def end_attempt(self, study: Study, trial: Trial, end: AttemptEnd) -> None:
        """Write how the trial's last attempt has ended: another one may follow."""
        attempt = trial.lifecycle.attempt
        self._rows.ended[study.id, trial.number, attempt] = (trial.worker_id, trial.started_at, self.now, end)
        self.note_lease_end(study, trial.number, attempt, end)

    def note_lease_end(self, study: Study, whose: int | str, attempt: int, end: AttemptEnd | None) -> None:
        """Count how the lease ended in the metrics, after the commit; None: it has not ended after all."""
        self._lease_ends[study.id, whose, attempt] = end

    def note_waiting(self, study: Study, trial: Trial) -> None:
        """Write since when a new trial waits, as attempt 0; real attempts begin with 1."""
        self._rows.ended[study.id, trial.number, 0] = ("", self.now, self.now, None)

    def resume_attempt(self, study: Study, trial: Trial) -> None:
        """Delete the end of the last attempt: it goes on after all, or ends as the trial does."""
        self._rows.ended[study.id, trial.number, trial.lifecycle.attempt] = None
        self.note_lease_end(study, trial.number, trial.lifecycle.attempt, None)

    # -- answers, by request_id ---------------------------------------------------------------------------

    def answer(self, call: str, request_id: str) -> Any | None:
        key = (call, request_id)
        known, before = self._batch.asked_before(key)
        if known:
            return before
        text = "SELECT answer FROM hpo_answers WHERE call = ? AND request_id = ?"
        found = raw(self._batch.connection, text, key)
        if found is None:
            return None
        return json.loads(found[0]) if isinstance(found[0], str) else found[0]

    def study_answered(self, call: str, request_id: str) -> Study | None:
        """The study whose trials were answered; None where that was deleted: then the answer is deleted, too."""
        record = self.sql()
        study = record.study_answered(call, request_id)
        if study is None:
            mine = sa.and_(answers.c.call == call, answers.c.request_id == request_id)
            self._batch.connection.execute(sa.delete(answers).where(mine))
        return study

    def remember_answer(self, study: Study, call: str, request_id: str, answer: Any) -> None:
        """Store the answer for repeated calls. It is not cached: repeats are rare, and an import's answer is large."""
        self._rows.answers[call, request_id] = (study.id, answer)

    # -- workers ------------------------------------------------------------------------------------------

    def is_draining(self, worker_id: str) -> bool:
        return self._batch.is_draining(worker_id)

    def drain_worker(self, worker_id: str) -> None:
        self.sql().workers.drain(worker_id)
        self._cache.draining = None
