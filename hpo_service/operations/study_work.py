"""One study inside one transaction: every change of its trials goes through here, so that its counters stay true."""

from __future__ import annotations

from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.growing_space import without_draws
from hpo_service.domain.narrowing import Bounds, how_many_to_keep, narrow
from hpo_service.domain.objectives import built_in
from hpo_service.domain.sealed_test import SealedTest
from hpo_service.domain.sizes import GRANTED
from hpo_service.domain.study import Round, Study, StudySpec, StudyState
from hpo_service.domain.trial import AttemptEnd, EndReason, Lifecycle, Trial, TrialState, new_trial, trial_seed
from hpo_service.instruments import drawing
from hpo_service.operations.answer_budget import AnswerBudget
from hpo_service.operations.not_ready import NotReady, Wanted, draw_failed
from hpo_service.operations.tuners import Tuners
from hpo_service.reading.resources import why_paused
from hpo_service.store.record import StudyChange
from hpo_service.store.rows import counter_of_state
from hpo_service.store.transaction import Transaction
from hpo_service.tuning.tuner import DrawnParams, Exhausted, Tuner

KEEP_BY_HAND = 0.2


class StudyWork:
    """Made by `Service.work_on`, which expires leases; `update_and_save` comes at the end."""

    def __init__(self, transaction: Transaction, study: Study, tuners: Tuners) -> None:
        self.transaction = transaction
        self.study = study
        self.tuners = tuners
        self._as_saved = study
        self._rounds: dict[int, Round] = {}
        self._changed_rounds: set[int] = set()
        self._test_changed = False
        self._changed: dict[int, Trial] = {}
        self._noted = study.revision
        self._needs = tuners.needs(study)
        if self._needs.in_writer:
            tuners.apply_foreign_changes(transaction, study)

    # -- trials -------------------------------------------------------------------------------------------

    def change(self, before: Trial, lifecycle: Lifecycle, **fields: object) -> Trial:
        """Write the trial with its new lifecycle; count it; note how its attempt ended or that it goes on."""
        finishes = lifecycle.state.is_finished and not before.state.is_finished
        if finishes:
            fields["finished_at"] = self.transaction.now
            if self.study.spec.define_by_run:
                fields["system_attrs"] = without_draws(before.system_attrs)
        after = fast_replace(before, lifecycle=lifecycle, revision=self.study.revision + 1, **fields)
        self._count(after, counter_of_state(before.lifecycle), counter_of_state(lifecycle))
        if finishes:
            self._count_finished(after)
        self.transaction.save_trial(self.study, after)
        if finishes and after.replicate_of is not None:  # what the study's confirmation says has changed
            revision = self._next_revision()
            self.study = fast_replace(self.study, touched=revision)
        self._changed[after.number] = after
        if before.lifecycle.attempt == lifecycle.attempt > 0 and before.lifecycle.ended is not lifecycle.ended:
            self._note_end(after, before.lifecycle.ended, lifecycle.ended)
        return after

    def _note_end(self, trial: Trial, before: AttemptEnd | None, end: AttemptEnd | None) -> None:
        if end is not None and not (end is AttemptEnd.TOLD and trial.state.is_finished):
            self.transaction.end_attempt(self.study, trial, end)
        elif before is not None:
            self.transaction.resume_attempt(self.study, trial)

    def add(self, new: list[Trial]) -> list[Trial]:
        """Insert new trials under the next numbers."""
        return [self._add(trial) for trial in new]

    def _add(self, new: Trial, **fields: object) -> Trial:
        number, revision = self.study.next_number, self.study.revision + 1
        seed = new.seed if new.replicate_of is not None else self.seed(number)
        trial = fast_replace(new, number=number, seed=seed, revision=revision, **fields)
        self._count(trial, None, counter_of_state(trial.lifecycle), next_number=number + 1)
        self._changed[number] = trial
        if trial.state is TrialState.WAITING:
            self.transaction.note_waiting(self.study, trial)
        self.transaction.add_trial(self.study, trial)
        return trial

    def seed(self, number: int) -> int:
        return trial_seed(self.study.spec.sampler.seed or 0, number)

    def expire(self) -> None:
        """Take back the trials whose lease has run out."""
        if self.study.held:
            for trial in self.transaction.trials_with_expired_lease(self.study):
                self.expire_lease(trial)

    def expire_lease(self, trial: Trial) -> Trial:
        fail_as = self.fails_as(trial)
        attempts = self.study.spec.limits.attempts
        lifecycle = trial.lifecycle.expire(
            self.transaction.now, attempts, fail_as, self.transaction.outages(self.study)
        )
        return trial if lifecycle is None else self.change(trial, lifecycle)

    def release(self, trial: Trial, attempt: int) -> Trial:
        lifecycle = trial.lifecycle.release(attempt, self.fails_as(trial))
        return trial if lifecycle is None else self.change(trial, lifecycle)

    def bind(self, dataset_sha256: str | None, trial: Trial | None = None) -> None:
        """Bind the study to the data of its first trial that has reported or completed.

        trial: given if the call itself brings no report or result; then the trial's earlier reports count.
        """
        if dataset_sha256 is not None:
            shows = trial is None or len(self.transaction.curve(self.study, trial)) > 0
            self.study = self.study.bound_to(dataset_sha256, has_shown_a_value=shows)

    def fail_all_waiting(self, reason: EndReason) -> None:
        for trial in self.transaction.sql().trials.waiting(self.study):
            self.change(trial, trial.lifecycle.fail_waiting(reason))

    def fails_as(self, trial: Trial) -> str | None:
        """Why the trial ends as FAIL once nobody holds it; None: it is given out again."""
        stopped = EndReason.STOPPED if trial.stop == EndReason.STOPPED else None
        return self.study.state.reason_for_unfinished or stopped

    def note_failure(self, reason: str | None) -> None:
        """A trial was told as FAIL."""
        self.study = self.study.with_failure(self.transaction.now, reason)

    # -- giving out ---------------------------------------------------------------------------------------

    def give(self, count: int, worker_id: str) -> list[Trial]:
        """Give out up to `count` trials: replicates first, then retries, then enqueued ones, then sampled ones."""
        if not self.study.state.gives_out or self.study.sealed:
            return []
        waiting = self.study.confirmation.waiting if self.study.confirmation else 0
        of_the_search = self._may_give_of_the_search(count - min(count, waiting))
        if of_the_search > 0 and self._needs.slow_draws:
            self._check_draws(of_the_search)
        budget = AnswerBudget(self.study, GRANTED)
        given = self._give_replicates(min(count, waiting), worker_id, budget)
        given += (retries := self._give_retries(of_the_search, worker_id, budget))
        given += self._give_new(of_the_search - len(retries), worker_id, budget)
        return given

    def _may_give_of_the_search(self, count: int) -> int:
        limit = self.study.spec.limits.running
        if self.study.has_been_stopped:
            return 0
        return count if limit is None else max(0, min(count, limit - self.study.counts.running))

    def _give_replicates(self, count: int, worker_id: str, budget: AnswerBudget) -> list[Trial]:
        given: list[Trial] = []
        for trial in self.transaction.sql().trials.replicates_waiting(self.study, count) if count else []:
            if not budget.has_room_for(trial):
                break
            if trial.lifecycle.attempt:
                self.transaction.drop_reports(self.study, trial)
            given.append(self._begin(trial, worker_id, stop=None))
        return given

    def _give_retries(self, count: int, worker_id: str, budget: AnswerBudget) -> list[Trial]:
        if not self.study.counts.retries or not count:
            return []
        given = []
        for trial in self.transaction.sql().trials.retries(self.study, count):
            if not budget.has_room_for(trial):
                break
            self.transaction.drop_reports(self.study, trial)
            given.append(self._begin(trial, worker_id, stop=None))
        return given

    def _give_new(self, count: int, worker_id: str, budget: AnswerBudget) -> list[Trial]:
        count = min(count, self._new_trials_left())
        if count <= 0:
            return []
        given: list[Trial] = []
        if self.study.counts.queued:
            for trial in self.transaction.sql().trials.queued(self.study, count):
                drawn = self._draw(trial.number, trial)
                if drawn is None or not budget.has_room_for(drawn):
                    return given
                given.append(self._begin_new(drawn, worker_id))
        while len(given) < count:
            drawn = self._draw(self.study.next_number, None)
            if drawn is None or not budget.has_room_for(drawn):
                break
            given.append(self._begin_new(drawn, worker_id))
        return given

    def _new_trials_left(self) -> int:
        """How many trials may still be given out for the first time, now."""
        if self.study.limit_reached(self.transaction.now, self.best_for_target()):
            return 0
        limits, narrowing = self.study.spec.limits, self.study.spec.narrowing
        left = 2**31 if limits.trials is None else limits.trials - self.study.given_out
        current = self.round(self.study.round)
        if narrowing is not None and current.round + 1 < narrowing.rounds:
            left = min(left, narrowing.trials_per_round - current.trials)
        return left

    def _check_draws(self, count: int) -> None:
        """Raise NotReady, before anything has changed, when a slow draw was not computed before this call."""
        count = min(count - min(count, self.study.counts.retries), self._new_trials_left())
        queued = (
            self.transaction.sql().trials.queued(self.study, count) if count > 0 and self.study.counts.queued else []
        )
        wanted = [Wanted(trial.number, self.study.round, trial.params) for trial in queued]
        following = range(self.study.next_number, self.study.next_number + count - len(wanted))
        wanted += [Wanted(number, self.study.round, {}) for number in following]
        for each in wanted:
            ready = self.transaction.draws.get(each.number)
            if ready is None or ready.wanted != each:
                raise NotReady(self.study, tuple(wanted))
            if ready.drawn is None:
                return

    def _draw(self, number: int, queued: Trial | None) -> Trial | None:
        """The trial with its params; None when the search space is exhausted."""
        wanted = Wanted(number, self.study.round, {} if queued is None else queued.params)
        drawn = self._at_hand(wanted) if self._needs.slow_draws else self._drawn_now(wanted)
        if drawn is None:
            self.study = fast_replace(self.study, exhausted=True)
            return None
        if queued is None:
            return new_trial(self.study.name, number, drawn.params, drawn.system_attrs)
        return fast_replace(queued, params=drawn.params, system_attrs={**drawn.system_attrs, **queued.system_attrs})

    def _at_hand(self, wanted: Wanted) -> DrawnParams | None:
        ready = self.transaction.draws.get(wanted.number)
        if ready is None or ready.wanted != wanted:
            raise NotReady(self.study, (wanted,))
        drawn: DrawnParams | None = ready.drawn
        return drawn

    def _drawn_now(self, wanted: Wanted) -> DrawnParams | None:
        """Raise DrawFailed."""
        tuner = self.tuner() if self._needs.history else self.tuners.without_history(self.study)
        try:
            with drawing():
                return tuner.draw(wanted.number, self.round(wanted.round).search_space, wanted.fixed)
        except Exhausted:
            return None
        except Exception as error:
            raise draw_failed(self.study, wanted.number, error) from error

    def tuner(self) -> Tuner:
        """The study's tuner, knowing everything up to now."""
        self._show_tuner()
        return self.tuners.up_to_date(self.transaction, self.study)

    def _show_tuner(self) -> None:
        if not self._needs.in_writer:
            return
        self.tuners.note(self.transaction, self._noted, self.study, self._changed.values())
        self._changed.clear()
        self._noted = self.study.revision

    def _begin_new(self, trial: Trial, worker_id: str) -> Trial:
        current = self.round(self.study.round)
        first = trial.number if current.first_trial is None else current.first_trial
        self._put_round(fast_replace(current, trials=current.trials + 1, first_trial=first))
        self.study = fast_replace(self.study, given_out=self.study.given_out + 1)
        return self._begin(trial, worker_id, round=current.round)

    def _begin(self, trial: Trial, worker_id: str, **fields: object) -> Trial:
        lifecycle = trial.lifecycle.start_attempt(self.transaction.now, self.study.spec.lease_seconds)
        begun = {"worker_id": worker_id, "started_at": self.transaction.now, **fields}
        after = (
            self._add(trial, lifecycle=lifecycle, **begun)
            if trial.id is None
            else self.change(trial, lifecycle, **begun)
        )
        self.transaction.begin_attempt(self.study, after)
        return after

    # -- a search space that grows ------------------------------------------------------------------------

    def grow(self, spec: StudySpec) -> None:
        """Take the search space of this spec, which has more parameters; the study's ETag changes."""
        self.study = fast_replace(self.study, spec=spec)
        self._needs = self.tuners.needs(self.study)
        self.transaction.sql().save_search_space(self.study)
        self.touch()
        self._put_round(fast_replace(self.round(self.study.round), search_space=spec.search_space))

    # -- rounds -------------------------------------------------------------------------------------------

    def round(self, number: int) -> Round:
        if number not in self._rounds:
            self._rounds[number] = self.transaction.round(self.study, number)
        return self._rounds[number]

    def next_round(self, keep: float | None = None) -> Round:
        """Begin the next round around the best of all COMPLETE trials so far."""
        spec = self.study.spec
        if keep is None:
            keep = spec.narrowing.keep if spec.narrowing else KEEP_BY_HAND
        expand = spec.narrowing is not None and spec.narrowing.expand
        current = self.round(self.study.round)
        best = self.transaction.sql().trials.best(self.study, how_many_to_keep(keep, self.study.counts.complete))
        kept = [trial.params for trial in best]
        space, changes = narrow(spec.search_space, current.search_space, kept, expand=expand, bounds=_bounds(spec))
        following = Round(
            round=current.round + 1,
            search_space=space,
            from_trials=tuple(trial.number for trial in best),
            changes=tuple(changes),
            revision=self._next_revision(),
        )
        self.transaction.add_round(self.study, following)
        self._rounds[following.round] = following
        self._changed_rounds.add(current.round)  # its counts go from the study into its own row
        self.study = fast_replace(self.study, round=following.round)
        return following

    def _count_finished(self, trial: Trial) -> None:
        # Only automatic narrowing needs to know how many have finished.
        if trial.round is not None and self.study.spec.narrowing is not None:
            its_round = self.round(trial.round)
            self._put_round(fast_replace(its_round, finished=its_round.finished + 1))

    def _put_round(self, changed: Round) -> None:
        self._rounds[changed.round] = changed
        self._changed_rounds.add(changed.round)

    # -- the sealed test ----------------------------------------------------------------------------------

    def expire_test_lease(self, test: SealedTest) -> SealedTest:
        attempts = self.study.spec.limits.attempts
        lifecycle = test.lifecycle.expire(self.transaction.now, attempts, None, self.transaction.outages(self.study))
        return test if lifecycle is None else self.change_test(test, lifecycle)

    def change_test(self, test: SealedTest, lifecycle: Lifecycle, **fields: object) -> SealedTest:
        after = fast_replace(test, lifecycle=lifecycle, **fields)
        if lifecycle.state.is_finished and test.is_open:
            after = fast_replace(after, finished_at=self.transaction.now)
        self.transaction.sql().save_test(self.study, after)
        if lifecycle.ended is not test.lifecycle.ended:
            self.transaction.note_lease_end(self.study, "test", lifecycle.attempt, lifecycle.ended)
        self._test_changed = True
        revision = self._next_revision()
        self.study = fast_replace(self.study, touched=revision)
        return after

    # -- at the end ---------------------------------------------------------------------------------------

    def best_for_target(self) -> float | None:
        return None if self.study.spec.limits.target is None else self.transaction.sql().trials.best_value(self.study)

    def move_to(self, state: StudyState) -> None:
        """The study's own state changes; so does its ETag."""
        if state is not self.study.state:
            self.study = fast_replace(self.study, state=state)
            self.touch()

    def touch(self) -> None:
        revision = self._next_revision()
        self.study = fast_replace(self.study, version=self.study.version + 1, touched=revision)

    def update_and_save(self) -> Study:
        """Pause the study after failures, begin its next round or end it, if due; save it and note whom to wake."""
        if self.study.has_failed_too_often:
            self._pause_by_failures()
        best = self.best_for_target()
        state = self.study.next_state(self.transaction.now, best)
        if state is StudyState.ACTIVE and not self.study.sealed and self._round_is_over(best):
            self.next_round()
        self.move_to(state)
        if self._changed_rounds:
            for number in sorted(self._changed_rounds):
                self._save_round(fast_replace(self._rounds[number], revision=self.study.revision + 1))
            self._changed_rounds.clear()
        if self.study is not self._as_saved:
            self.transaction.save_study(self.study)
            # A report or a heartbeat changes nothing that anybody waits for.
            if self._test_changed or not self.study.differs_in_revision_only(self._as_saved):
                self.transaction.changes.append(StudyChange(self.study, self._rounds.get(self.study.round)))
            self._as_saved = self.study
        self._show_tuner()
        return self.study

    def _pause_by_failures(self) -> None:
        failures = self.study.failures
        assert failures is not None
        self.study = fast_replace(self.study, failures=fast_replace(failures, paused_because=why_paused(failures)))
        self.move_to(StudyState.PAUSED)

    def _save_round(self, changed: Round) -> None:
        if changed.round == self.study.round:
            self.study = fast_replace(
                self.study,
                revision=changed.revision,
                round_trials=changed.trials,
                round_finished=changed.finished,
                round_revision=changed.revision,
            )
            if changed.first_trial == self.transaction.round(self.study, changed.round).first_trial:
                self.transaction.count_in_round(self.study, changed)
                return
        else:
            self.study = fast_replace(self.study, revision=changed.revision)
        self.transaction.save_round(self.study, changed)

    def _round_is_over(self, best: float | None) -> bool:
        narrowing = self.study.spec.narrowing
        if narrowing is None or self.study.round + 1 >= narrowing.rounds:
            return False
        if self.study.is_confirming and self.study.search_is_over(self.transaction.now, best):
            return False  # it is ACTIVE for its replicates only
        current = self.round(self.study.round)
        return current.is_given_out(narrowing) and current.finished >= current.trials

    def _next_revision(self) -> int:
        self.study = fast_replace(self.study, revision=self.study.revision + 1)
        return self.study.revision

    def _count(self, trial: Trial, before: str | None, after: str | None, **also: object) -> None:
        """Give the study the trial's revision, and move the trial from counter `before` to counter `after`."""
        counted: dict[str, object] = {}
        if before != after and trial.replicate_of is None:
            counted["counts"] = self.study.counts.moved(before, after)
        elif before != after and self.study.confirmation is not None:
            counted["confirmation"] = self.study.confirmation.moved(before, after)
        self.study = fast_replace(self.study, revision=trial.revision, **counted, **also)


def _bounds(spec: StudySpec) -> Bounds:
    if (objective := built_in(spec.objective)) is not None:
        return objective.bounds
    return lambda name: (None, None)
