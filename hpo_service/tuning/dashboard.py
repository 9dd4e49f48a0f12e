"""optuna-dashboard on the record, reading only."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from a2wsgi.wsgi import build_environ

from hpo_service.domain.spreadsheet import quoted_csv

if TYPE_CHECKING:
    from hpo_service.store import Database
    from hpo_service.store.reader import Readable

PIECE_BYTES = 2**18

Head = tuple[int, list[tuple[bytes, bytes]]]  # an answer's status and headers

_making = threading.Lock()


def answered(scope: Mapping[str, Any], database: Readable) -> Iterator[Head | bytes]:
    """The dashboard's answer to a request without a body: first its head, then its body in pieces.

    scope: what ASGI says of the request, in plain values.
    """
    heads: list[Head] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        named = [(name.strip().lower().encode("latin1"), value.strip().encode("latin1")) for name, value in headers]
        heads.append((int(status.split(" ", 1)[0]), named))

    with _making:
        dashboard = dashboard_app(database)  # type: ignore[arg-type]  # hashed by its identity
    body = dashboard(build_environ(scope, io.BytesIO()), start_response)  # type: ignore[arg-type]  # it is only read
    try:
        status, headers = heads[-1]
        is_csv = any(name == b"content-type" and value.startswith(b"text/csv") for name, value in headers)
        yield (status, [pair for pair in headers if pair[0] != b"content-length"]) if is_csv else heads[-1]
        for chunk in quoted_csv(body) if is_csv else body:
            for start in range(0, len(chunk), PIECE_BYTES):
                yield chunk[start : start + PIECE_BYTES]
    finally:
        getattr(body, "close", lambda: None)()


@lru_cache(maxsize=1)
def dashboard_app(database: Readable) -> Callable[..., Any]:
    """The WSGI application; it has to live at the root of its server."""
    # Loaded when somebody opens it: that takes a second, and most of the memory of who reads.
    from optuna_dashboard import wsgi

    from hpo_service.tuning.storage import RecordStorage

    return wsgi(RecordStorage(cast("Database", database), read_only=True))  # type: ignore[no-any-return]
