"""`hpo run`: the whole job on one machine, from a study file to the best trial, a picture and the test result."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import note
from hpo_service.cli.exits import ERROR, CommandFailed, NotInstalled, need
from hpo_service.cli.held_database import sqlite_path
from hpo_service.cli.interruption import Interruption
from hpo_service.cli.local_service import LocalService
from hpo_service.cli.options import (
    DEFAULT_DATABASE,
    AsJson,
    Database,
    StudyFilePath,
    connect,
    print_result,
    without_password,
)
from hpo_service.cli.own_training import Training
from hpo_service.cli.plot import check_picture_file, draw_study
from hpo_service.cli.study_commands import other_study_exists
from hpo_service.domain.errors import HpoError, Invalid, StudyExists, Unavailable
from hpo_service.domain.json_types import Json
from hpo_worker.cores import cores
from hpo_worker.label_option import Label, labels_of

if TYPE_CHECKING:
    from hpo_service.cli.live_view import Follower, LiveDisplay, Snapshot
    from hpo_service.cli.study_file import StudyFile
    from hpo_service.client import Client

REFRESH_SECONDS = 0.5
PATIENCE_SECONDS = 5.0  # of retries: beside our own server, workers take all cores
OPEN = ("WAITING", "RUNNING")  # states of a test that is still to come
ENDED = ("COMPLETED", "STOPPED")  # states of a study that can be confirmed and tested


def run(
    file: StudyFilePath,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND…", help="A command a trial; {name} stands for a parameter."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Train with your own function.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one for each core if not given.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    no_test: Annotated[bool, typer.Option("--no-test", help="Leave the test set sealed.")] = False,
    picture: Annotated[
        Path | None, typer.Option("-o", "--picture", metavar="FILE.png", help="Default: pictures/STUDY.png.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="HPO_DATA", metavar="FOLDER", help="Where datasets other than mnist lie.")
    ] = None,
    label: Label = None,
    json: AsJson = False,
) -> None:
    """Run a study on this machine: server, workers, live progress, picture, test, summary.

    It trains the built-in network, a function of yours (--objective), or a command a trial, as hpo agent does:
    hpo run mine.toml -- python train.py --lr {lr}

    Interrupted and started again on the same database, it goes on where it stopped.
    """
    from hpo_service.cli.study_file import read_study_file

    study_file = read_study_file(file)
    spec = study_file.spec()
    training = Training(objective, tuple(command or ()), labels_of(label))
    training.check(file, spec)
    if not training.is_own:
        _check_data(spec.objective or {}, data)
    picture = picture or Path("pictures") / f"{spec.name}.png"
    check_picture_file(picture)
    need("server")
    with Interruption() as interruption:
        with LocalService(database, _log_folder(database), lambda: interruption.happened) as service:
            job = StudyRun(study_file, spec.name, training, service, interruption, data)
            if service.start_server():
                job.run(workers or cores(), picture, with_test=not no_test)
        if not job.is_finished:
            note(*_how_to_go_on(job, file, database, training))
            sys.exit(ERROR)
    print_result(json, job.study, chain(job.summary, [""], _afterwards(job, database)))


class StudyRun:
    """One run of a study; its attributes keep the results after the service has stopped."""

    def __init__(
        self,
        study_file: StudyFile,
        name: str,
        training: Training,
        service: LocalService,
        interruption: Interruption,
        data: Path | None,
    ) -> None:
        self.name, self.training = name, training
        self.is_finished = False
        self.study: Json = {}  # as last read; empty before it is created
        self.summary: list[str] = []
        self.files: list[tuple[str, str]] = [
            ("log of the server", str(service.server_log)),
            ("log of the workers", str(service.worker_log)),
        ]
        self._study_file, self._service, self._interruption = study_file, service, interruption
        self._data = None if data is None else data.resolve()

    def run(self, workers: int, picture: Path, *, with_test: bool) -> None:
        from hpo_service.cli.live_view import LiveDisplay
        from hpo_service.cli.summary import best_lines, observe, summary_lines

        with connect(self._service.url, self._service.token, PATIENCE_SECONDS) as client:
            self.study = self._create(client)
            with LiveDisplay(client.server) as display:
                self._train(client, display, workers)
                if not self._interruption.happened:
                    self._confirm(client, display, workers)
            if with_test and not self._interruption.happened:
                self._test(client)
            if self._interruption.happened:
                return
            self._draw(client, picture)
            seen = observe(client, self.name)
            self.study = seen.study
            self.summary = [*summary_lines(seen), *best_lines(client, seen.study)]
            self.is_finished = True

    def _create(self, client: Client) -> Json:
        try:
            study: Json = client.create(self._study_file.body)
        except Invalid as error:
            raise self._study_file.server_refusal(error.faults) from None
        except StudyExists:
            study = self._described_anew(client)
        if done := wording.finished(study):
            note(f"{self.name} goes on: {wording.count(done, 'trial')} finished before")
        if study["state"] == "PAUSED":
            study = client.resume(self.name)
            note(f"{self.name} was paused; it is resumed")
        return study

    def _described_anew(self, client: Client) -> Json:
        """The existing study, with the file's metadata, which change no trial; raise if anything else differs."""
        body, existing = self._study_file.body, client.study(self.name)
        if not self._study_file.differs_in_metadata_only(existing):
            raise other_study_exists(body, existing) from None
        return client.patch(self.name, metadata=body.get("metadata", {}))

    def _train(self, client: Client, display: LiveDisplay, workers: int) -> None:
        """Keep server and workers alive until the study is done, or a signal interrupts."""
        from hpo_service.cli.live_view import Follower

        follower = Follower(client, self.name)
        seen: object = None
        if self.study["state"] not in wording.DONE:
            self._service.start_workers(self.training.worker(workers, self.name), self._data)
        while True:
            # checked before the study is read, since workers end by themselves once it is done
            workers_died = self._service.workers_died
            if self._service.server_died:
                display.say(self._service.revive_server())
            snapshot = self._snapshot(follower)
            if snapshot is not None:
                self.study = snapshot.study
                display.show(snapshot)
                if snapshot.is_done:
                    break
                if reason := snapshot.study.get("state_reason"):
                    raise CommandFailed(
                        f"{self.name} is paused: {reason}",
                        f"log of the workers: {self._service.worker_log}; run the file again to resume it",
                    )
                if seen != (seen := (wording.finished(snapshot.study), snapshot.study["confirmation"])):
                    self._service.progressed()
                if workers_died:
                    display.say(self._service.revive_workers())
            if self._interruption.wait(REFRESH_SECONDS):
                break
        self._service.stop_workers()

    def _confirm(self, client: Client, display: LiveDisplay, workers: int) -> None:
        """Have the best trials trained again if [metadata.confirm] asks for it: which one is best, and how good."""
        from hpo_service.cli.figure import confirm_plan_of

        plan = confirm_plan_of(self.study)
        if plan is None or self.study["confirmation"] is not None or self.study["test"] is not None:
            return
        if self.study["state"] in ENDED and self.study.get("best"):
            self.study = client.confirm(self.name, plan.top, plan.seeds)
            self._train(client, display, workers)

    def _snapshot(self, follower: Follower) -> Snapshot | None:
        """A snapshot of the study; None while the server does not answer."""
        try:
            return follower.snapshot()
        except HpoError as error:
            if error.code not in ("unreachable", "unavailable"):
                raise
            return None

    def _draw(self, client: Client, picture: Path) -> None:
        try:
            need("plot")
            draw_study(client, self.name, picture)
        except (CommandFailed, NotInstalled) as error:
            note(f"no picture: {error.detail}")
        else:
            self.files.insert(0, ("picture", str(picture)))

    def _test(self, client: Client) -> None:
        """Seal a study that can be tested, and wait for its one evaluation on the test set."""
        from hpo_service.cli.figure import test_plan_of

        plan = test_plan_of(self.study)
        if self.training.is_own or plan.leave_sealed:
            return
        if self.study["state"] not in ENDED or not self.study["counts"]["COMPLETE"]:
            return
        ensemble = plan.ensemble if self.study["test"] is None else self.study["test"]["ensemble"]
        self.study = study = client.test(self.name, ensemble)
        if study["test"]["state"] in OPEN:
            note("evaluating the best configuration on the test set, once")
            # only a worker that asks across studies is given the sealed test
            self._service.start_workers(self.training.any_worker(1), self._data)
        while study["test"]["state"] in OPEN and not self._interruption.wait(REFRESH_SECONDS):
            if self._service.server_died:
                note(self._service.revive_server())
            if self._service.workers_died:
                note(self._service.revive_workers())
            with suppress(Unavailable):
                self.study = study = client.study(self.name)
        self._service.stop_workers()


def _check_data(objective: Json, data: Path | None) -> None:
    """Raise DatasetError for data that is not there or broken, before anything is started."""
    from hpo_worker.datasets import INSIDE, load

    name = objective.get("dataset", "mnist")
    if name not in INSIDE:
        load(str(name), data)


def _log_folder(database: str) -> Path:
    """The folder of a SQLite file; else the current folder."""
    file = sqlite_path(database)
    return Path() if file is None else file.parent


def _how_to_go_on(job: StudyRun, file: Path, database: str, training: Training) -> Iterator[str]:
    done = f"; {wording.count(wording.finished(job.study), 'finished trial')} recorded" if job.study else ""
    yield f"interrupted{done} in {without_password(database)}"
    yield f"go on: {wording.hpo_run(file)}{_option(database)}{training.options}"


def _option(database: str) -> str:
    return "" if database == DEFAULT_DATABASE else f" --database {shlex.quote(without_password(database))}"


def _afterwards(job: StudyRun, database: str) -> Iterator[str]:
    """Where things are, and what to type next."""
    yield "Files"
    yield from wording.columns([*job.files, ("database", without_password(database))])
    yield ""
    yield "Next"
    hpo = wording.hpo()
    yield from wording.columns(
        (
            *_next_file(job, database),
            (f"{hpo} serve{_option(database)}", "the dashboard: http://127.0.0.1:8000/dashboard"),
            (f"{hpo} study export {job.name} -o {job.name}.csv", "while it serves: every trial, for a spreadsheet"),
            (f"{hpo} plot {job.name} -o {job.name}.png", "the picture again"),
            *_ways_to_search_on(job),
        )
    )


def _next_file(job: StudyRun, database: str) -> Iterator[tuple[str, str]]:
    from hpo_service.cli.figure import figure_of

    figure = figure_of(job.study)
    if figure is not None and figure.next is not None:
        yield f"{wording.hpo_run(figure.next)}{_option(database)}", "the next study"


def _ways_to_search_on(job: StudyRun) -> Iterator[tuple[str, str]]:
    if job.study["test"] is not None or job.study["narrowing"] is not None:
        yield "a copy of the study file", "another name in it, and wider ranges or more trials: a new study"
        return
    more = 2 * (job.study["limits"]["trials"] or wording.finished(job.study))
    yield f"{wording.hpo()} study limits {job.name} --trials {more}", "more trials: then run the file again"
