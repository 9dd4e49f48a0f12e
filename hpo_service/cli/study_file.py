"""A study file, TOML or JSON, becomes a checked study; every fault is shown with its line, its rule and what to do."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hpo_service.cli import figure, wording
from hpo_service.cli.exits import ErrorInLines
from hpo_service.cli.file_lines import Place, json_lines, line_of, toml_lines
from hpo_service.domain import json_pointer, neural_network, nul, other_words
from hpo_service.domain.errors import Fault
from hpo_service.domain.objectives import built_in
from hpo_service.domain.search_space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    SearchSpace,
)
from hpo_service.domain.study import Limits, Narrowing, PrunerConfig, SamplerConfig, StudySpec

LARGEST_FILE = 1024 * 1024  # bytes; what a server takes as a body

_PARAMETER_TYPES: Mapping[object, type[BaseModel]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "sampler": SamplerConfig,
    "pruner": PrunerConfig,
    "limits": Limits,
    "narrowing": Narrowing,
}


class StudyFileRefused(ErrorInLines):
    """The file cannot become a study; the message shows every fault."""

    code = "study_file"


@dataclass(frozen=True)
class FileFault:
    """One broken rule in a file: where it stands, what stands there, and what to do about it."""

    place: Place
    line: int | None
    value: object
    rule: str
    hint: str = ""

    @property
    def pointer(self) -> str:
        return json_pointer.pointer(*self.place) or "/"

    def lines(self) -> Iterator[str]:
        where = f"line {self.line}" if self.line is not None else "the file"
        value = "" if self.value is _ABSENT else f" = {_shown(self.value)}"
        yield f"  {where}: {self.pointer}{value}"
        yield f"      {self.rule}"
        if self.hint:
            yield f"      -> {self.hint}"


_ABSENT = object()


@dataclass(frozen=True)
class StudyFile:
    """What a study file says, and on which line it says it."""

    path: Path
    body: dict[str, Any]
    lines: Mapping[Place, int]

    def spec(self) -> StudySpec:
        """Return the study; raise StudyFileRefused with every fault there is."""
        faults: list[FileFault] = []
        spec = None
        try:
            spec = StudySpec.model_validate(self.body)
        except ValidationError as error:
            faults += self._model_faults(error.errors())
        faults += [self._fault(place, nul.RULE) for place in nul.places(self.body)]
        known = {fault.place for fault in faults}
        faults += [fault for fault in self._objective_faults() if fault.place not in known]
        faults += self._figure_faults()
        if faults or spec is None:
            raise self.refusal(faults)
        return spec

    def differs_in_metadata_only(self, existing: Mapping[str, Any]) -> bool:
        """Whether the existing study equals the file's in all but metadata, which change no trial."""
        fields = {name: existing[name] for name in StudySpec.model_fields if name in existing}
        if existing.get("define_by_run"):  # the search space has grown since
            fields["search_space"] = self.body.get("search_space", {})
        return _without_metadata(self.spec(), fields) == _without_metadata(StudySpec.model_validate(fields), fields)

    def refusal(self, faults: Sequence[FileFault]) -> StudyFileRefused:
        count = wording.count(len(faults), "fault")
        in_order = sorted(faults, key=lambda fault: fault.line or 0)
        return StudyFileRefused(f"{self.path}: {count}", *(line for fault in in_order for line in fault.lines()))

    def server_refusal(self, faults: Iterable[Fault]) -> StudyFileRefused:
        """The refusal for faults that only the server found, such as a sampler's unknown option."""
        return self.refusal([self._fault(self._place(fault.pointer), fault.detail) for fault in faults])

    def _model_faults(self, errors: Sequence[ErrorDetails]) -> Iterator[FileFault]:
        by_place: dict[Place, list[ErrorDetails]] = {}
        for error in errors:
            by_place.setdefault(self._place_of_error(error), []).append(error)
        said_otherwise: set[str] = set()
        for place, found in by_place.items():
            if (fault := self._in_other_words(place)) is not None:
                if place[1] not in said_otherwise:
                    said_otherwise.add(str(place[1]))
                    yield fault
                continue
            # several errors at one place: one for each type of the union (string, number, boolean, null)
            rule, hint = _rule(found[0], self.body, place) if len(found) == 1 else (_A_CHOICE, "")
            yield self._fault(place, rule, hint)

    def _in_other_words(self, place: Place) -> FileFault | None:
        """One fault for a parameter that is written as in another tool, with the line to write; None: it is not."""
        if len(place) < 2 or place[0] != "search_space":
            return None
        name = str(place[1])
        given = _at(self.body, ("search_space", name))
        if isinstance(given, dict) and "type" not in given:
            below, parameter = next(iter(given.items()), ("", None))
            if isinstance(parameter, dict) and other_words.is_parameter(parameter):
                return self._dotted(name, below, parameter)
        said = other_words.in_our_words(given)
        if said is None:
            return None
        rule = (
            "is said in another tool's words; a parameter has a type (float, int, categorical) and low and high, "
            "or choices"
        )
        return self._fault(("search_space", name), rule, f"write: {self._line(name, said)}")

    def _dotted(self, name: str, below: str, parameter: dict[str, Any]) -> FileFault:
        said = parameter if "type" in parameter else other_words.in_our_words(parameter)
        rule = f"is a table with the parameter {below} in it; a name with a dot in it stands in quotes"
        return self._fault(("search_space", name), rule, f"write: {self._line(f'{name}.{below}', said or parameter)}")

    def _line(self, name: str, parameter: Mapping[str, Any]) -> str:
        write = other_words.as_json if _format(self.path) == "JSON" else other_words.as_toml
        return write(name, parameter)

    def _objective_faults(self) -> Iterator[FileFault]:
        """Faults of the objective, found even if the rest of the file has faults of its own."""
        objective, space = self.body.get("objective"), self.body.get("search_space")
        kind = built_in(objective) if isinstance(objective, dict) else None
        if kind is None or objective is None:
            return
        for fault in kind.faults(objective, _readable_part(space)):
            yield self._fault(self._place(fault.pointer), fault.detail)

    def _figure_faults(self) -> Iterator[FileFault]:
        """Faults of the metadata that `hpo run` and `hpo plot` read; the server takes any metadata."""
        for name, model in figure.SECTIONS.items():
            place: Place = ("metadata", name)
            given = _at(self.body, place)
            if given is _ABSENT:
                continue
            try:
                asked = model.model_validate(given)
            except ValidationError as error:
                errors = error.errors()
                for each in errors:
                    each["loc"] = (*place, *each["loc"])
                yield from self._model_faults(errors)
            else:
                for below, rule in figure.faults(asked, self.body):
                    yield self._fault((*place, *below), rule)

    def _fault(self, place: Place, rule: str, hint: str = "") -> FileFault:
        value = _at(self.body, place)
        return FileFault(place, line_of(place, self.lines), value, rule, hint or _range_hint(rule, value))

    def _place_of_error(self, error: ErrorDetails) -> Place:
        """pydantic's location without the names of the models it tried, which are no part of the file."""
        place: Place = ()
        for position, step in enumerate(error["loc"]):
            last = position == len(error["loc"]) - 1
            if _at(self.body, (*place, step)) is not _ABSENT or (last and error["type"] in ("missing", "rule")):
                place = (*place, step)
        if error["type"].startswith("union_tag"):
            place = (*place, "type")
        return place

    def _place(self, pointer: str) -> Place:
        place: Place = ()
        for name in json_pointer.members(pointer):
            is_index = isinstance(_at(self.body, place), list) and name.isdecimal()
            place = (*place, int(name) if is_index else name)
        return place


def _without_metadata(spec: StudySpec, existing: Mapping[str, Any]) -> StudySpec:
    seed = existing["sampler"]["seed"] if spec.sampler.seed is None else spec.sampler.seed
    return spec.model_copy(update={"metadata": {}, "sampler": spec.sampler.model_copy(update={"seed": seed})})


def read_study_file(path: Path) -> StudyFile:
    """Read the file; raise StudyFileRefused when it is not there or not TOML or JSON."""
    text = _text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        raise StudyFileRefused(f"{path}: {_NO_YAML}")
    try:
        if path.suffix.lower() == ".json":
            body = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
            lines = json_lines(text)
        else:
            body = tomllib.loads(text)
            lines = toml_lines(text)
    except RecursionError:
        raise StudyFileRefused(f"{path}: nested too deeply to be a study file") from None
    except json.JSONDecodeError as error:
        raise StudyFileRefused(f"{path}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except ValueError as error:  # TOMLDecodeError says where by itself
        raise StudyFileRefused(f"{path}: not valid {_format(path)}: {error}{_syntax_hint(text)}") from None
    if not isinstance(body, dict):
        raise StudyFileRefused(f"{path}: a study is a JSON object, this is a {type(body).__name__}")
    return StudyFile(path, body, lines)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StudyFileRefused(f"{path}: there is no such file{_nearest_file(path)}") from None
    except OSError as error:
        raise StudyFileRefused(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise StudyFileRefused(f"{path}: {len(content):,} bytes, but a study has at most {LARGEST_FILE:,}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StudyFileRefused(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from None


def _nearest_file(path: Path) -> str:
    names = [other.name for folder in (path.parent, Path("studies")) if folder.is_dir() for other in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _format(path: Path) -> str:
    return "JSON" if path.suffix.lower() == ".json" else "TOML"


def _syntax_hint(text: str) -> str:
    if text.lstrip().startswith("{"):
        return "; a JSON file's name ends in .json"
    begun = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return f"; {_NO_YAML}" if begun and _YAML_LINE.match(begun[0]) else ""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError for a repeated key, of which `json` would silently keep the last."""
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return read


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _readable_part(space: object) -> SearchSpace:
    """The parameters of the search space that can be read, so that one fault does not hide others."""
    adapter: TypeAdapter[Any] = TypeAdapter(Parameter)
    parameters = {}
    for name, given in space.items() if isinstance(space, dict) else ():
        try:
            parameters[name] = adapter.validate_python(given)
        except ValidationError:
            # unreadable: a readable stand-in lets the objective still check the name
            parameters[name] = _stand_in(name)
    with_conditions = {name: parameter for name, parameter in parameters.items() if parameter is not None}
    try:
        return SearchSpace.model_validate(with_conditions)
    except ValidationError:
        return SearchSpace.model_construct({})


def _stand_in(name: str) -> CategoricalParameter | None:
    setting = neural_network.SETTINGS.get(name)
    if setting is not None and (setting.default is None or not isinstance(setting.default, str | int | float)):
        return None
    default = None if setting is None else cast(str | int | float, setting.default)
    return CategoricalParameter(choices=[default])


def _at(body: object, place: Place) -> object:
    """The value at a place; _ABSENT where there is none."""
    for step in place:
        try:
            body = cast(Any, body)[step] if isinstance(body, dict | list) else _ABSENT
        except (LookupError, TypeError):
            return _ABSENT
    return body


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NO_YAML = 'this is YAML, and a study file is TOML or JSON: write name = "mine" instead of name: mine'
_YAML_LINE = re.compile(r"---|[\w.-]+:(\s|$)")

_A_CHOICE = "must be a string, a finite number, true, false, null, or a list of these"
_STUDY_NAME = "a study's name is 1 to 63 lower-case letters, digits, - and _; it begins and ends with a letter or digit"

_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "model_attributes_type": 'a table such as { type = "float", low = 0.0, high = 1.0 }',
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def _rule(error: ErrorDetails, body: object, place: Place) -> tuple[str, str]:
    """The rule an error stands for, in the words of a study file, and what to do."""
    kind, context, value = error["type"], error.get("ctx", {}), _at(body, place)
    if kind == "extra_forbidden":
        known = _known_keys(body, place[:-1])
        near = difflib.get_close_matches(str(place[-1]).lower(), known, n=1)
        return f"unknown key; known here: {', '.join(known)}", f"did you mean {near[0]}?" if near else "leave it out"
    if kind == "missing":
        return "is required", f"add: {place[-1]} = ..."
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']+)'", context.get("expected") or context["expected_tags"])
        near = difflib.get_close_matches(str(value).lower(), allowed, n=1)
        return f"must be one of {', '.join(allowed)}", f'did you mean "{near[0]}"?' if near else ""
    if kind == "union_tag_not_found":
        return "is required: float, int or categorical", 'add: type = "float"'
    if kind == "string_pattern_mismatch" and place == ("name",):
        near_name = re.sub(r"[^a-z0-9_-]+", "-", str(value).lower()).strip("-_")[:63].strip("-_")
        return _STUDY_NAME, f'for example "{near_name}"' if near_name else ""
    if kind in _TYPES:
        quoted = isinstance(value, str) and re.fullmatch(r"[-+0-9.eE]+|true|false", value.strip())
        return f"must be {_TYPES[kind]}", "write it without quotes" if quoted else ""
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}", ""
    if kind in ("too_short", "too_long"):
        return f"has {context['actual_length']} items; {error['msg'].partition(' after')[0]}", ""
    return error["msg"].replace("Input should be", "must be"), ""


def _range_hint(rule: str, value: object) -> str:
    """What to do about the most common mistakes, found here or by the server."""
    if "is below low" in rule:
        return "swap low and high"
    if "must begin above 0" in rule:
        return "give low a small positive value, such as 1e-6, or leave log out"
    return ""


def _known_keys(body: object, table: Place) -> list[str]:
    if not table:
        return [*StudySpec.model_fields, "direction"]
    if table[0] == "search_space":
        parameter = cast(dict[str, Any], _at(body, table))
        return list(_PARAMETER_TYPES[parameter.get("type")].model_fields)
    if table[0] == "metadata":
        return list((figure.Expected if len(table) > 2 else figure.SECTIONS[str(table[1])]).model_fields)
    return list(_SECTIONS[str(table[0])].model_fields)
