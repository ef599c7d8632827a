"""A web server on 127.0.0.1 that answers as badly as a test wants."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What a local web server answers, by path; each response counts the bytes of its own body."""

    url: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # bytes sent before it hangs up
    reset: set[str] = field(default_factory=set)  # ... and then by a reset, once all is read
    read: int = 0  # bytes that the client says it has read
    failures: dict[str, list[int]] = field(default_factory=dict)  # statuses sent first
    ranges: set[str] = field(default_factory=set)  # paths that honour Range
    wrong_range: dict[str, str] = field(default_factory=dict)  # Content-Range sent instead
    etags: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, str | None] = field(default_factory=dict)  # announced instead; None: nothing
    hits: Counter[str] = field(default_factory=Counter)
    asked: list[str | None] = field(default_factory=list)  # Range of every request, in order


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server until the end of the block."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.hits[self.path] += 1
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.failures.get(self.path):
                self.send_error(state.failures[self.path].pop(0))
                return
            if self.path not in state.bodies:
                self.send_error(404)
                return
            body, start = state.bodies[self.path], 0
            etag = state.etags.get(self.path)
            if wanted and self.path in state.ranges:
                same = self.headers.get("If-Range") in (None, etag)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if same else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                right = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.send_header("Content-Range", state.wrong_range.get(self.path, right))
            if etag:
                self.send_header("ETag", etag)
            length = state.lengths.get(self.path, str(len(body) - start))
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            end = start + state.cut[self.path] if self.path in state.cut else None
            self.wfile.write(body[start:end])
            if self.path in state.reset:
                while state.read < min(start + state.cut[self.path], len(body)):
                    time.sleep(0.01)  # what the client has not read by then is lost to it
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
