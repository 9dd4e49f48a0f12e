"""Commands end with the contract's exit codes, say what is wrong in a line, and with --json print JSON alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hpo_service.cli.study_commands import StudyStateFilter
from hpo_service.domain.study import StudyState

MINE = """\
name = "{name}"
[search_space]
x = {{ type = "float", low = 0.0, high = 1.0 }}
{more}
"""
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def study(client, request):
    """A study of that test's own, removed afterwards."""
    name = request.node.name.replace("[", "-").replace("]", "").replace("_", "-")[:60].strip("-").lower()
    client.create({"name": name, "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}})
    yield name
    client.delete(name, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["study", "show", "nothing-of-that-name", "--server", "{server}"], 3, "nothing-of-that-name"),
        (["study", "pause", "nothing-of-that-name", "--server", "{server}"], 3, "nothing-of-that-name"),
        (["watch", "nothing-of-that-name", "--server", "{server}"], 3, "nothing-of-that-name"),
        (["study", "list", "--server", NOBODY], 5, "hpo serve"),
        (["study", "list", "--server", "nonsense"], 1, "is not a URL"),
        (["study", "list", "--state", "SLEEPING"], 2, "SLEEPING"),
        (["study", "create", "not-there.toml"], 1, "there is no such file"),
        (["plot", "x", "-o", "picture.jpeg"], 2, "ends in .png"),
        (["study", "limits", "x"], 2, "name a limit"),
        (["nonsense"], 2, "nonsense"),
        (["serve", "--no-auth", "--host", "0.0.0.0"], 2, "Leave out --no-auth"),
        (["serve", "--database", "oracle://x", "--port", "0"], 2, "oracle is not supported"),
        (["serve", "--database", "postgresql://u:secret@127.0.0.1:1/x", "--port", "0"], 1, "postgresql://u:***@"),
        (["db", "upgrade", "--database", "oracle://x"], 2, "oracle is not supported"),
        (["token", "create", "--scope", "write"], 2, "write"),
    ],
)
def test_a_mistake_ends_with_its_code_and_one_clear_message(arguments, code, says, hpo, server):
    ended = hpo(*(part.format(server=server) for part in arguments))

    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err


@pytest.mark.slow
def test_a_study_is_created_from_a_file_and_created_again_as_the_same(hpo, write, server, client):
    file = write("mine.toml", MINE.format(name="from-a-file", more=""))

    first = hpo("study", "create", str(file), "--server", server, "--json")
    again = hpo("study", "create", str(file), "--server", server, "--json")

    assert (first.code, again.code) == (0, 0)
    assert json.loads(first.out) == json.loads(again.out) == client.study("from-a-file")


def test_who_creates_a_study_is_told_the_commands_that_train_it_and_no_other(hpo, write, server):
    own = hpo("study", "create", str(write("own.toml", MINE.format(name="own", more=""))), "--server", server)
    assert f"hpo worker --server {server} --study own --until-done --objective package.module:function" in own.out
    assert f"hpo agent --server {server} own -- COMMAND" in own.out

    network = 'name = "net"\n[search_space]\nlearning_rate = { type = "float", low = 1e-6, high = 1e-2, log = true }\n'
    network += '[objective]\nkind = "neural_network"\n'
    built_in = hpo("study", "create", str(write("net.toml", network)), "--server", server)
    assert f"train its trials: hpo worker --server {server} --study net --until-done\n" in built_in.out


@pytest.mark.slow
def test_another_study_under_that_name_is_refused_with_what_differs(hpo, write, server):
    file = write("mine.toml", MINE.format(name="twice", more=""))
    hpo("study", "create", str(file), "--server", server)
    other = write("mine.toml", MINE.format(name="twice", more="[limits]\ntrials = 3"))

    ended = hpo("study", "create", str(other), "--server", server)

    assert ended.code == 1
    assert "another study 'twice' already (it differs in limits)" in ended.err
    assert "hpo study delete twice" in ended.err


def test_what_only_the_server_refuses_is_shown_at_its_line(hpo, write, server):
    more = '[sampler]\nname = "random"\nparams = { temperature = 3 }'
    file = write("mine.toml", MINE.format(name="refused", more=more))

    ended = hpo("study", "create", str(file), "--server", server)

    assert ended.code == 1
    assert "line 6: /sampler/params/temperature = 3" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "state"), [("pause", "PAUSED"), ("resume", "ACTIVE"), ("stop", "STOPPED"), ("cancel", "CANCELLED")]
)
def test_verbs_steer_a_study_and_print_it_as_it_reads(verb, state, study, hpo, server, client):
    if verb == "resume":
        client.pause(study)

    as_json = hpo("study", verb, study, "--server", server, "--json")
    in_words = hpo("study", verb, study, "--server", server)

    assert json.loads(as_json.out)["state"] == state
    assert f"study {study} is {state}" in in_words.out


def test_a_call_that_the_state_does_not_allow_is_an_error(study, hpo, server):
    ended = hpo("study", "test", study, "--server", server)

    assert ended.code == 1
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_list_is_json_items_and_a_table_for_people(study, hpo, server):
    items = json.loads(hpo("study", "list", "--server", server, "--json").out)["items"]

    assert study in [item["name"] for item in items]
    assert f"{study}  ACTIVE" in hpo("study", "list", "--server", server).out


def test_limits_are_raised_from_the_command_line(study, hpo, server):
    ended = hpo("study", "limits", study, "--trials", "7", "--server", server, "--json")

    assert json.loads(ended.out)["limits"]["trials"] == 7


@pytest.mark.slow
def test_a_study_with_results_is_shown_plotted_watched_narrowed_and_exported(study, hpo, server, client, tmp_path):
    trials = [{"params": {"x": n / 10}, "state": "COMPLETE", "values": [n / 10]} for n in range(10)]
    client.import_trials(study, trials)
    client.stop(study)
    picture, table = tmp_path / "p.png", tmp_path / "t.csv"

    assert "Best: trial 9, value 0.9" in hpo("study", "show", study, "--server", server).out
    assert hpo("plot", study, "-o", str(picture), "--server", server).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Best: trial 9" in hpo("watch", study, "--server", server).out
    assert json.loads(hpo("watch", study, "--server", server, "--json").out)["state"] == "STOPPED"
    exported = hpo("study", "export", study, "-o", str(table), "--server", server)
    assert exported.code == 0
    assert len(table.read_text().splitlines()) == 11


def test_the_next_round_is_told_with_its_ranges(study, hpo, server, client):
    client.import_trials(study, [{"params": {"x": 0.1}, "state": "COMPLETE", "values": [1.0]}])

    assert "round 1 of" in hpo("study", "narrow", study, "--server", server).out


@pytest.mark.slow
def test_advice_is_a_line_an_item_or_json(study, hpo, server, client):
    assert hpo("study", "advice", study, "--server", server).out == f"nothing to say of {study}\n"
    client.import_trials(study, [{"params": {"x": n / 30}, "state": "COMPLETE", "values": [n / 30]} for n in range(31)])
    said = hpo("study", "advice", study, "--server", server).out
    assert said == "edge: 4 of the best 5 trials crowd the upper end of x (1): search on to 2\n"
    items = json.loads(hpo("study", "advice", study, "--server", server, "--json").out)["items"]
    assert [item["code"] for item in items] == ["edge"]
    assert "crowd the upper end of x" in hpo("study", "show", study, "--server", server).out


@pytest.mark.slow
def test_the_best_are_confirmed_from_the_command_line(study, hpo, server, client):
    assert hpo("study", "confirm", study, "--server", server).code == 1  # it still searches
    trials = [{"params": {"x": n / 10}, "state": "COMPLETE", "values": [n / 10]} for n in range(4)]
    client.import_trials(study, trials)
    client.stop(study)

    asked = hpo("study", "confirm", study, "--top", "2", "--seeds", "2", "--server", server)
    assert "Confirming: the best 2 trials trained again, 2 times each; nothing is known yet." in asked.out
    assert "hpo worker" in asked.out
    again = hpo("study", "confirm", study, "--top", "2", "--seeds", "2", "--server", server, "--json")
    assert json.loads(again.out)["confirmation"]["state"] == "RUNNING"
    for given in client.ask("w", study, count=4)["trials"]:
        client.tell(study, given["number"], 1, "COMPLETE", values=[given["params"]["x"] + given["number"]])
    shown = hpo("study", "show", study, "--server", server).out
    assert "Confirmed: trial 2" in shown
    assert "Trial 3, the best told, had told 0.3" in shown
    assert hpo("study", "confirm", study, "--seeds", "1", "--server", server).code == 2


def test_a_study_without_results_has_no_picture(study, hpo, server, tmp_path):
    ended = hpo("plot", study, "-o", str(tmp_path / "p.png"), "--server", server)

    assert (ended.code, ended.err) == (1, f"hpo: {study} has no trial with a result to draw yet\n")


def test_a_deleted_study_is_gone(hpo, server, client):
    client.create({"name": "to-delete", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}})

    assert hpo("study", "delete", "to-delete", "--server", server).code == 0
    assert hpo("study", "show", "to-delete", "--server", server).code == 3


@pytest.mark.slow
def test_the_doctor_finds_nothing_bad_here(hpo, server, tmp_path):
    ended = hpo("doctor", "--database", f"sqlite:///{tmp_path}/new.db", "--server", server, "--json")

    states = {item["what"]: item["state"] for item in json.loads(ended.out)["items"]}
    assert (ended.code, set(states.values())) == (0, {"ok"})
    assert {"python", "database", "disk", "server", "mnist"} <= set(states)
    assert not (tmp_path / "new.db").exists()


@pytest.mark.slow
def test_the_doctor_names_a_database_that_is_away(hpo):
    ended = hpo("doctor", "--database", "postgresql://u:secret@127.0.0.1:1/x", "--server", NOBODY)

    assert ended.code == 1
    assert "bad" in ended.out
    assert "secret" not in ended.out


@pytest.mark.slow
def test_a_database_is_upgraded_and_upgrading_it_again_is_fine(hpo, tmp_path):
    database = f"sqlite:///{tmp_path}/new.db"

    assert hpo("db", "upgrade", "--database", database).code == 0
    assert json.loads(hpo("db", "upgrade", "--database", database, "--json").out)["upgraded"] is True


@pytest.mark.slow
def test_help_names_the_commands():
    done = subprocess.run([sys.executable, "-m", "hpo_service", "--help"], capture_output=True, text=True, check=True)

    assert "worker" in done.stdout


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    heavy = ("numpy", "matplotlib", "pydantic", "fastapi", "sqlalchemy", "structlog")
    code = f"import hpo_service.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_start_imports_only_what_every_server_needs():
    # SciPy is for the first study whose sampler needs it, Alembic for a database of another version.
    # Where scikit-learn is installed, Optuna's importances import it, and pandas with it: as long as all the rest.
    heavy = ("scipy", "cmaes", "alembic", "optuna.importance", "sklearn", "pandas")
    code = f"import hpo_service.api.app, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_the_states_that_a_list_is_filtered_by_are_those_of_a_study() -> None:
    assert [state.value for state in StudyStateFilter] == [state.value for state in StudyState]
