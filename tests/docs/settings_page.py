"""Writes docs/reference/settings.md from the settings there are: `python -m tests.docs.settings_page`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_service.environment import FAMILIES, OF_A_TRIAL, OF_CALLERS, OF_COMPOSE, PREFIX
from hpo_service.settings import Settings

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "reference" / "settings.md"

HEAD = """\
# Settings

Options of a command first, then these variables, then the defaults. An empty variable is as good as none; one that begins with
`HPO_` and is none of these ends every command with 2 and the name that was probably meant. `hpo doctor` lists what is in force, and
where each comes from.

*Written from the settings (`python -m tests.docs.settings_page`); a test compares the two.*
"""
OF_THE_SERVER: Mapping[str, str] = {
    "database_url": "where the record is; `postgresql://…` is PostgreSQL ([what it has to be](../deploying.md)). Also `--database`",
    "reading_process": "a process beside the server makes long readings; it takes some 100 MB more",
    "rate_limit": "calls a second of each key; 0: as many as it likes",
    "access_log": "a line in the log for every request ([the log](../operating.md#the-log))",
    "artifacts": "a folder, or a bucket (`s3://…`, `gs://…`, `az://…`); left out, beside an SQLite database, and none on PostgreSQL",
    "artifact_bytes": "the most that one artifact may have",
    "artifact_total_bytes": "the most that those of a study may have together",
    "private_key_hash": "SHA-256 of a key in no record: `hpo run` gives it to the server that it starts for itself",
    "head_seconds": "until a request's head is here",
    "body_seconds": "until its body is",
    "idle_seconds": "between two requests of a connection",
    "stall_seconds": "without reading any of an answer",
    "connections": "at one time; more are answered 503",
}
OF_WHO_CALLS: Mapping[str, str] = {
    "HPO_SERVER": "the server's address, `http://127.0.0.1:8000` if left out. Also `--server`",
    "HPO_TOKEN": "the key ([keys](../how-to/keys.md))",
    "HPO_TOKEN_FILE": "a file with the key, where `HPO_TOKEN` is not set",
    "HPO_DATA": "the folder with data sets of a worker ([your own data](../how-to/own-data.md)). Also `--data`",
}
IN_A_COMMAND: Mapping[str, str] = {
    "HPO_STUDY": "the study's name",
    "HPO_TRIAL": "the trial's number",
    "HPO_SEED": "a seed, the same in every attempt of the trial",
    "HPO_CHECKPOINTS": "a folder that survives the machine ([machines that are taken away](../how-to/preemptible-machines.md))",
    "HPO_PARAM_…": "each param, its name in capitals: `HPO_PARAM_LR`",
}
IN_COMPOSE: Mapping[str, str] = {
    "HPO_PORT": "the server's, on this machine",
    "HPO_DASHBOARD_PORT": "the dashboard's (profile `dashboard`)",
    "HPO_WORKER_PROCESSES": "processes of the worker",
    "HPO_BACKUP_SECONDS": "from one backup to the next",
    "HPO_BACKUPS_KEPT": "how many are kept",
    "HPO_DB_MEMORY": "of PostgreSQL",
    "HPO_SERVER_MEMORY": "of the server",
    "HPO_WORKER_MEMORY": "of the worker",
    "HPO_DOMAIN": "the name by which the server is reached (profile `tls`)",
    "HPO_TLS": "an e-mail address for Let's Encrypt, or `internal` for an authority of its own",
    "HPO_TLS_ADDRESS": "the address that the proxy listens on",
    "HPO_HTTP_PORT": "its port for HTTP, which sends callers to the other",
    "HPO_HTTPS_PORT": "its port for HTTPS",
}
# Of the proxy's own container, set by docker-compose.yml and deploy/proxy.Dockerfile.
INSIDE_COMPOSE = ("HPO_HTTP", "HPO_HTTPS", "HPO_UPSTREAM")


def page() -> str:
    callers = [f"| `{name}` | {OF_WHO_CALLS[name]} |" for name in OF_CALLERS]
    inside = [*OF_A_TRIAL, *(f"{family}…" for family in FAMILIES if family != "HPO_DRILL_")]
    given = [f"| `{name}` | {IN_A_COMMAND[name]} |" for name in inside]
    composed = [name for name in OF_COMPOSE if name not in INSIDE_COMPOSE]
    defaults = _compose_defaults()
    compose = [f"| `{name}` | `{defaults[name]}` | {IN_COMPOSE[name]} |" for name in composed]
    two, three = ["| variable | |", "|---|---|"], ["| variable | default | |", "|---|---|---|"]
    lines = [HEAD, "## The server", "", *_server(), ""]
    lines += ["## Commands, workers and the SDK", "", *two, *callers, ""]
    lines += ["## What `hpo agent` gives the command of a trial", "", *two, *given, ""]
    lines += ["## docker-compose.yml", "", "In the shell, or in a file `.env` beside it.", "", *three, *compose, ""]
    return "\n".join(lines)


def _server() -> Iterator[str]:
    yield "| variable | takes | default | |"
    yield "|---|---|---|---|"
    fields = Settings.model_json_schema()["properties"]
    for name, field in fields.items():
        default = "" if field.get("default") is None else f"`{_shown(field['default'])}`"
        yield f"| `{PREFIX}{name.upper()}` | {_takes(field)} | {default} | {OF_THE_SERVER[name]} |"


def _shown(default: Any) -> str:
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


def _takes(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_takes(each) for each in field["anyOf"] if each.get("type") != "null")
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
    return words[field["type"]] + "".join(f" {word} {field[key]:,.0f}" for key, word in bounds if key in field)


def _compose_defaults() -> dict[str, str]:
    text = (PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
    return dict(re.findall(r"\$\{(HPO_\w+):-([^}]*)\}", text))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
