"""Nothing that a caller sends is taken for a path, an address or a pickle: what it names is looked up in our tables.

While every place of every call is filled with such things, an audit hook of the interpreter notes what is opened,
connected to, started, or unpickled.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from hpo_worker.datasets import DatasetError, DatasetMissing, load

MARK = "q7z"  # in every payload, and in nothing else
PAYLOADS = (
    f"../../../../etc/{MARK}",
    f"/etc/{MARK}",
    f"file:///etc/{MARK}",
    f"http://127.0.0.1:9/{MARK}",
    f"sqlite:////tmp/{MARK}.db",
    f"{MARK}.module:function",
    f"\\\\127.0.0.1\\{MARK}",
    f"cos\nsystem\n(S'touch /tmp/{MARK}'\ntR.",
)
WATCHED = ("open", "os.", "shutil.", "socket.", "subprocess.", "urllib.", "pickle.", "sqlite3.", "import", "exec")
SHOULD_NOT_HAPPEN = ("socket.connect", "socket.getaddrinfo", "subprocess.", "urllib.", "pickle.find_class", "os.exec")


class Watch:
    """What the interpreter says it does, while switched on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._heard)  # for good: there is no way to take one back

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not event.startswith(WATCHED):
            return
        if event.startswith(SHOULD_NOT_HAPPEN) or any(MARK in str(argument) for argument in arguments):
            self.seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all strings, numbers and so on in a JSON value."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield from leaves(member, (*place, key))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from leaves(member, (*place, index))
    else:
        yield place


def replaced(value: Any, place: tuple[Any, ...], by: str) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = by
    return changed


def calls(api: Any) -> Iterator[tuple[str, str, Any]]:
    """Every call that the API describes, with each of its examples and each query."""
    document = api.get("/v1/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.endswith("/events"):
                continue  # does not end; its name is that of the study, as everywhere
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = schema.get("$ref", "").rpartition("/")[2]
            examples = schema.get("examples") or document["components"]["schemas"].get(name, {}).get("examples", [])
            for example in examples:
                if "wait_seconds" in example:
                    example["wait_seconds"] = 0
            queries = [given["name"] for given in operation.get("parameters", []) if given["in"] == "query"]
            yield method.upper(), path, (examples, queries)


def test_there_are_examples_to_fill(api: Any) -> None:
    bodies = [path for method, path, (examples, _) in calls(api) if examples]
    assert len(bodies) >= 10, bodies


@pytest.mark.slow
def test_nothing_that_is_sent_is_opened_called_started_or_unpickled(api: Any, watch: Watch) -> None:
    name = api.create()
    api.ask(name)
    sent = 0
    watch.seen.clear()
    watch.on = True
    try:
        for method, path, (examples, queries) in calls(api):
            here = path.replace("{study}", name).replace("{number}", "0").replace("{worker_id}", "w")
            if method == "DELETE" or path.endswith((":cancel", ":stop")):
                here = here.replace(name, "no-such-study")
            for payload in PAYLOADS:
                for query in queries:
                    api.call(method, here, params={query: payload})
                    sent += 1
                for part in ("{study}", "{number}", "{worker_id}"):
                    if part in path:
                        filled = path.replace(part, quote(payload, safe=""))
                        filled = filled.replace("{study}", name).replace("{number}", "0").replace("{worker_id}", "w")
                        api.call(method, filled)
                        sent += 1
                for example in examples:
                    for place in leaves(example):
                        api.call(method, here, json=replaced(example, place, payload))
                        sent += 1
    finally:
        watch.on = False
    assert sent > 500
    assert watch.seen == []


def test_the_watch_would_have_seen_it(watch: Watch, tmp_path: Path) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: Path(PAYLOADS[1]).read_text(),
        lambda: __import__(MARK),
        lambda: pickle.loads(pickle.dumps(Path("x"))),
        lambda: (tmp_path / MARK).write_text(""),
    ]
    for attempt in attempts:
        watch.seen.clear()
        watch.on = True
        try:
            attempt()
        except (OSError, ImportError):
            pass
        finally:
            watch.on = False
        assert watch.seen


@pytest.mark.parametrize("payload", [*PAYLOADS, "..", ".", "a/b", "a\\b", "mnist.npz", "mnist/../mnist", "", "a\u0000"])
def test_a_dataset_an_objective_a_sampler_and_a_pruner_are_names(api: Any, payload: str) -> None:
    space = {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}}
    for field, chosen in (
        ("objective", {"kind": "neural_network", "dataset": payload}),
        ("sampler", {"name": payload}),
        ("pruner", {"name": payload}),
        ("name", payload),
    ):
        body = {"name": "names-only", "search_space": space, field: chosen}
        assert api.code(api.post("/v1/studies", body)) == "invalid", field


class _Command:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "http://127.0.0.1/x", "..", "", "a\u0000"]
)
def test_a_worker_reads_no_dataset_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    np.savez(tmp_path / "outside.npz", x_train=np.zeros((4, 2)))
    with pytest.raises((DatasetError, DatasetMissing), match="is not a dataset's name"):
        load(name, tmp_path / "inside")


@pytest.mark.parametrize("key", ["x_train", "y_train", "anything"])
def test_a_pickle_in_a_dataset_is_refused_and_not_run(tmp_path: Path, key: str) -> None:
    trap = tmp_path / "sprung"
    bomb = np.array([_Command(trap)], dtype=object)
    plain = {"x_train": np.zeros((4, 2), np.float32), "y_train": np.zeros(4, np.int64)}
    np.savez(tmp_path / "bomb.npz", **{**plain, key: bomb})  # type: ignore[arg-type]
    with pytest.raises(DatasetError):
        load("bomb", tmp_path)
    assert not trap.exists()
    buffer = io.BytesIO()
    pickle.dump(bomb, buffer)
    (tmp_path / "plain.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DatasetError):
        load("plain", tmp_path)
    assert not trap.exists()
