"""The dashboard's page in a real browser: in the server, and the stock command on the live database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from hpo_service.store import Database
from hpo_service.tuning.dashboard_app import dashboard_app
from tests.chromium import HOW_TO_GET_IT, chromium
from tests.patience import PATIENCE_SECONDS
from tests.tuning.writing_storage import WritingStorage

CHROMIUM = chromium()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_GET_IT)]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A record with a study of twelve trials, two params, reports."""
    import optuna

    opened = Database(database_url)
    study = optuna.create_study(storage=WritingStorage(opened), study_name="seen", direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("learning_rate", 1e-6, 1e-2, log=True)
        kind = trial.suggest_categorical("optimizer", ["sgd", "momentum"])
        for step in range(5):
            trial.report(step * 0.1 + 10 * lr, step)
        return 10 * lr + (kind == "momentum")

    study.optimize(objective, n_trials=12)
    yield opened
    opened.close()


def page(url: str, folder: Path, picture: str) -> str:
    """The page as the browser has built it, and a picture of it."""
    assert CHROMIUM is not None
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *("--disable-component-update", "--disable-sync", "--virtual-time-budget=15000", "--window-size=1400,1600"),
        f"--user-data-dir={folder / 'profile'}",
    ]
    # To look at: HPO_PICTURES=folder pytest tests/optuna_views
    kept = Path(os.environ.get("HPO_PICTURES", folder)) / picture
    shown = subprocess.run(
        [CHROMIUM, *options, f"--screenshot={kept}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert kept.stat().st_size > 20_000
    return shown.stdout


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    servers = []

    def start(app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def assert_shows_the_study(dom: str) -> None:
    assert "NOW LOADING" not in dom
    for words in ("seen", "learning_rate", "optimizer", "Hyperparameter Importance"):
        assert words in dom, words


def test_the_page_on_the_record_shows_the_study(
    database: Database, serve: Callable[[Any], str], tmp_path: Path
) -> None:
    base = serve(dashboard_app(database))
    assert_shows_the_study(
        page(f"{base}/dashboard/studies/1", tmp_path, f"record-{database.url.get_backend_name()}.png")
    )


def test_the_stock_command_opens_the_live_database(database: Database, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    url = database.url.render_as_string(hide_password=False)
    arguments = [str(command), url, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/meta")
            dom = page(
                f"http://127.0.0.1:{port}/dashboard/studies/1", tmp_path, f"stock-{database.url.get_backend_name()}.png"
            )
        finally:
            running.terminate()
    assert_shows_the_study(dom)


def _wait_for(url: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")
