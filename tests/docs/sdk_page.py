"""Writes docs/reference/sdk.md from the SDK's signatures and docstrings: `python -m tests.docs.sdk_page`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hpo_service.client as sdk
from hpo_service.client.api_calls import ApiCalls
from hpo_service.domain import errors

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sdk.md"

HEAD = """\
# The Python SDK

`pip install hpo-service`, and `from hpo_service.client import …` for every name below. It is typed (`py.typed`), and one client
may be used by several threads, and after a fork. There is no `async` twin: in an event loop a call goes into a thread
(`await asyncio.to_thread(study.ask)`).

```python
from hpo_service.client import Client, log_uniform

with Client("http://127.0.0.1:8000") as hpo:
    study = hpo.create_study("by-hand", search_space={"lr": log_uniform(1e-5, 1e-1)}, direction="minimize")
    for trial in study.ask(count=3):
        trial.report(trial.params["lr"] + 1.0, step=0)
        trial.tell(trial.params["lr"])
    print(study.best_params)
```

*Written from the code (`python -m tests.docs.sdk_page`); a test compares the two.*
"""
# By heading: what is said of them, and the names; a class stands with its methods.
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Studies and trials": (
        "",
        ("Client", "RemoteStudy", "ObjectiveTrial", "HeldTrial", "ArtifactMixin", "RecordedTrial"),
    ),
    "Search spaces": (
        "Short for the tables of a study file; a table or its JSON does as well.",
        ("uniform", "log_uniform", "integer", "choice"),
    ),
    "What an objective raises": ("", ("TrialPruned", "Retry")),
    "When a call is made again": ("", ("Retries", "PATIENTLY", "NEVER")),
    "Events": ("", ("Event", "parse_events")),
    "For those who write a worker of their own": (
        "",
        (
            *("conclusion", "ended_by", "failed_by", "is_prune", "as_values", "StopSignal", "TrialLink"),
            *("new_worker_id", "new_request_id", "error_of", "in_one_line", "storable_text", "write_json"),
            *("Json", "AnyParameter", "Definitions", "FINAL_STATES"),
        ),
    ),
}
MADE_BY_CALLERS = (sdk.Client, sdk.Retries)
ERRORS = ("BrokenOff", "Forbidden", "RateLimited", "Refused", "Unauthenticated", "UnexpectedAnswer", "Unreachable")
# What is no class and no function has no docstring.
VALUES: Mapping[str, str] = {
    "PATIENTLY": "The default.",
    "NEVER": "For who would rather know at once.",
    "Json": "An object of JSON, as a dict.",
    "AnyParameter": "A parameter of a search space.",
    "Definitions": "By study and name: what the server has taken as the definition of a parameter.",
    "FINAL_STATES": "The states in which a study gives out no more.",
}


def page() -> str:
    lines = [HEAD]
    for title, (said, names) in PARTS.items():
        lines += [f"## {title}", "", *([said, ""] if said else [])]
        for name in names:
            lines += _of(name)
        lines.append("")
    lines += ["## Errors", "", _ABOUT_ERRORS, "", *_errors(), ""]
    lines += ["## Every call of the API, as a method of `Client`", "", _ABOUT_CALLS, "", *_calls()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


_ABOUT_ERRORS = """\
All are `HpoError`; `code` is the contract's word, `request_id` finds the line in the server's log. Those that are not in
`hpo_service.client` are in `hpo_service.domain.errors`."""
_ABOUT_CALLS = "They take and return the JSON of the contract, which `/docs` of a server describes."


def _of(name: str) -> Iterator[str]:
    given = getattr(sdk, name)
    if name in VALUES:
        yield f"- `{name}`: {VALUES[name]}"
    elif inspect.isclass(given):
        yield from ("", f"### {name}", "")
        if given in MADE_BY_CALLERS:
            yield from (f"`{_signature(name, given)}`", "")
        yield from _paragraphs(given.__doc__ or "")
        yield from _members(given)
    else:
        yield _line(name, given)


def _members(kind: type) -> Iterator[str]:
    """Its own, and those of private parents; a parent that has a heading of its own is named instead."""
    for parent in kind.__mro__[1:]:
        if parent.__name__ in sdk.__all__:
            yield f"- and what `{parent.__name__}` has"
        elif parent is ApiCalls:
            yield "- and [every call of the API](#every-call-of-the-api-as-a-method-of-client)"
    for name, member in vars(kind).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        yield _line(name, member)


def _line(name: str, member: Any) -> str:
    said = name if isinstance(member, property) else _signature(name, member)
    return f"- `{said}`" + (f": {_one_paragraph(member.__doc__)}" if member.__doc__ else "")


def _signature(name: str, member: Any) -> str:
    """With the names of types as they stand in the code."""
    signature = inspect.signature(member)
    parts, is_keyword = list[str](), False
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not is_keyword:
            parts.append("*")
            is_keyword = True
        stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        is_keyword = is_keyword or each.kind is each.VAR_POSITIONAL
        kind = "" if each.annotation is each.empty else f": {each.annotation}"
        default = "" if each.default is each.empty else f" = {_shown(each.default)}"
        parts.append(f"{stars}{each.name}{kind}{default}")
    returned = signature.return_annotation
    return f"{name}({', '.join(parts)})" + ("" if returned in (signature.empty, None, "None") else f" -> {returned}")


def _shown(default: Any) -> str:
    return next((name for name in ("PATIENTLY", "NEVER") if default is getattr(sdk, name)), repr(default))


def _one_paragraph(doc: str) -> str:
    return " ".join(inspect.cleandoc(doc).split())


def _paragraphs(doc: str) -> Iterator[str]:
    """One for each attribute that is explained, too."""
    for paragraph in re.split(r"\n\n|\n(?=\w+: )", inspect.cleandoc(doc)):
        yield from (" ".join(paragraph.split()), "")


def _errors() -> Iterator[str]:
    yield "| error | code | |"
    yield "|---|---|---|"
    meanings = {**_drawn(errors.__doc__), **_drawn(sdk.__doc__)}
    for kind in _below(errors.HpoError):
        yield f"| `{kind.__name__}` | `{kind.code}` | {meanings[kind.__name__]} |"


def _drawn(tree: str | None) -> dict[str, str]:
    """What a tree of errors says of each."""
    return dict(re.findall(r"[├└]── (\w+) +(.+)$", tree or "", re.MULTILINE))


def _below(kind: type[errors.HpoError]) -> Iterator[type[errors.HpoError]]:
    """Those that a caller may meet: the domain's and the client's."""
    for each in kind.__subclasses__():
        if each.__module__ in (errors.__name__, "hpo_service.client.answers"):
            yield each
            yield from _below(each)


def _calls() -> Iterator[str]:
    """Under the headings that they have in the code."""
    section, is_said = "", True
    for line in inspect.getsource(ApiCalls).splitlines():
        if heading := re.fullmatch(r"    # (\w[^.]*)", line):
            section, is_said = heading[1].partition(";")[0], False
        elif (method := re.match(r"    def ([a-z]\w*)\(", line)) and section not in ("", "The wire"):
            if not is_said:
                yield from ("", f"### {section}", "")
                is_said = True
            yield _line(method[1], getattr(ApiCalls, method[1]))
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
