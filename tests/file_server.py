"""A server of files on the loopback address that can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` (bytes by path) and keeps what it is asked for.

    What it does with a request is the next of ``todo``, or ``usual`` when that is empty: the name
    of a method of `_Handler`.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], usual: str = "serve") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.usual, self.todo = files, usual, deque()
        self.asked: list[tuple[str, str | None]] = []  # path and Range of each request
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        path = unquote(urlsplit(self.path).path).lstrip("/")
        server.asked.append((path, self.headers.get("Range")))
        behave = server.todo.popleft() if server.todo else server.usual
        content = server.files.get(path)
        if content is None:
            self.gone(b"")
        else:
            getattr(self, behave)(content)

    def _head(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _drop(self) -> None:
        self.close_connection = True

    def serve(self, content: bytes) -> None:
        """As a good server: with ranges."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        size = len(content)
        if wanted and start >= size:
            self._head(0, 416, Content_Range=f"bytes */{size}")
        elif wanted:
            self._head(size - start, 206, Content_Range=f"bytes {start}-{size - 1}/{size}")
            self.wfile.write(content[start:])
        else:
            self.whole(content)

    def whole(self, content: bytes) -> None:
        """Everything, whatever range was asked for."""
        self._head(len(content))
        self.wfile.write(content)

    def other_range(self, content: bytes) -> None:
        """Another piece than the one asked for."""
        if self.headers.get("Range"):
            self._head(1, 206, Content_Range=f"bytes 0-0/{len(content)}")
            self.wfile.write(content[:1])
        else:
            self.whole(content)

    def of_unknown_size(self, content: bytes) -> None:
        self._head(None, Connection="close")
        self.wfile.write(content)
        self._drop()

    def truncate(self, content: bytes) -> None:
        """Half of what is announced, then the connection ends."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start, size = int(wanted[1]) if wanted else 0, len(content)
        if wanted:
            self._head(size - start, 206, Content_Range=f"bytes {start}-{size - 1}/{size}")
        else:
            self._head(size)
        self.wfile.write(content[start : start + (size - start) // 2])
        self._drop()

    def shorter(self, content: bytes) -> None:
        """Half of it, announced as if that were all."""
        self.whole(content[: len(content) // 2])

    def substitute(self, content: bytes) -> None:
        self.whole(b"\0" + content[1:])

    def page(self, _: bytes) -> None:
        """As a proxy that wants to know the user."""
        self.whole(b"<html>Please log in</html>")

    def encoded(self, content: bytes) -> None:
        self._head(len(content), Content_Encoding="gzip")
        self.wfile.write(content)

    def stall(self, content: bytes) -> None:
        """A third of it, and then nothing."""
        self._head(len(content))
        self.wfile.write(content[: len(content) // 3])
        self.wfile.flush()
        self.server.ended.wait()
        self._drop()

    def silent(self, _: bytes) -> None:
        """Nothing at all."""
        self.server.ended.wait()
        self._drop()

    def trickle(self, content: bytes) -> None:
        """A byte now and then."""
        self._head(len(content))
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.server.ended.wait(0.05):
                break
        self._drop()

    def busy(self, _: bytes) -> None:
        self._head(0, 503)

    def gone(self, _: bytes) -> None:
        self._head(0, 404)

    def forbidden(self, _: bytes) -> None:
        self._head(0, 403)

    def hang_up(self, _: bytes) -> None:
        self._drop()

    def elsewhere(self, _: bytes) -> None:
        self._head(0, 302, Location=f"{self.server.url}{self.path}")
