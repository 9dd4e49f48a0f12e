"""`hpo agent` and its command as real processes: whatever ends the agent ends the command, and shows it no secret."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import create, ends, wait_for

# A command that does not want to end, nor do its child, one in a session of its own, and one that is a daemon.
STUBBORN = """
    import os, signal, sys, time
    folder = sys.argv[1]
    def live(name):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        open(os.path.join(folder, name + ".new"), "w").write(str(os.getpid()))
        os.rename(os.path.join(folder, name + ".new"), os.path.join(folder, name + ".pid"))
        time.sleep(600)
    if os.fork() == 0:
        live("child")
    if os.fork() == 0:
        os.setsid()
        live("session")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            live("daemon")
        os._exit(0)
    os.wait()
    live("command")
"""
PROCESSES = 4


@pytest.fixture
def stubborn(tmp_path):
    path = tmp_path / "stubborn.py"
    path.write_text(textwrap.dedent(STUBBORN))
    return path


def pids_in(folder):
    return [int(file.read_text()) for file in folder.glob("*.pid")]


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process):
    """Of all its threads: each trial has its own."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/stat") as stat:
            if int(stat.read().rpartition(")")[2].split()[1]) == process.pid:
                found.append(int(pid))
    return found


def run_stubborn(start, stubborn, tmp_path, name):
    agent = start("hpo_service", "agent", name, "--", sys.executable, str(stubborn), str(tmp_path))
    wait_for(lambda: len(pids_in(tmp_path)) == PROCESSES)
    return agent, pids_in(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_told_to_leave_it_ends_the_command_before_it_hands_the_trial_back(
    hpo, start, stubborn, tmp_path, number
) -> None:
    name = f"left-by-{number.name.lower()}"
    create(hpo, name, trials=1)
    agent, pids = run_stubborn(start, stubborn, tmp_path, name)
    agent.send_signal(number)
    still_held = True
    while still_held:
        running = [pid for pid in pids if is_there(pid)]
        still_held = hpo.trial(name, 0)["state"] == "RUNNING"  # read after: what is told now was true then
        assert still_held or not [pid for pid in running if is_there(pid)]
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0
    assert ends(hpo, name, 0) == [(1, "released")]


@pytest.mark.slow
def test_killed_it_takes_the_command_along_with_all_it_has_started(hpo, start, stubborn, tmp_path):
    create(hpo, "killed", trials=1)
    agent, pids = run_stubborn(start, stubborn, tmp_path, "killed")
    agent.kill()
    wait_for(lambda: not any(map(is_there, pids)))
    agent.communicate()


@pytest.mark.slow
def test_its_watchdog_killed_the_command_ends_too_and_the_trial_fails(hpo, start, stubborn, tmp_path):
    create(hpo, "unwatched", trials=1)
    agent, pids = run_stubborn(start, stubborn, tmp_path, "unwatched")
    command = int((tmp_path / "command.pid").read_text())
    (watchdog,) = children(agent)
    os.kill(watchdog, signal.SIGKILL)
    wait_for(lambda: not is_there(command))
    for pid in pids:  # the others have nobody left who knows of them
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert hpo.trial("unwatched", 0)["reason"] == "killed by SIGKILL"


@pytest.mark.slow
def test_a_closed_terminal_hands_the_trial_back(hpo, real_server, stubborn, tmp_path):
    create(hpo, "hung-up", trials=1)
    arguments = ["agent", "hung-up", "--server", real_server.url, "--", sys.executable, str(stubborn), str(tmp_path)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "hpo_service", *arguments])
    wait_for(lambda: len(pids_in(tmp_path)) == PROCESSES)
    os.close(terminal)
    wait_for(lambda: hpo.trial("hung-up", 0)["state"] == "WAITING")
    assert not any(map(is_there, pids_in(tmp_path)))
    assert ends(hpo, "hung-up", 0) == [(1, "released")]
    os.waitpid(pid, 0)


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_ends_nothing(hpo, start, real_server, tmp_path, go_on):
    create(hpo, "nohup", trials=1)
    waiting = f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.05)\nprint('{{\"value\": 1}}')"
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    agent = subprocess.Popen(
        [
            *(sys.executable, "-c", ignoring, sys.executable, "-m", "hpo_service"),
            *("agent", "nohup", "--server", real_server.url, "--", sys.executable, "-c", waiting),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: hpo.study("nohup")["counts"]["RUNNING"] == 1 and children(agent))
    agent.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    go_on.touch()
    _, errors = agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0, errors
    assert hpo.trial("nohup", 0)["values"] == [1.0]


@pytest.mark.slow
def test_neither_its_environment_nor_that_of_those_above_it_shows_the_command_a_secret(hpo, real_server, tmp_path):
    create(hpo, "secrets", trials=1)
    secrets = {
        "HPO_DATABASE_URL": "postgresql://hpo:hunter2@db/hpo",
        "HPO_TOKEN_FILE": "/nowhere/hunter2",
        "HPO_TOKEN": "hunter2",  # no key of ours: the server asks for none here
        "HPO_PRIVATE_KEY_HASH": "hunter2",
        "HPO_PARAM_Y": "hunter2",
        "PGPASSWORD": "hunter2",
        "PGPASSFILE": "/nowhere/hunter2",
    }
    look = (
        "import json, os\n"
        "watchdog = os.getppid()\n"
        "agent = int(open(f'/proc/{watchdog}/stat').read().rpartition(')')[2].split()[1])\n"
        "def seen(pid, what):\n"
        "    try: return open(f'/proc/{pid}/{what}', 'rb').read().decode(errors='replace')\n"
        "    except OSError as error: return type(error).__name__\n"
        "whole = [seen(pid, what) for pid in (os.getpid(), watchdog, agent) for what in ('environ', 'cmdline')]\n"
        "print(json.dumps({'value': 1, 'metrics': {'seen': whole, 'mine': dict(os.environ)}}))\n"
    )
    (tmp_path / "look.py").write_text(look)
    agent = subprocess.run(
        [sys.executable, "-m", "hpo_service", "agent", "secrets", "--", sys.executable, str(tmp_path / "look.py")],
        env={**os.environ, **secrets, "HPO_SERVER": real_server.url, "HPO_DATA": "/data", "MINE": "kept"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert agent.returncode == 0, agent.stderr
    told = hpo.trial("secrets", 0)["metrics"]
    assert len(told["seen"]) == 6, agent.stderr
    assert "agent" in told["seen"][5]
    assert not [text for text in told["seen"] if "hunter2" in text]
    mine = told["mine"]
    assert {name for name in mine if name.startswith("HPO_")} == {
        *("HPO_SERVER", "HPO_DATA", "HPO_STUDY", "HPO_TRIAL", "HPO_SEED", "HPO_PARAM_X", "HPO_CHECKPOINTS")
    }
    assert mine["MINE"] == "kept"


@pytest.mark.slow
def test_the_agent_still_has_its_key(tmp_path):
    """It is used with a server that asks for one."""
    database = ("--database", f"sqlite:///{tmp_path}/hpo.db")
    run = [sys.executable, "-m", "hpo_service"]
    made = subprocess.run(
        [*run, "token", "create", "--scope", "admin", "--json", *database], capture_output=True, check=True
    )
    token = json.loads(made.stdout)["token"]
    server = subprocess.Popen([*run, "serve", "--port", "0", "--json", *database], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["url"]
        (tmp_path / "key").write_text(token)
        file = tmp_path / "study.json"
        file.write_text(
            json.dumps(
                {"name": "s", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}, "limits": {"trials": 4}}
            )
        )
        around = {**os.environ, "HPO_SERVER": address}
        with_key = {**around, "HPO_TOKEN": token}
        subprocess.run([*run, "study", "create", str(file)], env=with_key, check=True, capture_output=True)
        command = ["agent", "s", "--json", "--", "sh", "-c", 'echo "{\\"value\\": $HPO_PARAM_X}"']
        trained = subprocess.run([*run, *command], env=with_key, capture_output=True, check=True)
        assert json.loads(trained.stdout) == {"trials": {"COMPLETE": 4}}
        from_file = {**around, "HPO_TOKEN_FILE": str(tmp_path / "key")}
        subprocess.run([*run, *command], env=from_file, capture_output=True, check=True)
        assert subprocess.run([*run, *command], env=around, capture_output=True).returncode == 4
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE_SECONDS)


ENDINGS = {
    "sh -c 'exit 7'": "exit code 7",
    "sh -c 'kill -SEGV $$'": "killed by SIGSEGV",
    "sh -c 'kill -KILL $$'": "killed by SIGKILL",
    "sh -c 'kill -TERM $$'": "killed by SIGTERM",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ENDINGS)
def test_a_trial_says_how_its_command_ended(hpo, start, command):
    name = "ended-" + ENDINGS[command].split()[-1].lower()
    create(hpo, name, trials=1)
    agent = start("hpo_service", "agent", name, "--", "sh", "-c", command.removeprefix("sh -c ").strip("'"))
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert hpo.trial(name, 0)["reason"] == ENDINGS[command]


@pytest.mark.slow
def test_a_program_that_is_not_there_says_so(hpo, start):
    hpo.create_study(
        "absent", search_space={"p": {"type": "categorical", "choices": ["/no/such"]}}, limits={"trials": 1}
    )
    start("hpo_service", "agent", "absent", "--", "{p}").communicate(timeout=PATIENCE_SECONDS)
    assert hpo.trial("absent", 0)["reason"] == "exit code 127: hpo: /no/such cannot be run: No such file or directory"


@pytest.mark.slow
def test_what_a_command_leaves_running_ends_with_its_trial_and_its_result_counts(hpo, start, tmp_path):
    create(hpo, "leftovers", trials=1)
    leave = f"setsid sh -c 'echo $$ > {tmp_path}/left.pid; exec sleep 600' & echo '{{\"value\": 0.5}}'; sleep 0.3"
    agent = start("hpo_service", "agent", "leftovers", "--", "sh", "-c", leave)
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert hpo.trial("leftovers", 0)["values"] == [0.5]
    assert not is_there(int((tmp_path / "left.pid").read_text()))


@pytest.mark.slow
def test_a_pipe_that_breaks_ends_a_command_as_it_does_in_a_shell(hpo, start):
    """Python ignores SIGPIPE; what it starts must not."""
    create(hpo, "pipes", trials=1)
    agent = start("hpo_service", "agent", "pipes", "--", "sh", "-c", "yes | head -1; echo '{\"value\": 1}'")
    agent.communicate(timeout=PATIENCE_SECONDS)
    assert hpo.trial("pipes", 0)["values"] == [1.0]
