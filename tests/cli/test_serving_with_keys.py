"""`hpo serve` with its keys on, as real processes: what the first start shows, what `hpo token` changes meanwhile."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.first_key import FirstKeyFile, make_first_key
from hpo_service.cli.local_service import LocalService
from hpo_service.cli.own_training import Training
from hpo_service.client import NEVER, Client, Forbidden, Unauthenticated
from hpo_service.domain.errors import NotFound, Unavailable
from hpo_service.domain.key import Scope, draw
from hpo_service.operations import keys
from hpo_service.store import KeyTable
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

KEY = re.compile("hpo_[0-9A-Za-z]{36}")
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


class Serving:
    """`hpo serve` on a database; what it has said on stdout and stderr."""

    def __init__(self, fork: Fork, database: str, log: Path, *options: str, **environment: str) -> None:
        self.log = log
        environment = {"HPO_DATABASE_URL": database, "XDG_STATE_HOME": str(log.parent), **environment}
        self.process = fork("serve", "--port", "0", "--json", *options, errors=log, **environment)
        self.first_line = self.process.stdout.readline()
        assert self.first_line, log.read_text()
        self.url = json.loads(self.first_line)["url"]

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def complaints(self) -> list[str]:
        """What was said beside the lines that say how the server begins and ends."""
        return [line for line in self.said.splitlines() if '"level": "info"' not in line]

    @property
    def key_file(self) -> Path:
        return Path(json.loads(self.first_line)["key_file"])

    @property
    def first_key(self) -> str:
        return self.key_file.read_text().strip()

    def client(self, token: str) -> Client:
        return Client(self.url, token, retries=NEVER)

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


Serve = Callable[..., Serving]

# where the kind of database makes no difference
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def serve(fork: Fork, database_url: str, tmp_path: Path) -> Iterator[Serve]:
    started: list[Serving] = []

    def start(*options: str) -> Serving:
        started.append(Serving(fork, database_url, tmp_path / f"log-{len(started)}", *options))
        return started[-1]

    yield start
    for serving in started:
        serving.stop()


@pytest.fixture
def token(fork: Fork, database_url: str) -> Callable[..., Any]:
    """Run `hpo token` beside the server."""

    def run(*arguments: str) -> Any:
        command = fork("token", *arguments, "--json", HPO_DATABASE_URL=database_url)
        said, _ = command.communicate()
        assert command.returncode == 0
        return json.loads(said)

    return run


def eventually(holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def is_refused(client: Client, with_: type[Exception] = Unauthenticated) -> bool:
    try:
        list(client.studies())
    except with_:
        return True
    return False


@pytest.mark.slow
def test_the_first_start_makes_a_key_for_everything_once_and_puts_it_into_a_file_and_into_no_log(serve: Serve) -> None:
    first = serve()
    assert f"\nthe key for everything is in {first.key_file} (mode 0600)\n" in first.said
    assert first.key_file.stat().st_mode & 0o777 == 0o600
    assert KEY.fullmatch(first.first_key)
    with first.client(first.first_key) as client:
        client.create({"name": "mine", "search_space": SPACE})
        list(client.studies())
    first.stop()
    assert not KEY.search(first.said + first.first_line)

    again = serve()
    assert "key_file" not in again.first_line
    with again.client(first.first_key) as client:
        assert [study["name"] for study in client.studies()] == ["mine"]
    again.stop()
    assert not again.complaints
    assert not KEY.search(again.said)


@pytest.mark.slow
@on_sqlite
def test_on_a_terminal_it_shows_the_key_and_writes_none(database_url: str, tmp_path: Path) -> None:
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo_service", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=its,
        env={**os.environ, "HPO_DATABASE_URL": database_url},
    )
    os.close(its)
    try:
        assert process.stdout is not None
        assert not KEY.search(process.stdout.readline().decode())
        assert len(KEY.findall(os.read(ours, 4096).decode())) == 1
        assert list(tmp_path.glob("*.key*")) == []
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)
        os.close(ours)
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.slow
@on_sqlite
def test_what_is_in_a_file_of_that_name_stays_whatever_it_is(serve: Serve, tmp_path: Path) -> None:
    old = tmp_path / "hpo.db.key"
    old.write_text("of an earlier database\n")
    (tmp_path / "hpo.db.key-2").symlink_to(tmp_path / "elsewhere")
    serving = serve()
    assert serving.key_file == tmp_path / "hpo.db.key-3"
    assert old.read_text() == "of an earlier database\n"
    assert not (tmp_path / "elsewhere").exists()


@on_sqlite
def test_the_umask_neither_opens_nor_closes_the_keys_file(serve: Serve) -> None:
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            file = FirstKeyFile(f"sqlite:///{tempfile.gettempdir()}/{draw()}.db")
            file.write(draw())
        finally:
            os.umask(before)
        assert file.path is not None
        assert file.path.stat().st_mode & 0o777 == 0o600
        file.forget()
        assert file.path is None


@pytest.mark.slow
def test_where_the_key_cannot_be_kept_none_is_made_and_the_server_says_what_to_do(
    fork: Fork, postgres_url: str, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").touch()
    serving = Serving(fork, postgres_url, tmp_path / "log", XDG_STATE_HOME=str(tmp_path / "no-folder"))
    try:
        assert "no key was made, since" in serving.said
        assert "hpo token create --scope admin --file FILE" in serving.said
        assert "key_file" not in serving.first_line
        with serving.client(draw()) as client, pytest.raises(Unauthenticated):
            list(client.studies())
        table = KeyTable(postgres_url)
        assert keys.listed(table) == []
        table.close()
    finally:
        serving.stop()


def test_a_first_key_that_is_not_recorded_leaves_no_file(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    table = KeyTable(database_url)
    written: list[Any] = []

    def refused(statement: Any, *_: Any) -> None:
        written.extend(tmp_path.rglob("*.key"))
        raise Unavailable("the database is away")

    monkeypatch.setattr("hpo_service.store.key_table._row", refused)
    with pytest.raises(Unavailable):
        make_first_key(table, database_url)
    assert len(written) == 1
    assert list(tmp_path.rglob("*.key")) == []
    assert keys.listed(table) == []
    table.close()


@pytest.mark.slow
@on_sqlite
def test_without_a_key_nothing_is_answered_and_the_error_says_what_to_do(serve: Serve) -> None:
    serving = serve()
    with Client(serving.url, retries=NEVER) as client:
        assert client.version()
        assert client.healthz()
        assert client.readyz()
        with pytest.raises(Unauthenticated, match=r"HPO_TOKEN.*hpo token create"):
            list(client.studies())


@on_sqlite
def test_a_key_that_a_caller_puts_where_none_belongs_is_in_no_line_of_the_log(
    fork: Fork, database_url: str, tmp_path: Path
) -> None:
    serving = Serving(fork, database_url, tmp_path / "log", HPO_ACCESS_LOG="true")
    try:
        key = serving.first_key
        for path in (f"/page/{key}", f"/page/{key}%20x?token={key}"):
            request = urllib.request.Request(f"{serving.url}{path}", headers={"X-Request-Id": f"of {key}"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
            refused.value.close()
        assert eventually(lambda: serving.said.count('"event": "access"') == 2)
        assert serving.said.count("hpo_***") == 4
        assert key not in serving.said
    finally:
        serving.stop()


@on_sqlite
def test_a_caller_has_the_address_that_it_calls_from_whatever_it_writes(
    fork: Fork, database_url: str, tmp_path: Path
) -> None:
    """Else each wrong key would come from another one, and nobody would be slowed down."""
    claims = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Forwarded": "for=203.0.113.9"}
    serving = Serving(fork, database_url, tmp_path / "log", HPO_ACCESS_LOG="true", FORWARDED_ALLOW_IPS="*")
    try:
        request = urllib.request.Request(f"{serving.url}/healthz", headers=claims)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            assert answer.status == 200
        assert eventually(lambda: '"event": "access"' in serving.said)
        assert '"client": "127.0.0.1:' in serving.said
        assert "203.0.113.9" not in serving.said
    finally:
        serving.stop()


@pytest.mark.slow
def test_keys_are_made_and_ended_while_the_server_runs(serve: Serve, token: Callable[..., Any]) -> None:
    serving = serve()
    admin = serving.first_key
    with serving.client(admin) as client:
        client.create({"name": "mine", "search_space": SPACE})
        client.create({"name": "other", "search_space": SPACE})
    made = token("create", "--scope", "worker", "--study", "mine")
    with serving.client(made["token"]) as client:
        assert eventually(lambda: not is_refused(client))
        assert client.ask("w", "mine")["trials"]
        with pytest.raises(NotFound):
            client.ask("w", "other")
        with pytest.raises(Forbidden, match="needs one for admin"):
            client.pause("mine")
        token("revoke", made["id"])
        assert eventually(lambda: is_refused(client))
    assert not any(key in serving.said for key in (made["token"], made["token"][4:]))


@pytest.mark.slow
@on_sqlite
def test_a_key_ends_by_itself(serve: Serve, token: Callable[..., Any]) -> None:
    serving = serve()
    made = token("create", "--scope", "read", "--expires", "3s")
    with serving.client(made["token"]) as client:
        assert eventually(lambda: not is_refused(client))
        time.sleep(2)
        assert eventually(lambda: is_refused(client))


@pytest.mark.slow
def test_a_stream_and_an_ask_that_waits_end_with_their_key(serve: Serve, token: Callable[..., Any]) -> None:
    serving = serve()
    admin = serving.first_key
    with serving.client(admin) as client:
        client.create({"name": "mine", "search_space": SPACE})
        client.pause("mine")
    made = token("create", "--scope", "worker")
    ended: dict[str, float] = {}
    answers: list[Any] = []

    def follow() -> None:
        with serving.client(made["token"]) as client, pytest.raises(Unauthenticated):
            for _event in client.events("mine"):
                pass
        ended["stream"] = time.monotonic()

    def wait() -> None:
        with serving.client(made["token"]) as client:
            answers.append(client.ask("w", "mine", wait_seconds=30))
        ended["ask"] = time.monotonic()

    with serving.client(made["token"]) as client:
        assert eventually(lambda: not is_refused(client))
    threads = [threading.Thread(target=follow), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    token("revoke", made["id"])
    revoked_at = time.monotonic()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert set(ended) == {"stream", "ask"}
    assert max(ended.values()) - revoked_at < 15  # by itself the ask would wait for 30 s, and the stream for ever
    assert answers[0]["trials"] == []
    assert serving.said.count("\n") < 12  # where the first key is, and no complaint
    assert "Traceback" not in serving.said


@pytest.mark.slow
@on_sqlite
def test_no_auth_asks_nobody_and_makes_no_key(serve: Serve, token: Callable[..., Any]) -> None:
    serving = serve("--no-auth")
    with Client(serving.url, retries=NEVER) as client:
        assert list(client.studies()) == []
    assert not serving.complaints
    assert not KEY.search(serving.said)
    assert token("list") == {"items": []}


@pytest.mark.slow
def test_servers_that_start_at_once_on_a_new_database_draw_one_key(
    fork: Fork, postgres_url: str, tmp_path: Path
) -> None:
    serving: list[Serving] = []

    def start(number: int) -> None:
        serving.append(Serving(fork, postgres_url, tmp_path / f"{number}"))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    try:
        shown = [each.first_key for each in serving if "key_file" in each.first_line]
        assert (len(serving), len(shown), len(list(tmp_path.rglob("*.key*")))) == (3, 1, 1)
        for each in serving:
            with each.client(shown[0]) as client:
                assert list(client.studies()) == []
    finally:
        for each in serving:
            each.stop()


@pytest.mark.slow
@on_sqlite
def test_with_keys_it_listens_on_every_address(serve: Serve) -> None:
    assert serve("--host", "0.0.0.0").url.startswith("http://127.0.0.1:")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_keys_it_listens_to_this_machine_only(hpo: Callable[..., Any], host: str) -> None:
    ended = hpo("serve", "--no-auth", "--host", host)
    assert (ended.code, ended.out) == (2, "")
    assert f"{host} can be reached from other machines" in ended.err


# -- hpo token --------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new.db"


def test_a_key_alone_stands_on_stdout(hpo: Callable[..., Any], database: str) -> None:
    ended = hpo("token", "create", "--scope", "worker", "--label", "gpu box", "--database", database)
    assert ended.code == 0
    assert KEY.fullmatch(ended.out.strip())
    assert "shown this once" in ended.err
    assert ended.out.strip() not in ended.err


def test_json_says_all_of_a_key_and_the_list_all_but_the_key(hpo: Callable[..., Any], database: str) -> None:
    create = ("token", "create", "--scope", "worker", "--database", database, "--json")
    made = json.loads(hpo(*create, "--study", "b", "--study", "a", "--expires", "30d", "--label", "x").out)
    assert KEY.fullmatch(made.pop("token"))
    assert (made["scope"], made["studies"], made["label"], made["state"]) == ("worker", ["a", "b"], "x", "live")
    listed = hpo("token", "list", "--database", database, "--json")
    assert json.loads(listed.out) == {"items": [made]}
    shown = hpo("token", "list", "--database", database).out
    assert made["id"] in shown
    assert not KEY.search(shown)

    revoked = json.loads(hpo("token", "revoke", made["id"], "--database", database, "--json").out)
    assert revoked["state"] == "revoked"
    assert json.loads(hpo("token", "list", "--database", database, "--json").out)["items"] == [revoked]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["create", "--scope", "read", "--study", "No Name"], 2, "--study: 'No Name' names no study"),
        (["create", "--scope", "read", "--expires", "soon"], 2, "--expires: a whole number above 0"),
        (["create", "--scope", "read", "--label", "x" * 101], 2, "--label: at most 100"),
        (["create"], 2, "--scope"),
        (["revoke", "nothing"], 3, "hpo token list shows them"),
        (["revoke", draw()], 2, "revoked by its id"),
    ],
)
def test_a_mistake_makes_no_key(
    hpo: Callable[..., Any], database: str, arguments: list[str], code: int, says: str
) -> None:
    ended = hpo("token", *arguments, "--database", database)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert not KEY.search(ended.err)
    assert json.loads(hpo("token", "list", "--database", database, "--json").out) == {"items": []}


@pytest.mark.slow
def test_a_key_in_a_file_is_for_its_owner_and_made_once(hpo: Callable[..., Any], database: str, tmp_path: Path) -> None:
    file = tmp_path / "worker.key"
    create = ("token", "create", "--scope", "worker", "--file", str(file), "--database", database, "--json")
    assert json.loads(hpo(*create).out) == {"file": str(file), "created": True}
    first = file.read_text().strip()
    assert KEY.fullmatch(first)
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(hpo(*create).out)["created"] is False
    assert file.read_text().strip() == first

    table = KeyTable(database)
    live = keys.find_live(table, first)
    assert live is not None
    assert live.scope is Scope.WORKER
    keys.revoke(table, live.id)
    table.close()
    assert json.loads(hpo(*create).out)["created"] is True
    assert file.read_text().strip() != first

    file.write_text("my notes\n")
    refused = hpo(*create)
    assert refused.code == 1
    assert "is left as it is" in refused.err
    assert file.read_text() == "my notes\n"


@pytest.mark.slow
def test_a_live_key_of_another_kind_is_not_written_over(hpo: Callable[..., Any], database: str, tmp_path: Path) -> None:
    file = tmp_path / "some.key"
    into_it = ("--file", str(file), "--database", database)
    assert hpo("token", "create", "--scope", "admin", *into_it).code == 0
    before = file.read_text()
    for other in (("--scope", "worker"), ("--scope", "admin", "--study", "a")):
        refused = hpo("token", "create", *other, *into_it)
        assert refused.code == 1
        assert "holds a live key of another kind" in refused.err
    assert file.read_text() == before
    assert len(json.loads(hpo("token", "list", "--database", database, "--json").out)["items"]) == 1


@pytest.mark.slow
def test_a_file_that_cannot_be_written_costs_no_key(hpo: Callable[..., Any], database: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, says in (("absent/x.key", "cannot be written"), ("", "no ordinary file"), ("fifo", "no ordinary file")):
        ended = hpo("token", "create", "--scope", "read", "--file", str(tmp_path / name), "--database", database)
        assert (ended.code, ended.out) == (1, "")
        assert says in ended.err
    assert json.loads(hpo("token", "list", "--database", database, "--json").out)["items"] == []

    dangling = ("--file", str(tmp_path / "dangling"), "--database", database)
    assert hpo("token", "create", "--scope", "read", *dangling).code == 0
    assert (tmp_path / "dangling").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "nowhere").exists()  # the link gives way to a file; nothing is written through it


@pytest.mark.slow
def test_a_keys_file_that_others_may_read_is_told_of(hpo: Callable[..., Any], database: str, tmp_path: Path) -> None:
    file = tmp_path / "open.key"
    create = ("token", "create", "--scope", "read", "--file", str(file), "--database", database)
    assert hpo(*create).err == ""
    file.chmod(0o644)
    again = hpo(*create)
    assert again.code == 0
    assert "mode 0644" in again.err


@pytest.mark.slow
@on_sqlite
def test_a_command_without_a_key_ends_with_4_and_says_what_to_do(
    serve: Serve, hpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve()
    monkeypatch.delenv("HPO_TOKEN", raising=False)
    ended = hpo("study", "list", "--server", serving.url)
    assert ended.code == 4
    assert "HPO_TOKEN" in ended.err
    monkeypatch.setenv("HPO_TOKEN", draw()[:-1])
    mistyped = hpo("study", "list", "--server", serving.url)
    assert mistyped.code == 4
    assert "40 characters, not 39" in mistyped.err


@pytest.mark.slow
@on_sqlite
def test_the_doctor_says_whether_the_key_opens_the_door(
    serve: Serve, token: Callable[..., Any], hpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = serve()
    admin = serving.first_key

    def finding() -> tuple[str, str]:
        found = json.loads(hpo("doctor", "--server", serving.url, "--json").out)["items"]
        (key,) = [each for each in found if each["what"] == "key"]
        return key["state"], key["detail"]

    monkeypatch.delenv("HPO_TOKEN", raising=False)
    assert finding()[0] == "note"
    for shown, state, says in ((admin, "ok", "takes it"), (draw(), "bad", "revoked"), (admin[:-1], "bad", "39")):
        monkeypatch.setenv("HPO_TOKEN", shown)
        assert finding()[0] == state
        assert says in finding()[1]


@pytest.mark.slow
@on_sqlite
def test_the_server_of_hpo_run_knows_the_key_of_its_own_process_and_no_other(database_url: str, tmp_path: Path) -> None:
    with LocalService(database_url, tmp_path, lambda: False) as service:
        service.start_server()
        service.start_workers(Training().any_worker(1))
        with Client(service.url, service.token, retries=NEVER) as own:
            assert eventually(lambda: bool(list(own.workers())))
        for stranger in ("", draw()):
            with Client(service.url, stranger, retries=NEVER) as client, pytest.raises(Unauthenticated):
                list(client.studies())
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert "hpo_service" in listed
        assert service.token not in listed
    written = "".join(log.read_text() for log in (service.server_log, service.worker_log))
    assert not KEY.search(written)
    table = KeyTable(database_url)
    assert keys.listed(table) == []
    table.close()


def test_the_list_names_rows_that_are_no_keys(hpo: Callable[..., Any], database: str, tmp_path: Path) -> None:
    assert hpo("token", "create", "--scope", "read", "--database", database).code == 0
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("UPDATE hpo_keys SET id = char(27) || 'x', studies = '{}'")
    connection.close()
    listed = hpo("token", "list", "--database", database, "--json")
    assert json.loads(listed.out) == {"items": []}
    assert r"'\x1bx'" in listed.err
    assert "no list of names" in listed.err
