"""HPO_* variables: a name that is no setting is refused by every command, and the doctor shows those in force."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo_service import environment
from hpo_service.cli import COMMANDS, COMMANDS_THAT_TRAIN, GROUPS
from hpo_service.domain.key import draw, hash_of
from hpo_service.settings import Settings
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
Hpo = Callable[..., Any]


@pytest.fixture(autouse=True)
def _in_a_shell_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HPO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


EVERY_COMMAND = [
    *([name, "x"] for name in COMMANDS if name != "serve"),
    ["serve", "--port", "0"],
    *([name] for name in COMMANDS_THAT_TRAIN),
    *([name, "list"] for name in GROUPS),
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", EVERY_COMMAND, ids=lambda words: words[0])
def test_every_command_refuses_a_name_that_is_no_setting(
    hpo: Hpo, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("HPO_RATE_LIMT", "5")
    ended = hpo(*(arguments if arguments[0] != "doctor" else ["doctor"]))
    assert ended.code == 2
    assert "HPO_RATE_LIMT is no setting of hpo, but HPO_RATE_LIMIT is" in ended.err + ended.out
    assert "unset HPO_RATE_LIMT" in ended.err + ended.out


@pytest.mark.slow
def test_the_worker_alone_refuses_it_too() -> None:
    surroundings = {**os.environ, "HPO_TOKN": "x"}
    command = [sys.executable, "-m", "hpo_worker", "--study", "x"]
    done = subprocess.run(
        command, env=surroundings, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 2
    assert "HPO_TOKEN is" in done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HPO_DATABASE", "but HPO_DATABASE_URL is"),
        ("HPO_CONECTIONS", "but HPO_CONNECTIONS is"),
        ("HPO_TOKENFILE", "but HPO_TOKEN_FILE is"),
        ("hpo_rate_limit", "but HPO_RATE_LIMIT is"),
        ("Hpo_Server", "but HPO_SERVER is"),
        ("HPO_HOST", "unset it"),
        ("HPO_SOMETHING_OF_CI", "unset it"),
        ("HPO_", "unset it"),
    ],
)
def test_the_name_that_was_meant_is_told_if_one_is_near(name: str, says: str) -> None:
    (said,) = environment.faults({name: "x"})
    assert said.startswith(f"{name} is no setting of hpo")
    assert says in said


@pytest.mark.parametrize(
    "name",
    [
        *("HPO_PORT", "HPO_WORKER_PROCESSES", "HPO_STUDY", "HPO_PARAM_LR", "HPO_PARAM_", "HPO_DRILL_SEED"),
        *("HPOX", "XHPO_FOO", "hpo", "SHPO_FOO", "OTEL_SERVICE_NAME"),
    ],
)
def test_what_is_known_or_nobody_s_business_is_left_alone(name: str) -> None:
    assert environment.faults({name: "x"}) == []


def test_an_empty_variable_is_as_good_as_none(hpo: Hpo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPO_TOKEN", "HPO_TOKEN_FILE", "HPO_SERVER", "HPO_DATABASE_URL", "HPO_RATE_LIMIT", "HPO_FOO"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct()
    assert hpo("token", "list", "--json").out == '{\n  "items": []\n}\n'
    assert Path("hpo.db").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HPO_RATE_LIMIT", value) for value in ("abc", "-1", "nan", "inf", "1e9", "5/s", "\udcff")),
        *(("HPO_CONNECTIONS", value) for value in ("0", "1.5", "many")),
        *(("HPO_IDLE_SECONDS", value) for value in ("0", "86401", "1.5")),
        *(("HPO_HEAD_SECONDS", value) for value in ("0", "-1", "nan", "10s")),
        ("HPO_READING_PROCESS", "maybe"),
        ("HPO_PRIVATE_KEY_HASH", "not-a-hash"),
        *(("HPO_DATABASE_URL", value) for value in (" sqlite:///x.db", "sqlite:///x.db\n", "sqlite://", "nonsense")),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_the_server_with_its_name(
    hpo: Hpo, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ended = hpo("serve", "--port", "0")
    assert (ended.code, ended.out) == (2, "")
    assert name in ended.err or name == "HPO_DATABASE_URL"
    assert "Traceback" not in ended.err
    assert "not-a-hash" not in ended.err
    assert list(Path().glob("x.db*")) == []


def test_whoever_asks_for_help_gets_it(hpo: Hpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_FOO", "x")
    assert hpo("--help").code == 0
    assert hpo("serve", "--help").code == 0
    assert hpo("--version").code == 0
    assert hpo("agent", "study", "--", "echo", "--help").code == 2


def found_by_the_doctor(hpo: Hpo, *arguments: str) -> dict[str, tuple[str, str]]:
    ended = hpo("doctor", "--json", *arguments)
    return {each["what"]: (each["state"], each["detail"]) for each in json.loads(ended.out)["items"]}


@pytest.mark.slow
def test_the_doctor_shows_each_setting_and_where_it_comes_from_but_no_secret(
    hpo: Hpo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = draw()
    monkeypatch.setenv("HPO_TOKEN", token)
    monkeypatch.setenv("HPO_PRIVATE_KEY_HASH", hash_of(token))
    monkeypatch.setenv("HPO_RATE_LIMIT", "5")
    monkeypatch.setenv("HPO_SERVER", "http://user:password@127.0.0.1:9")
    found = found_by_the_doctor(hpo, "--database", f"sqlite:///{tmp_path}/here.db")
    assert found["HPO_RATE_LIMIT"] == ("ok", "5.0 (environment)")
    assert found["HPO_CONNECTIONS"] == ("ok", "2000 (default)")
    assert found["HPO_DATABASE_URL"] == ("ok", f"sqlite:///{tmp_path}/here.db (option)")
    assert found["HPO_SERVER"] == ("ok", "http://user:***@127.0.0.1:9 (environment)")
    assert found["HPO_TOKEN"] == ("ok", "set (environment)")
    assert found["HPO_DATA"] == ("ok", "not set")
    assert {f"HPO_{field.upper()}" for field in Settings.model_fields} <= set(found)
    shown = json.dumps(found)
    for secret in (token, token[4:], hash_of(token), "user:password"):
        assert secret not in shown


@pytest.mark.slow
def test_the_doctor_says_what_is_wrong_with_each_and_goes_on(hpo: Hpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_RATE_LIMIT", "abc")
    monkeypatch.setenv("HPO_CONNECTIONS", "10")
    monkeypatch.setenv("HPO_CONNECTION", "10")
    found = found_by_the_doctor(hpo)
    assert found["settings"][0] == found["HPO_RATE_LIMIT"][0] == "bad"
    assert "'abc'" in found["HPO_RATE_LIMIT"][1]
    assert found["HPO_CONNECTIONS"] == ("ok", "10 (environment)")
    assert found["python"][0] == "ok"


def test_every_name_that_code_and_pages_speak_of_is_in_the_table() -> None:
    places = [*ROOT.glob("hpo_service/**/*.py"), *ROOT.glob("worker/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    places += [*ROOT.glob("deploy/**/*"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docker-compose*.yml")]
    places += [ROOT / name for name in ("Dockerfile", "README.md", "SECURITY.md", "CHANGELOG.md", "Makefile")]
    spoken_of = {
        name
        for place in places
        if place.is_file() and place != Path(__file__)
        for name in re.findall(r"\bHPO_[A-Z0-9_]*[A-Z0-9]", place.read_text(encoding="utf-8"))
    }
    assert len(spoken_of) > 25
    unknown = {name: said for name in spoken_of if (said := environment.faults({name: "x"}))}
    assert {name for name in unknown if f"{name}_" not in environment.FAMILIES} == set()
