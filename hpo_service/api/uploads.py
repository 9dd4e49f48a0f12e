"""Which requests may be as large as an artifact: their bodies alone pass the bound of all others."""

from __future__ import annotations

import re

_UPLOAD = re.compile(r"/v1/studies/[^/:]+/(?:trials/[0-9]+|test)/artifacts/[^/]+")


def is_upload(method: str, path: str) -> bool:
    return method == "PUT" and _UPLOAD.fullmatch(path) is not None
