"""Whatever a command prints, its trial ends rightly: no older report ever takes the place of a result."""

from __future__ import annotations

import os
import sys

import pytest

from hpo_service.client import Client
from hpo_worker.command import CommandObjective
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.loop import Worker
from hpo_worker.outbox import Outbox
from tests.worker_loop.conftest import SOON, StandIn


@pytest.fixture
def stand_in():
    return StandIn([{"x": 0.5}])


@pytest.fixture
def run(server, stand_in):
    """Run this Python program as the command of the only trial; return what was told of it."""

    def run(program: str):
        outbox = Outbox()
        heartbeat = HeartbeatSender(Client(server, retries=SOON), outbox)
        heartbeat.start()
        objective = CommandObjective([sys.executable, "-c", program], ["x"], outbox)
        Worker(
            Client(server, retries=SOON), heartbeat, outbox, objective, worker_id="me", studies=["s"], until_done=True
        ).run()
        return stand_in.told[0]

    return run


def printing(*lines: str) -> str:
    return "\n".join(f"print({line!r})" for line in lines)


REPORT = '{"step": 0, "value": 0.9}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"value": -nan}', "NaN"),
        ('{"value": nan(0x8000)}', "NaN"),
        ('{"value": 1.#INF}', "Infinity"),
        ('{"value": 0.1, "epoch": 3}', 0.1),
        ('10/10 {"value": 0.1}', 0.1),
        ("{'value': np.float64(0.1)}", 0.1),
        ('{"value": "0.1"}', 0.1),
        ('\ufeff{"value": 0.1}\r', 0.1),
        ('\x1b[32m{"value": 0.1}\x1b[0m', 0.1),
    ],
)
def test_the_result_is_told_and_not_the_report_before_it(run, line, value):
    told = run(printing(REPORT, line))
    assert (told["state"], told["values"]) == ("COMPLETE", [value])


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ['{"value": oops}', '{"value": null}', '{"value": 0.1', '  "value": 0.1', '{"Value": 1}']
)
def test_a_line_that_is_not_understood_fails_the_trial_with_that_line(run, line, capfd):
    told = run(printing(REPORT, line))
    assert told["state"] == "FAIL"
    assert line.strip() in told["reason"]
    assert line in capfd.readouterr().err


@pytest.mark.parametrize("later", ['{"value": 0.1}', '{"step": 1, "value": 0.1}'])
def test_a_later_line_makes_up_for_one_that_was_not_understood(run, later):
    assert run(printing(REPORT, '{"value": oops}', later))["values"] == [0.1]


def test_a_result_that_is_followed_by_a_line_that_is_not_understood_is_none(run):
    assert run(printing('{"value": 0.1}', '{"value": oops}'))["state"] == "FAIL"


def test_a_result_on_standard_error_is_looked_for_elsewhere_and_said(run):
    told = run(printing(REPORT) + "\nimport sys; sys.stderr.write('INFO {\"value\": 0.1}\\n')")
    assert told["state"] == "FAIL"
    assert 'standard error, not on standard output: INFO {"value": 0.1}' in told["reason"]


def test_a_command_that_prints_nothing_of_ours_fails_with_words_that_help(run):
    told = run(printing("done"))
    assert (told["state"], '{"value": 0.9}' in told["reason"]) == ("FAIL", True)


def test_without_a_result_line_the_last_report_is_the_value(run):
    assert run(printing(REPORT, '{"step": 1, "value": 0.2}', "done"))["values"] == [0.2]


def test_bytes_of_any_encoding_and_a_last_line_without_an_end_are_read(run):
    told = run('import sys; sys.stdout.buffer.write(b\'caf\\xe9\\r\\n\\xff{"value": 0.1, "of": "caf\\xe9"}\')')
    assert (told["values"], told["metrics"]) == ([0.1], {"of": "caf\ufffd"})


def test_a_long_line_is_one_line(run):
    told = run("import json; print(json.dumps({'value': 0.1, 'metrics': {'curve': [0.123456789] * 15_000}}))")
    assert (told["values"], len(told["metrics"]["curve"])) == ([0.1], 15_000)


@pytest.mark.slow
def test_a_report_that_cannot_be_sent_is_not_understood(run):
    told = run("import json; print(json.dumps({'step': 0, 'value': 0.1, 'metrics': {'x': 'y' * 300_000}}))")
    assert told["state"] == "FAIL"
    assert "at most" in told["reason"]


def test_reports_come_while_the_command_runs_and_not_at_its_end(run, stand_in, tmp_path, monkeypatch):
    """Python holds back what it prints into a pipe, unless it is told not to."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    stand_in.study["pruner"] = {"name": "median", "params": {}}
    stand_in.stops[0] = "pruned"
    program = f"""
        import time
        print('{REPORT}')
        time.sleep(60)
        open({str(tmp_path / "ended")!r}, "w")
    """
    told = run("\n".join(line.strip() for line in program.splitlines()))
    assert told["state"] == "PRUNED"
    assert not os.path.exists(tmp_path / "ended")
