"""benchmarks/service.py measures what it says: its histories are the real ones, and a lost trial ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import processes
import pytest
from contestants import OptunaMemory, Worker
from core_share import CGROUPS, CannotBeHeld, held_to
from loads import RANDOM, TPE, Load, past_trials
from measured_rounds import Lost, Pace, Row, in_turns, quantile, stand
from optuna_history import fill, frozen, journal_with
from processes import TookTooLong, WorkerFailed, announced, calm, cpu_seconds, family_cpu_seconds, in_child
from service_report import keep, kept, merged, table
from side_by_side import PART, row
from worker_team import team

from tests.patience import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]
SIZE = 30
pytestmark = pytest.mark.slow


def parts(study: optuna.Study) -> list[tuple[Any, ...]]:
    """All of its trials but their dates and identities."""
    return [(t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values) for t in study.trials]


@pytest.fixture(params=["sqlite", "postgresql"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.storages.RDBStorage:
    if request.param == "sqlite":
        return optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    url: str = request.getfixturevalue("postgres_url")
    return optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))


def added_one_by_one(storage: optuna.storages.BaseStorage) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name="by Optuna", direction="maximize")
    study.add_trials(map(frozen, past_trials(TPE, SIZE)))
    return study


def test_a_history_put_into_optunas_tables_is_the_one_that_optuna_would_have_written(
    tables: optuna.storages.RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_history.ROWS_AT_ONCE", 7)
    theirs = added_one_by_one(tables)
    ours = optuna.create_study(storage=tables, study_name="by us", direction="maximize")

    fill(tables, "by us", past_trials(TPE, SIZE))

    assert len(ours.trials) == SIZE
    assert parts(ours) == parts(theirs)
    ours.tell(ours.ask(), 1.0)  # and goes on where the history ends
    assert ours.trials[-1].number == SIZE


def test_a_journal_written_at_once_is_the_one_that_optuna_would_have_written(tmp_path: Path) -> None:
    theirs = added_one_by_one(optuna.storages.InMemoryStorage())

    journal_with("by us", past_trials(TPE, SIZE), tmp_path / "journal.log")

    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    ours = optuna.load_study(study_name="by us", storage=optuna.storages.JournalStorage(journal))
    assert parts(ours) == parts(theirs)


class Forgetful(OptunaMemory):
    """Answers every tell, and keeps no second one."""

    def open(self, study: str, load: Load, place: int) -> Worker:
        worker = super().open(study, load, place)
        tell, told = worker.tell, iter(range(10**6))

        def forgetful_tell(value: float) -> None:
            if next(told) % 2 == 0:
                tell(value)

        worker.tell = forgetful_tell  # type: ignore[method-assign]
        return worker


@pytest.mark.parametrize(("contestant", "fails"), [(OptunaMemory(), False), (Forgetful(), True)])
def test_the_run_ends_when_a_contestant_does_not_have_what_it_was_told(contestant: OptunaMemory, fails: bool) -> None:
    with stand(contestant, RANDOM, 5, Pace(2, 10, 10.0)) as one:
        if fails:
            with pytest.raises(Lost, match="has 11 COMPLETE trials, when 5 were there and 11 were told"):
                in_turns([one], 1)
        else:
            in_turns([one], 2)
            assert [figures.trials for figures in one.rounds] == [10, 10]


def test_a_round_ends_in_time_though_trials_are_left() -> None:
    with stand(OptunaMemory(), RANDOM, 0, Pace(1, 10**9, 0.2)) as one:
        figures = one.round()

    assert 0 < figures.trials < 10**9


def test_what_goes_wrong_in_a_worker_is_said_and_nobody_stays_behind() -> None:
    before = set(children())
    with team(OptunaMemory(), Load("wrong", "no such sampler"), 1) as workers:
        (child,) = set(children()) - before
        with pytest.raises(WorkerFailed, match="no such sampler"):
            workers.open("0-study")

    assert child not in children()


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def test_what_takes_too_long_is_ended() -> None:
    before = children()

    with pytest.raises(TookTooLong):
        in_child(lambda: time.sleep(60), 0.1)

    assert children() == before


def test_a_server_that_ends_at_once_is_no_server() -> None:
    with pytest.raises(WorkerFailed, match="ended before it was ready"), announced([sys.executable, "-c", "pass"]):
        pass


def test_the_cpu_of_another_process_is_seen_at_once() -> None:
    busy = "x = 0\nprint('ready', flush=True)\nwhile True: x += 1"
    with announced([sys.executable, "-c", busy]) as (_, pid):
        before = cpu_seconds(pid)
        time.sleep(0.3)
        assert 0.02 < cpu_seconds(pid) - before < 0.6
        assert family_cpu_seconds(os.getpid()) >= cpu_seconds(os.getpid()) + cpu_seconds(pid) - 0.1


BUSY_CHILD = r"""
import subprocess, sys
busy = "import time\nwhile time.process_time() < 0.6: pass\nprint('ready', flush=True)\ntime.sleep(60)"
subprocess.Popen([sys.executable, "-c", busy]).wait()
"""


def test_what_a_reading_process_has_used_counts_for_its_server() -> None:
    with announced([sys.executable, "-c", BUSY_CHILD]) as (_, pid):
        assert family_cpu_seconds(pid) - cpu_seconds(pid) >= 0.5


def test_a_server_is_not_calm_while_its_family_works(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([0.0, 0.3, 0.3, 0.7, 0.7, 0.74, 9.0])
    monkeypatch.setattr(processes, "family_cpu_seconds", lambda pid: next(used))
    monkeypatch.setattr("processes.time.sleep", lambda seconds: None)
    calm(1)
    assert list(used) == [9.0]


def test_a_process_is_held_to_its_share_of_a_core_and_let_go_of() -> None:
    busy = "x = 0\nprint('ready', flush=True)\nwhile True: x += 1"
    with announced([sys.executable, "-c", busy]) as (_, pid):
        try:
            with held_to(0.1, pid):
                (group,) = CGROUPS.glob(f"**/hpo-benchmark-*-{pid}")
                began, before = time.monotonic(), cpu_seconds(pid)
                time.sleep(1.0)
                used = cpu_seconds(pid) - before
                assert 0 < used < 0.2 * (time.monotonic() - began)
        except CannotBeHeld as reason:
            pytest.skip(str(reason))
        assert not group.exists()


def test_quantiles_are_values_that_were_measured() -> None:
    hundred = [float(i) for i in range(1, 101)]
    assert [quantile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([7.0], 0.99) == 7.0


def measured(run: str, contestant: str, speed: float) -> Row:
    with stand(OptunaMemory(), RANDOM, 0, Pace(1, 2, 10.0)) as one:
        one.round()
        found = row(run, PART, one, "4 workers")
    figures = {**found.rounds[0], "trials_per_second": speed}
    return Row(run, PART, contestant, found.load, found.history, found.setting, (figures, figures))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_ratio_is_made_within_one_run_only(tmp_path: Path) -> None:
    old = [measured("monday", "service sqlite", 600), measured("monday", "optuna sqlite", 60)]
    new = [measured("tuesday", "service sqlite", 900)]
    keep(merged(old, new), tmp_path / "figures.json")

    head, _, *lines = table(PART, kept(tmp_path / "figures.json")).splitlines()
    at, speed = cells(head).index("SQLite service ÷ this"), cells(head).index("trials/s")

    assert [cells(line)[speed] for line in lines] == ["900", "60"]
    assert [cells(line)[at] for line in lines] == ["1", ""]
    assert cells(table(PART, old).splitlines()[-1])[at] == "10"


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}


def run(environment: dict[str, str], *options: str) -> str:
    command = [sys.executable, "benchmarks/service.py", "--rounds", "1", *options]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_contestants_are_measured_in_turns_kept_shown_and_drawn(plain: dict[str, str], tmp_path: Path) -> None:
    figures, picture = str(tmp_path / "figures.json"), tmp_path / "pictures" / "service.png"
    few = ("--history", "25", "--trials", "4", "--workers", "2", "--json", figures)

    shown = run(plain, *few, "--only", "service sqlite", "optuna", "--picture", str(picture)).splitlines()

    rows = json.loads(Path(figures).read_text())
    ours = ("service sqlite", "service sqlite, tell and ask in one call")
    names = (*ours, "optuna sqlite", "optuna journal", "optuna memory")
    assert [(r["load"], r["contestant"]) for r in rows] == [(load, n) for load in ("random", "tpe") for n in names]
    assert all(r["rounds"][0]["trials"] == 4 for r in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(plain, "--show", "--json", figures).strip().splitlines()[2:] == [line for line in shown if line]


SHORT = ("--load", "random", "--history", "0", "--sizes", "10", "30", "--trials", "4", "--seconds", "0.3")


def by_part(file: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for measured_row in json.loads(file.read_text()):
        found.setdefault(measured_row["part"], []).append(measured_row)
    return found


def test_growth_and_a_restart_are_measured(plain: dict[str, str], tmp_path: Path) -> None:
    run(plain, *SHORT, "--flat", "--only", "service sqlite", "--json", str(tmp_path / "figures.json"))

    found = by_part(tmp_path / "figures.json")
    assert [row["history"] for row in found["flat"]] == [10, 30] * 3
    assert all(0 < row["rounds"][0]["ready"] < row["rounds"][0]["first_ask"] for row in found["restart"])


def test_crowds_readers_and_a_second_server_are_measured(
    plain: dict[str, str], postgres_url: str, tmp_path: Path
) -> None:
    figures = ("--json", str(tmp_path / "figures.json"))
    run(plain, *SHORT, *figures, "--many", "6", "--reads-beside", "--only", "service sqlite")
    run(plain, *SHORT, *figures, "--two-servers", "--postgres", postgres_url)

    found = by_part(tmp_path / "figures.json")
    assert {part: len(rows) for part, rows in found.items()} == {"many workers": 1, "reads beside": 5, "two servers": 4}
    everything = found["reads beside"][-1]["rounds"][0]
    assert {key.removesuffix("_readings") for key in everything if key.endswith("_readings")} == {
        *("page", "study", "dashboard", "export")
    }
