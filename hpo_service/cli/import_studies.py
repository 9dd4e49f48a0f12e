"""`hpo import`: import Optuna's studies with their finished trials; the same command again adds the new ones.

A study's metadata say where it came from and which trials it has (`imported`), so that another source of the same name
is refused, and a second import sends only new trials. Trials are noted under `sending` before they are sent: after an
interruption the same calls are sent again, with the same request_id, and the server applies them once.
"""

from __future__ import annotations

import hashlib
import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import note
from hpo_service.cli.exits import ERROR, CommandFailed, UsageError
from hpo_service.cli.imported_names import both_names, possible_names
from hpo_service.cli.options import AsJson, Server, connect, print_result, without_password
from hpo_service.domain import number_ranges
from hpo_service.domain.errors import HpoError, Invalid, NotFound
from hpo_service.domain.json_types import Json

if TYPE_CHECKING:
    from hpo_service.client import Client
    from hpo_service.domain.search_space import SearchSpace
    from hpo_service.tuning.optuna_studies import ForeignStudy, ForeignTrial


class Tool(StrEnum):
    """The tool whose search space is read."""

    wandb = "wandb"
    nni = "nni"
    katib = "katib"
    hyperopt_json = "hyperopt-json"


LARGEST_PART = 500_000  # bytes of JSON in one call; the contract takes 1 MiB
MOST_IN_A_PART = 1000  # trials
MOST_REASONS = 5  # in the table, of trials that do not fit


@dataclass
class ImportedStudy:
    """The outcome for one study. source: its name in the source; study: its name here, None if it was refused."""

    source: str
    study: str | None = None
    taken: int = 0
    there_before: int = 0
    left: list[str] = field(default_factory=list)
    refused: str | None = None


class Refusal(Exception):
    """A study that is not taken over; the message says why."""


def import_studies(
    place: Annotated[
        str, typer.Argument(metavar="URL", help="sqlite:///FILE, postgresql://…, a journal file, or a path to either.")
    ],
    server: Server = None,
    study: Annotated[list[str] | None, typer.Option("--study", help="Only this one; may be given again.")] = None,
    name: Annotated[str | None, typer.Option("--as", help="The name of the one study that is taken over.")] = None,
    tool: Annotated[
        Tool | None, typer.Option("--from", help="Write a study file from this tool's search space instead.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Take over Optuna's studies, with all trials that have finished; the same command again adds what is new.

    With --from, a search space of W&B, NNI, Katib or hyperopt (as JSON) is written out as a study file.
    """
    if tool is not None:
        _write_study_file(tool, Path(place), json)
        return
    from hpo_service.tuning.optuna_sources import CannotBeRead, open_source
    from hpo_service.tuning.optuna_studies import study_names

    try:
        source = open_source(place)
        found = study_names(source)
    except CannotBeRead as error:
        raise CommandFailed(f"{without_password(place)}: {without_password(str(error))}") from None
    wanted = _wanted(place, found, study or ())
    if name is not None and len(wanted) != 1:
        raise UsageError(f"--as names one study, and there are {len(wanted)}: choose one with --study")
    with connect(server) as client:
        move = StudyImport(client, source, found, name)
        rows = [move.row(each) for each in wanted]
        items = [client.study(row.study) for row in rows if row.study] if json else []
    print_result(json, {"items": items, "imports": _as_json(rows)}, _table(rows))
    if any(row.refused for row in rows):
        raise SystemExit(ERROR)


def _write_study_file(tool: Tool, path: Path, as_json: bool) -> None:
    from hpo_service.cli.foreign_spaces import study_text

    text = study_text(tool, path)
    print_result(as_json, {"study_file": "\n".join(text.lines) + "\n", "left": text.left}, text.lines)
    if text.left and not as_json:
        note("could not be said:", *(f"  {each}" for each in text.left))


def _wanted(place: str, found: Mapping[str, int], names: Sequence[str]) -> list[str]:
    missing = sorted(set(names) - found.keys())
    if missing:
        known = ", ".join(found) or "none"
        raise CommandFailed(f"{without_password(place)}: it has no study {missing[0]!r}; it has {known}")
    if not found:
        raise CommandFailed(f"{without_password(place)}: it has no studies")
    return list(names) or list(found)


class StudyImport:
    """Studies from one source to one server."""

    def __init__(self, client: Client, source: Any, found: Mapping[str, int], name: str | None) -> None:
        self._client = client
        self._source = source
        self._found = found
        self._name = name

    def row(self, study: str) -> ImportedStudy:
        from hpo_service.tuning.optuna_sources import CannotBeRead
        from hpo_service.tuning.optuna_studies import read_study

        row = ImportedStudy(study)
        try:
            foreign = read_study(self._source, study)
            self._take(foreign, row)
        except (CannotBeRead, Refusal) as error:
            row.refused = str(error)
        except Invalid as error:
            row.refused = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in error.faults[:MOST_REASONS])
        except HpoError as error:
            if error.code in ("unreachable", "unauthenticated", "forbidden"):
                raise
            row.refused = error.detail
        return row

    def _take(self, foreign: ForeignStudy, row: ImportedStudy) -> None:
        origin = {"storage": self._source.name, "study": foreign.name}
        name, there = self._ours(foreign.name, origin)
        space = _search_space((there or foreign.fields)["search_space"])
        fitting, unfitting = _sorted_out(foreign.trials, space)
        if there is None:
            if not fitting:
                raise Refusal(f"none of its trials can be taken over: {unfitting[0]}")
            metadata = {"imported": {**origin, "taken": ""}, **foreign.fields["metadata"]}
            self._client.create({**foreign.fields, "name": name, "metadata": metadata})
        row.study = name
        row.left = [*foreign.left, *unfitting[:MOST_REASONS]]
        if len(unfitting) > MOST_REASONS:
            row.left.append(f"{len(unfitting) - MOST_REASONS} more trials that do not fit")
        row.taken, row.there_before = Transfer(self._client, name, origin).send(fitting)

    def _ours(self, study: str, origin: Mapping[str, Any]) -> tuple[str, Json | None]:
        """The study's name here, and the study itself if it has been imported before. Raise Refusal."""
        known = [self._name] if self._name is not None else both_names(study, self._found)
        for name in known:  # which of the two it got depends on the studies that its source had then
            there = self._study(name)
            if there is not None and _came_from(there, origin):
                return name, there
        names = [self._name] if self._name is not None else possible_names(study, self._found)
        for name in names:
            there = self._study(name)
            if there is None:
                return name, None
            other = _imported(there).get("storage")
            if other != origin["storage"] or len(names) == 1:
                whose = f"comes from {other}" if other else "was not imported"
                raise Refusal(f"there is a study {name} already, which {whose}; choose another name with --as NAME")
        raise Refusal(f"each name that it could have is taken, such as {names[0]}; choose one with --as NAME")

    def _study(self, name: str) -> Json | None:
        try:
            return self._client.study(name)
        except NotFound:
            return None


def _came_from(study: Json, origin: Mapping[str, Any]) -> bool:
    imported = _imported(study)
    return all(imported.get(key) == value for key, value in origin.items())


def _imported(study: Json) -> Json:
    """`imported` of the study's metadata; {} if it is absent or no object."""
    noted = study["metadata"].get("imported")
    return noted if isinstance(noted, dict) else {}


def _search_space(given: Json) -> SearchSpace:
    """Raise Refusal."""
    from pydantic import ValidationError

    from hpo_service.domain.search_space import SearchSpace

    try:
        return SearchSpace.model_validate(given)
    except ValidationError as error:
        faults = [f"{'/'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:MOST_REASONS]]
        raise Refusal("; ".join(faults)) from None


def _sorted_out(trials: Sequence[ForeignTrial], space: SearchSpace) -> tuple[list[ForeignTrial], list[str]]:
    """The trials that the study can take, and why it cannot take the others."""
    from pydantic import ValidationError

    from hpo_service.domain.search_space import params_faults
    from hpo_service.operations.calls import ImportedTrial

    fitting, unfitting = [], []
    for trial in trials:
        params = trial.body["params"]
        faults = params_faults(space, params)
        faults += [(each, "exists under other choices only") for each in params if _contradicts(space, each, params)]
        try:
            ImportedTrial.model_validate_json(json_format.dumps(trial.body))
        except ValidationError as error:
            faults += [("/".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        if faults:
            unfitting.append(f"trial {trial.number}: {faults[0][0]}: {faults[0][1]}")
        else:
            fitting.append(trial)
    return fitting, unfitting


def _contradicts(space: SearchSpace, name: str, params: Mapping[str, Any]) -> bool:
    """Whether the values of all its parents are given, and the parameter does not exist under them."""
    if name not in space:
        return False
    return all(parent in params for parent in space[name].when or {}) and not space.exists(name, params)


class Transfer:
    """Sends a study's trials, each exactly once, even if an import is interrupted and repeated."""

    def __init__(self, client: Client, name: str, origin: Mapping[str, Any]) -> None:
        self._client = client
        self._name = name
        self._origin = origin

    def send(self, trials: Sequence[ForeignTrial]) -> tuple[int, int]:
        """Return how many are new, and how many were there before."""
        by_number = {trial.number: trial for trial in trials}
        taken, sending, etag = self._noted()
        there = len(taken)
        if sending:
            taken, etag = self._send([by_number[number] for number in sending if number in by_number], taken, etag)
        for part in parts([trial for trial in trials if trial.number not in taken]):
            etag = self._note(taken, [trial.number for trial in part], etag)
            taken, etag = self._send(part, taken, etag)
        return len(taken) - there, there

    def _noted(self) -> tuple[set[int], list[int], str]:
        study, etag = self._client.study_and_etag(self._name)
        noted = _imported(study)
        if "taken" not in noted:
            raise Refusal("its metadata no longer say which trials it has (imported.taken): none is sent")
        return number_ranges.from_text(noted["taken"]), sorted(number_ranges.from_text(noted.get("sending", ""))), etag

    def _send(self, part: Sequence[ForeignTrial], taken: set[int], etag: str) -> tuple[set[int], str]:
        numbers = [trial.number for trial in part]
        identity = json_format.dumps([self._origin, numbers], sort_keys=True)
        request_id = "import-" + hashlib.sha256(identity.encode()).hexdigest()[:40]
        if part:
            self._client.import_trials(self._name, [trial.body for trial in part], request_id=request_id)
        taken = taken | set(numbers)
        return taken, self._note(taken, [], etag)

    def _note(self, taken: set[int], sending: Sequence[int], etag: str) -> str:
        """Write both lists into the metadata. Raise PreconditionFailed if the study was changed meanwhile."""
        study, _ = self._client.study_and_etag(self._name)
        imported = {**self._origin, "taken": number_ranges.as_text(taken)}
        if sending:
            imported["sending"] = number_ranges.as_text(sending)
        self._client.patch(self._name, metadata={**study["metadata"], "imported": imported}, if_match=etag)
        return self._client.study_and_etag(self._name)[1]


def parts(trials: Sequence[ForeignTrial]) -> Iterator[list[ForeignTrial]]:
    """Split the trials into calls that the server accepts: bounded in number and in size."""
    part: list[ForeignTrial] = []
    size = 0
    for trial in trials:
        bytes_of_trial = len(json_format.dumps(trial.body))
        if part and (size + bytes_of_trial > LARGEST_PART or len(part) == MOST_IN_A_PART):
            yield part
            part, size = [], 0
        part.append(trial)
        size += bytes_of_trial
    if part:
        yield part


def _as_json(rows: Sequence[ImportedStudy]) -> list[Json]:
    return [{"from": fields.pop("source"), **fields} for fields in map(asdict, rows)]


def _table(rows: Sequence[ImportedStudy]) -> list[str]:
    """A line for each study, and below it what was left out."""
    cells = [("FROM", "STUDY", "TAKEN", "LEFT")]
    for row in rows:
        before = f" (and {row.there_before} before)" if row.there_before else ""
        taken = f"{wording.count(row.taken, 'trial')}{before}" if row.study else "-"
        reasons = [f"refused: {row.refused}"] if row.refused else row.left or ["-"]
        cells.append((row.source, row.study or "-", taken, reasons[0]))
        cells += [("", "", "", reason) for reason in reasons[1:]]
    return wording.columns(cells, indent="")
