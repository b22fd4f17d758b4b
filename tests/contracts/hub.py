"""A small Hub on this machine: what the real huggingface_hub client asks for when it fetches files of a data set.

Not covered: Xet storage, tokens, redirects to another host.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPO, REVISION = "somebody/stories", "5" * 40


class Hub(ThreadingHTTPServer):
    """Holds one data set; `stall` is the number of bytes of a file after which its first download hangs."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], stall: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.stall = files, stall
        self.sent: list[tuple[str, int]] = []  # (file, first byte) of each download
        self.stalled, self.let_go = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path in (f"api/datasets/{REPO}", *(f"api/datasets/{REPO}/revision/{name}" for name in ("main", REVISION))):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(json.dumps({"id": REPO, "sha": REVISION, "siblings": siblings}).encode(), {})
            return
        name = path.removeprefix(f"datasets/{REPO}/resolve/{REVISION}/")
        if name in self.server.files:
            self._file(name)
        else:
            code = "RevisionNotFound" if REPO in path else "RepoNotFound"
            self._send(b"", {"X-Error-Code": code, "X-Error-Message": "no such thing"}, 404)

    def _file(self, name: str) -> None:
        content = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION,
                   "Accept-Ranges": "bytes"}  # fmt: skip
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.command == "GET":
            self.server.sent.append((name, start))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(content[start:], headers, 206 if start else 200)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.stall is not None and "ETag" in headers:
            self.wfile.write(content[: self.server.stall])
            self.wfile.flush()
            self.server.stall = None
            self.server.stalled.set()
            self.server.let_go.wait()
            return
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None: ...


@contextmanager
def hub(files: dict[str, bytes], stall: int | None = None) -> Iterator[Hub]:
    server = Hub(files, stall)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
