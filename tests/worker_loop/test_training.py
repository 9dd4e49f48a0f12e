"""A worker in this process against the stand-in: what it reports and tells, and what faults do not change."""

from __future__ import annotations

import random
import time

import pytest

from hpo_service.client import NEVER, Client, Forbidden
from hpo_worker.datasets import DatasetDiffers, DatasetError, load
from hpo_worker.loop import Worker
from hpo_worker.objective import FailedTrial, NeuralNetwork
from hpo_worker.outbox import HeldJob, Outbox
from hpo_worker.side_by_side import extra_trials
from hpo_worker.trainer import TrialGroup
from tests.worker_loop.conftest import StandIn


def three_epochs(trial):
    for step in range(3):
        yield step, trial.params["x"] * step


def test_a_generator_is_reported_epoch_by_epoch_and_its_last_value_told(work, stand_in):
    assert work(three_epochs) == {"COMPLETE": 4}
    assert {number: told["values"] for number, told in stand_in.told.items()} == {
        0: [0.0],
        1: [0.2],
        2: [0.4],
        3: [pytest.approx(0.6)],
    }
    assert all(list(reports) == [0, 1, 2] for reports in stand_in.reports.values())


def test_a_function_reports_and_returns_its_value(work, stand_in):
    def objective(trial):
        assert trial.report(0.5, 0, {"loss": 1.5}) is False
        return (trial.params["x"],)

    assert work(objective) == {"COMPLETE": 4}
    assert stand_in.reports[2] == {0: {"step": 0, "value": 0.5, "metrics": {"loss": 1.5}}}
    assert stand_in.told[2]["values"] == [0.2]


def test_no_worker_rests_for_a_study_that_is_over_while_another_gives_out_trials(work, stand_in, monkeypatch):
    ask, rested_after = Client.ask, []

    def one_is_over(client, worker_id, study=None, **options):
        over = {"trials": [], "study_state": "COMPLETED"}
        return over if study == "over" else ask(client, worker_id, study, **options)

    monkeypatch.setattr(Client, "ask", one_is_over)
    monkeypatch.setattr(Worker, "_rest", lambda worker: rested_after.append(len(stand_in.told)))
    assert work(three_epochs, studies=("over", "s")) == {"COMPLETE": 4}
    assert set(rested_after) <= {4}


def test_what_was_told_of_fast_trials_took_one_call_each(work, stand_in):
    work(three_epochs)
    assert stand_in.count("batch") == 4


def test_an_objective_that_raises_makes_its_trial_fail_with_the_words_of_the_error(work, stand_in):
    def objective(trial):
        if trial.number == 1:
            raise ZeroDivisionError("no\n  luck")
        if trial.number == 2:
            raise SystemExit("I am off")
        if trial.number == 3:
            raise FailedTrial("word for word")
        return 0.5

    assert work(objective) == {"COMPLETE": 1, "FAIL": 3}
    reasons = [stand_in.told[number]["reason"] for number in (1, 2, 3)]
    assert reasons == ["ZeroDivisionError: no luck", "SystemExit: I am off", "word for word"]


def test_an_objective_without_a_value_fails(work, stand_in):
    assert work(lambda trial: None) == {"FAIL": 4}
    assert "returned no value" in stand_in.told[0]["reason"]


def test_values_that_do_not_fit_the_directions_fail_with_the_servers_words(work, stand_in):
    assert work(lambda trial: (1.0, 2.0)) == {"FAIL": 4}
    assert stand_in.told[0]["reason"] == "one direction, one value"


def test_a_value_that_is_not_a_number_is_told_as_it_is(work, stand_in):
    work(lambda trial: float("nan"))
    assert stand_in.told[0]["values"] == ["NaN"]


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "told"), [("pruned", "PRUNED"), ("stopped", "FAIL"), ("study_cancelled", "FAIL")])
def test_a_trial_that_is_to_stop_ends_after_the_epoch_it_is_in(work, stand_in, reason, told):
    stand_in.stops[2] = reason
    epochs = []

    def objective(trial):
        for step in range(10_000):
            yield step, 0.5
            if trial.number == 2:
                epochs.append(step)
                time.sleep(0.01)
            elif step == 1:
                return

    work(objective)
    assert stand_in.told[2]["state"] == told
    assert stand_in.told[2].get("reason") == (None if told == "PRUNED" else reason)
    assert len(epochs) < 1000
    assert max(stand_in.reports[2]) >= epochs[-1]


def test_a_function_that_never_looks_has_trained_to_its_end(work, stand_in):
    stand_in.stops[2] = "pruned"
    assert work(lambda trial: 0.5) == {"COMPLETE": 4}


@pytest.mark.slow
def test_a_lost_trial_is_dropped_and_asked_for_anew(work, stand_in):
    def objective(trial):
        if (trial.number, trial.attempt) == (1, 1):
            with stand_in.lock:  # the lease runs out, and nobody else is there
                del stand_in.running[1]
                stand_in.waiting.append(1)
            while not trial.report(0.5, 0):
                time.sleep(0.01)
        return 0.5

    assert work(objective) == {"COMPLETE": 4, "lost": 1}
    assert stand_in.told[1]["attempt"] == 2


def beats(stand_in, number):
    return [
        call
        for verb, body in stand_in.calls
        if verb == "batch"
        for call in body["calls"]
        if call["call"] == "heartbeat" and call["number"] == number
    ]


@pytest.mark.slow
def test_training_goes_on_while_the_server_is_away_and_everything_arrives(work, stand_in):
    away = [False]
    stand_in.fault = lambda verb, count: "away" if away[0] else None

    def objective(trial):
        away[0] = True
        for step in range(50):
            yield step, float(step)
            time.sleep(0.002)
        away[0] = False

    assert work(objective) == {"COMPLETE": 4}
    assert all(list(reports) == list(range(50)) for reports in stand_in.reports.values())


@pytest.mark.parametrize("seed", range(4))
def test_lost_answers_and_refusals_change_nothing(work, stand_in, seed):
    rng = random.Random(seed)
    stand_in.fault = lambda verb, count: rng.choice(["drop", "away", None, None])
    assert work(three_epochs) == {"COMPLETE": 4}
    assert sorted(stand_in.told) == [0, 1, 2, 3]
    assert set(stand_in.attempts.values()) == {1}
    assert all(list(reports) == [0, 1, 2] for reports in stand_in.reports.values())


def forget_what_was_sent(monkeypatch):
    calls = Outbox.calls

    def forgetful(self, now):
        due = calls(self, now)
        for job in self.jobs:
            job.reports.clear()
        return due

    monkeypatch.setattr(Outbox, "calls", forgetful)


def never_beat(monkeypatch):
    monkeypatch.setattr(HeldJob, "due_at", lambda job: job.sent_at if job.reports or job.result else job.sent_at + 1e6)


@pytest.mark.parametrize("sabotage", [None, forget_what_was_sent])
def test_what_the_client_has_given_up_on_is_sent_again(work, stand_in, monkeypatch, sabotage):
    """The sabotaged run shows that this test can fail."""
    stand_in.fault = lambda verb, count: "away" if verb == "batch" and stand_in.count("refused") < 2 else None
    if sabotage:
        sabotage(monkeypatch)
    monkeypatch.setattr("hpo_worker.heartbeat.PAUSE_SECONDS", 0.01)
    assert work(three_epochs, retries=NEVER) == {"COMPLETE": 4}
    everything = [list(stand_in.reports[number]) == [0, 1, 2] for number in range(4)]
    assert all(everything) is (sabotage is None)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [None, never_beat])
def test_a_lease_is_renewed_within_its_length(work, stand_in, monkeypatch, sabotage):
    """The sabotaged run shows that this test can fail."""
    stand_in.lease_seconds = 0.3
    if sabotage:
        sabotage(monkeypatch)

    def objective(trial):
        time.sleep(0.5)
        return 0.5

    work(objective)
    assert all(beats(stand_in, number) for number in range(4)) is (sabotage is None)


def test_a_drained_worker_leaves(work, stand_in):
    stand_in.drain = True
    assert work(three_epochs) == {}


def test_a_key_that_is_taken_away_ends_the_worker(work, stand_in, monkeypatch):
    def refuse(self, calls):
        raise Forbidden("the key was revoked")

    monkeypatch.setattr(Client, "batch", refuse)
    with pytest.raises(Forbidden):
        work(three_epochs)


def test_the_built_in_network_is_trained_and_a_loss_without_end_is_called_diverged(work, stand_in):
    stand_in.study["objective"] = {"kind": "neural_network", "samples": 100, "epochs": 2}
    stand_in.params[:] = [{"learning_rate": rate} for rate in (0.01, 0.1, 0.3, 1e5)]
    assert work(NeuralNetwork(None)) == {"COMPLETE": 3, "FAIL": 1}
    assert stand_in.told[3]["reason"] == "diverged"
    assert list(stand_in.reports[1]) == [1, 2]
    assert set(stand_in.reports[1][2]["metrics"]) == {"train_accuracy", "train_loss", "validation_loss"}


def test_the_sealed_test_is_taken_like_a_trial(work, stand_in):
    stand_in.study["objective"] = {"kind": "neural_network", "samples": 100, "epochs": 2}
    stand_in.params[:] = []
    stand_in.test = {
        "study": "s",
        "number": None,
        "objective": stand_in.study["objective"],
        "params": {"learning_rate": 0.1},
        "seed": 3,
        "ensemble": 2,
    }
    assert work(NeuralNetwork(None), studies=()) == {"tested": 1}
    told = stand_in.study["test"]
    assert told["state"] == "COMPLETE"
    assert len(told["members"]) == 2
    assert 0 <= told["test_accuracy"] <= 1
    assert len(told["dataset_sha256"]) == 64


def test_a_worker_without_the_data_hands_back_and_ends_a_study_that_nobody_has_data_for(work, stand_in, monkeypatch):
    monkeypatch.setattr("hpo_worker.loop.IDLE_SECONDS", 0.01)
    stand_in.study["objective"] = {"kind": "neural_network", "dataset": "nowhere"}
    stand_in.params[:] = [{}]
    stand_in.waiting[:] = [0]
    assert work(NeuralNetwork(None)) == {"released": 2, "FAIL": 1}
    assert "nowhere" in stand_in.told[0]["reason"]


def test_a_trial_without_its_data_that_is_gone_meanwhile_is_dropped(work, stand_in, monkeypatch):
    monkeypatch.setattr("hpo_worker.loop.IDLE_SECONDS", 0.01)
    stand_in.study["objective"] = {"kind": "neural_network", "dataset": "nowhere"}
    stand_in.params[:] = [{}]
    stand_in.waiting[:] = [0]
    stand_in.gone.add(0)
    release = stand_in._release

    def was_deleted(body):
        stand_in.told[0] = {}  # so that the study is over, and the worker may end
        return release(body)

    monkeypatch.setattr(stand_in, "_release", was_deleted)
    assert work(NeuralNetwork(None)) == {"lost": 1}


def group_of(stand_in, *rates, epochs=3, **objective):
    """A study of one shape, of which the first ask brings extra trials too."""
    stand_in.study["objective"] = {"kind": "neural_network", "samples": 100, "epochs": epochs, **objective}
    stand_in.study["search_space"] = {"learning_rate": {}}
    stand_in.study["limits"]["trials"] = 1000
    stand_in.params[:] = [{"learning_rate": rate} for rate in rates]


def asked(stand_in):
    """How many trials each ask was for, those left out that came after the last trial."""
    counts = [body["count"] for verb, body in stand_in.calls if verb == "ask"]
    return counts[:2]


def everything_told(stand_in):
    return {
        number: (told["state"], told.get("values"), told.get("reason"), list(stand_in.reports[number].values()))
        for number, told in stand_in.told.items()
    }


@pytest.mark.slow
def test_a_group_tells_what_each_trial_alone_would_tell(work, stand_in, monkeypatch):
    group_of(stand_in, 0.01, 1e5, 0.1, 0.3)
    assert work(NeuralNetwork(None)) == {"COMPLETE": 3, "FAIL": 1}
    assert asked(stand_in) == [1, 3]
    together = everything_told(stand_in)
    assert together[1][2] == "diverged"

    stand_in.told.clear()
    stand_in.waiting[:] = [0, 1, 2, 3]
    stand_in.study["sampler"]["name"] = "tpe"
    assert work(NeuralNetwork(None)) == {"COMPLETE": 3, "FAIL": 1}
    assert stand_in.attempts[0] == 2
    assert everything_told(stand_in) == together


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "why"),
    [
        ({"sampler": {"name": "tpe", "seed": 1}}, "its next draw learns from the results of this one"),
        ({"search_space": {"learning_rate": {}, "hidden_units": {}}}, "trials have different shapes"),
        ({"limits": {"trials": 4}}, "three are left, and each process shall find one"),
        (
            {"narrowing": {"rounds": 2, "trials_per_round": 1}, "rounds": [{"round": 0, "trials": 1}]},
            "the round is full",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_extra_trials_are_asked_for_where_that_does_harm(work, stand_in, study, why):
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=1)
    stand_in.study.update(study)
    for number in range(4, 9):
        stand_in.running[number] = 1  # other processes are at work
    assert work(NeuralNetwork(None)) == {"COMPLETE": 4}
    assert asked(stand_in) == [1, 1]


def test_two_processes_share_twenty_trials_down_to_the_last():
    """The processes take turns, each done with its group when it asks again."""
    held, left, groups = [0, 0], 20, []
    for turn in range(20):
        if left:
            held[turn % 2] = 0
            held[turn % 2] = 1 + extra_trials(left - 1, sum(held) + 1)
            left -= held[turn % 2]
            groups.append(held[turn % 2])
    assert groups == [4, 4, 3, 3, 2, 2, 1, 1]


def test_an_objective_of_the_users_own_trains_one_trial_at_a_time(work, stand_in):
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=1)
    held = []
    assert work(lambda trial: held.append(len(stand_in.running)) or 0.5) == {"COMPLETE": 4}
    assert held == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "told"), [("pruned", "PRUNED"), ("study_cancelled", "FAIL")])
def test_who_is_to_stop_leaves_the_group_and_the_others_go_on(work, stand_in, monkeypatch, reason, told):
    monkeypatch.setattr("hpo_worker.outbox.LONGEST_FLUSH", 0.02)
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=400)
    stand_in.stops[2] = reason
    assert sum(work(NeuralNetwork(None)).values()) == 4
    assert {number: each["state"] for number, each in stand_in.told.items()} == {
        **dict.fromkeys((0, 1, 3), "COMPLETE"),
        2: told,
    }
    assert len(stand_in.reports[2]) < 400
    assert next(iter(stand_in.told)) == 2
    assert all(len(stand_in.reports[number]) == 400 for number in (0, 1, 3))


@pytest.mark.slow
def test_a_group_that_loses_one_trial_finishes_the_others(work, stand_in, monkeypatch):
    monkeypatch.setattr("hpo_worker.outbox.LONGEST_FLUSH", 0.02)
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=400)
    report = StandIn._trial_report

    def lose_the_second(self, number, call):
        if (number, call["attempt"]) == (1, 1) and number in self.running:
            del self.running[1]  # its lease ran out
            self.waiting.append(1)
        return report(self, number, call)

    monkeypatch.setattr(StandIn, "_trial_report", lose_the_second)
    assert work(NeuralNetwork(None)) == {"COMPLETE": 4, "lost": 1}
    assert stand_in.attempts == {0: 1, 1: 2, 2: 1, 3: 1}


@pytest.mark.slow
def test_all_leases_of_a_group_are_kept(work, stand_in, monkeypatch):
    stand_in.lease_seconds = 0.3
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=1)
    train_epoch = TrialGroup.train_epoch

    def slow(group):
        time.sleep(0.6)
        return train_epoch(group)

    monkeypatch.setattr(TrialGroup, "train_epoch", slow)
    assert work(NeuralNetwork(None)) == {"COMPLETE": 4}
    assert all(beats(stand_in, number) for number in range(4))


@pytest.mark.slow
def test_a_group_that_fails_trains_its_trials_alone(work, stand_in, monkeypatch):
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05)
    train_epoch = TrialGroup.train_epoch

    def too_large(group):
        if len(group.members) > 1 and group.epoch == 1:
            raise MemoryError
        return train_epoch(group)

    monkeypatch.setattr(TrialGroup, "train_epoch", too_large)
    assert work(NeuralNetwork(None)) == {"COMPLETE": 4}
    assert all(list(reports) == [1, 2, 3] for reports in stand_in.reports.values())


def test_the_first_trial_binds_the_study_to_its_data_once(work, stand_in):
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, epochs=1)
    work(NeuralNetwork(None))
    assert stand_in.dataset_sha256 == load("mnist").sha256
    assert stand_in.count("heartbeat") == 1


def test_a_worker_with_other_data_trains_nothing_and_says_what_differs(work, stand_in):
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05)
    stand_in.dataset_sha256 = "1" * 64
    with pytest.raises(DatasetDiffers) as refusal:
        work(NeuralNetwork(None))
    assert all(word in str(refusal.value) for word in ("'mnist'", "1" * 64, load("mnist").sha256))
    assert stand_in.released == [(0, 1)]
    assert not any(stand_in.reports.values())
    assert stand_in.count("ask") == 1


def test_broken_files_cost_no_trial(work, stand_in, tmp_path):
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 cut off")
    group_of(stand_in, 0.01, 0.02, 0.03, 0.05, dataset="own")
    with pytest.raises(DatasetError, match=r"own\.npz: is not an \.npz file of plain arrays"):
        work(NeuralNetwork(tmp_path))
    assert stand_in.released == [(0, 1)]
    assert stand_in.told == {}
