"""optuna-dashboard on the record, reading only.

It answers whatever goes wrong in it with a 500 and without the reason: an address with a mistake, a study that was
deleted a moment ago, a picture that is impossible for the study. Here each of its views raises an HpoError instead.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, cast

from a2wsgi.wsgi import build_environ

from hpo_service.domain.errors import HpoError, MalformedRequest, NotFound, Unavailable
from hpo_service.domain.spreadsheet import quoted_csv
from hpo_service.store.optuna_rows import OptunaRows, seen_studies

if TYPE_CHECKING:
    from hpo_service.store import Database
    from hpo_service.store.reader import Readable
    from hpo_service.store.record import Record

PIECE_BYTES = 2**18
LARGEST_ID = 2**63 - 1  # the largest that both databases can look up
_MADE_OF_A_STUDY = ("/plot/", "/param_importances")  # views that exist for some studies only

Head = tuple[int, list[tuple[bytes, bytes]]]  # an answer's status and headers

_making = threading.Lock()


class DashboardFailed(Unavailable):
    """A view of the dashboard raised what it should not; the cause says what."""


def answered(
    scope: Mapping[str, Any], only: frozenset[str] | None, stylesheet: str, database: Readable
) -> Iterator[Head | bytes]:
    """The dashboard's answer to a request without a body: first its head, then its body in pieces.

    scope: what ASGI says of the request, in plain values. only: the studies that the caller may see; None: all.
    stylesheet: for its page. Raise HpoError for whatever is no success.
    """
    heads: list[Head] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        named = [(name.strip().lower().encode("latin1"), value.strip().encode("latin1")) for name, value in headers]
        heads.append((int(status.split(" ", 1)[0]), named))

    with _making:
        dashboard = dashboard_app(database)  # type: ignore[arg-type]  # hashed by its identity
    before = seen_studies.set(only)
    try:
        body = dashboard(build_environ(scope, io.BytesIO()), start_response)  # type: ignore[arg-type]  # it is only read
    except HpoError:
        raise
    except Exception as error:
        raise DashboardFailed(_FAILED) from error
    finally:
        seen_studies.reset(before)
    try:
        if heads[-1][0] >= 400:
            raise _refusal(heads[-1][0], body)
        status, headers = heads[-1]
        kind = dict(headers).get(b"content-type", b"")
        chunks: Iterable[bytes] = body
        if kind.startswith(b"text/csv"):
            chunks = quoted_csv(body)
        elif kind.startswith(b"text/html"):
            chunks = [_with_stylesheet(b"".join(body), stylesheet)]
        is_ours = chunks is not body
        yield status, [pair for pair in headers if pair[0] != b"content-length" or not is_ours]
        for chunk in chunks:
            for start in range(0, len(chunk), PIECE_BYTES):
                yield chunk[start : start + PIECE_BYTES]
    finally:
        getattr(body, "close", lambda: None)()


def _with_stylesheet(page: bytes, path: str) -> bytes:
    return page.replace(b"</head>", b'<link rel="stylesheet" href="%s"></head>' % path.encode(), 1)


_FAILED = "the dashboard cannot show this; the server's log says why"


def _refusal(status: int, body: Iterable[bytes]) -> HpoError:
    """The dashboard's own refusal, with the reason that it gives, if it gives one."""
    reason = ""
    with suppress(ValueError, TypeError, LookupError):
        reason = str(json.loads(b"".join(body))["reason"])
    if status in (403, 404, 405):  # 405: the path is for writing only
        return NotFound(reason or "the dashboard has nothing at this path")
    if status < 500:
        return MalformedRequest(reason or "the dashboard cannot read this address or its headers")
    return DashboardFailed(reason or _FAILED)


@lru_cache(maxsize=1)
def dashboard_app(database: Readable) -> Callable[..., Any]:
    """The WSGI application; it has to live at the root of its server."""
    # Imported when it is first opened: that takes a second, and most of the memory of the process that reads.
    from optuna_dashboard import wsgi

    from hpo_service.tuning.storage import RecordStorage

    app = wsgi(RecordStorage(cast("Database", database)))
    app.catchall = False  # exceptions of a view reach `answered`
    for route in app.routes:
        if route.method == "GET":
            route.callback = _in_our_words(route.rule, route.callback, database)
    return app  # type: ignore[no-any-return]


def _in_our_words(rule: str, view: Callable[..., Any], database: Readable) -> Callable[..., Any]:
    """The view, which raises HpoError instead of answering 500."""
    from bottle import HTTPResponse, request, response

    inner = getattr(view, "__wrapped__", None)  # without the decorator that turns its exceptions into 500s

    @wraps(view)
    def answer(**arguments: Any) -> Any:
        study_id = arguments.get("study_id", 1)
        if not 0 < study_id <= LARGEST_ID:
            raise NotFound(f"there is no study with id {study_id}")
        _check_after(request.query.getall("after"))
        if inner is not None:
            response.content_type = "application/json"
        try:
            return (inner or view)(**arguments)
        except (HTTPResponse, HpoError):
            raise
        except Exception as error:
            raise _in_domain_words(error, rule, study_id, database) from error

    return answer


def _check_after(given: list[str]) -> None:
    if not all(re.fullmatch("[0-9]{1,100}", after) for after in given):
        raise MalformedRequest("after: a whole number from 0 up, of the first trial that is wanted")


def _in_domain_words(error: Exception, rule: str, study_id: int, database: Readable) -> HpoError:
    if isinstance(error, KeyError) and not database.read(lambda record: _has_study(record, study_id)):
        return NotFound(f"there is no study with id {study_id}")
    if isinstance(error, ImportError):
        return NotFound(f"the server cannot draw this: {error.name or 'plotly'} is not installed beside it")
    if any(part in rule for part in _MADE_OF_A_STUDY):
        return NotFound(f"there is no such thing of this study: {str(error)[:300] or type(error).__name__}")
    return DashboardFailed(_FAILED)


def _has_study(record: Record, study_id: int) -> bool:
    with suppress(KeyError):
        OptunaRows(record).study(study_id)
        return True
    return False
