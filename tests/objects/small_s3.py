"""As much of S3's protocol as a client needs that puts, gets and deletes objects, in parts too; nothing is checked."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class SmallS3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection each: closed, the server is away for everybody
    objects: dict[str, bytes]
    parts: dict[str, dict[int, bytes]]
    is_unwell: threading.Event  # every request is answered 503

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.is_unwell.is_set():
            self._asked()
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
            return False
        return True

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[str, dict[str, list[str]], bytes]:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return address.path, parse_qs(address.query, keep_blank_values=True), body

    def do_PUT(self) -> None:
        path, query, body = self._asked()
        if "uploadId" in query:
            self.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.objects[path] = body
        self._answer(200, ETag='"etag"')

    def do_POST(self) -> None:
        path, query, body = self._asked()
        if "uploads" in query:
            upload = secrets.token_hex(8)  # two that are under way at the same time are two
            self.parts[upload] = {}
            result = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self.parts.pop(query["uploadId"][0])
            self.objects[path] = b"".join(parts[number] for number in sorted(parts))
            result = "<CompleteMultipartUploadResult><ETag>etag</ETag></CompleteMultipartUploadResult>"
        else:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.objects.pop(f"{path.rstrip('/')}/{key}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            result = f"<DeleteResult>{deleted}</DeleteResult>"
        self._answer(200, result.encode(), Content_Type="application/xml")

    def do_GET(self) -> None:
        path, _, _ = self._asked()
        data = self.objects.get(path)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(data))
        end = min(end, len(data))
        how = {"Content_Range": f"bytes {start}-{end - 1}/{len(data)}"} if wanted else {}
        modified = "Fri, 27 Nov 2026 10:00:00 GMT"
        self._answer(206 if wanted else 200, data[start:end], ETag='"etag"', Last_Modified=modified, **how)

    def log_message(self, *_: Any) -> None: ...


class OneBucket:
    """A server that may be opened again after it was closed; objects, by their paths, stay."""

    def __init__(self, port: int = 0, objects: dict[str, bytes] | None = None) -> None:
        self.port, self.objects = port, {} if objects is None else objects
        self.is_unwell = threading.Event()
        shared = {"objects": self.objects, "parts": {}, "is_unwell": self.is_unwell}
        self._handler = type("OneS3", (SmallS3,), shared)
        self._server: ThreadingHTTPServer | None = None

    def open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def small_s3(port: int = 0, objects: dict[str, bytes] | None = None) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Its port, and its objects by their paths."""
    bucket = OneBucket(port, objects)
    bucket.open()
    try:
        yield bucket.port, bucket.objects
    finally:
        bucket.close()
