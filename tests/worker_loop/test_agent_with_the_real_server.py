"""`hpo agent` on a real server: any command trains trials, and ends with them."""

from __future__ import annotations

import json
import os
import sys
import textwrap

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import create, ends, wait_for


@pytest.fixture
def program(tmp_path):
    """A training program in a file of its own, that knows nothing of this house."""
    path = tmp_path / "train.py"
    path.write_text(
        textwrap.dedent("""
            import json, os, sys, time
            what, x = sys.argv[1], float(sys.argv[2])
            assert os.environ["HPO_PARAM_X"] == sys.argv[2]
            print("starting", flush=True)
            if what == "fails" and os.environ["HPO_TRIAL"] == "1":
                print("out of memory", file=sys.stderr)
                sys.exit(3)
            for step in range(3):
                print(json.dumps({"step": step, "value": x * step}), flush=True)
            if what == "hangs":
                open(os.environ["GO_ON"] + ".pid", "w").write(str(os.getpid()))
                time.sleep(600)
            if what == "tells":
                print(json.dumps({"value": x, "metrics": {"f1": 0.5}}))
        """)
    )
    return path


@pytest.mark.slow
def test_a_command_trains_trials(hpo, start, program):
    create(hpo, "commanded", trials=4)
    command = (sys.executable, str(program), "tells", "{x}")
    agent = start("hpo_service", "agent", "commanded", "--workers", "2", "--json", "--", *command)
    output, errors = agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0, errors
    assert json.loads(output) == {"trials": {"COMPLETE": 4}}
    assert errors.count("starting") == 4
    for trial in hpo.trials("commanded"):
        assert trial["values"] == [trial["params"]["x"]]
        assert len(trial["reports"]) == 3
        assert trial["metrics"] == {"f1": 0.5}


@pytest.mark.slow
def test_a_command_that_fails_gives_its_last_words(hpo, start, program):
    create(hpo, "failing", trials=2)
    agent = start("hpo_service", "agent", "failing", "--", sys.executable, str(program), "fails", "{x}")
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0
    told = [(trial["state"], trial["reason"]) for trial in hpo.trials("failing")]
    assert told == [("COMPLETE", None), ("FAIL", "exit code 3: out of memory")]
    assert hpo.trial("failing", 0)["values"] == [2 * hpo.trial("failing", 0)["params"]["x"]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["leave", "stop"])
def test_a_command_ends_with_its_trial_and_with_the_agent(hpo, start, program, go_on, how):
    name = f"ended-by-{how}"
    create(hpo, name, trials=1)
    agent = start("hpo_service", "agent", name, "--", sys.executable, str(program), "hangs", "{x}")
    pid_file = go_on.with_suffix(".pid")
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    if how == "leave":
        agent.terminate()
    else:
        hpo.stop_trial(name, 0)
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    trial = hpo.trial(name, 0)
    if how == "leave":
        assert trial["state"] == "WAITING"
        assert ends(hpo, name, 0) == [(1, "released")]
    else:
        assert (trial["state"], trial["reason"]) == ("FAIL", "stopped")


@pytest.mark.slow
def test_an_unknown_placeholder_is_a_usage_error_and_nothing_is_asked(hpo, start, program):
    create(hpo, "misspelt", trials=1)
    agent = start("hpo_service", "agent", "misspelt", "--", sys.executable, str(program), "tells", "{y}")
    _, errors = agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 2
    assert "no parameter of this study" in " ".join(errors.replace("│", " ").split())
    assert hpo.study("misspelt")["counts"]["RUNNING"] == 0
    assert list(hpo.trials("misspelt")) == []
