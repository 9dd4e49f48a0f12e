"""Which requests upload an artifact: only their bodies may exceed the size limit of all others."""

from __future__ import annotations

import re

_UPLOAD = re.compile(r"/v1/studies/[^/:]+/(?:trials/[0-9]+|test)/artifacts/[^/]+")


def is_upload(method: str, path: str) -> bool:
    return method == "PUT" and _UPLOAD.fullmatch(path) is not None
