"""Small files in the original formats, the folder with real data, and a web server to misuse."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def real_data() -> Path:
    """The folder with real data, or a skip with the reason."""
    folder = Path(os.environ.get("SNOPT_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (SNOPT_DATA_DIR says where it is)")
    return folder


def as_ts(
    series: Sequence[np.ndarray], labels: Sequence[str], classes: Sequence[str], **tags: str
) -> str:
    """A ``.ts`` file: series (channels, length) with NaN as '?', and tags of the header."""
    header = {
        "problemName": "Made",
        "timeStamps": "false",
        "univariate": "false",
        "dimensions": str(len(series[0])),
        "classLabel": f"true {' '.join(classes)}",
    } | tags
    lines = ["# made by a test", *(f"@{key} {value}" for key, value in header.items()), "@data"]
    for values, label in zip(series, labels, strict=True):
        channels = [",".join("?" if np.isnan(v) else repr(float(v)) for v in row) for row in values]
        lines.append(":".join([*channels, label]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def ts_text() -> Callable[..., str]:
    """The function that writes series as the text of a ``.ts`` file."""
    return as_ts


@pytest.fixture
def write_problem(tmp_path: Path) -> Callable[..., Path]:
    """Write both files of a UEA problem below ``tmp_path / "data"`` and return that folder."""

    def write(
        name: str, series: Sequence[np.ndarray], labels: Sequence[str], folder: str = "uea"
    ) -> Path:
        target = tmp_path / "data" / folder / name
        target.mkdir(parents=True)
        half, classes = len(series) // 2, sorted(set(labels))
        for split, part in (("TRAIN", slice(None, half)), ("TEST", slice(half, None))):
            text = as_ts(series[part], labels[part], classes)
            (target / f"{name}_{split}.ts").write_text(text)
        return tmp_path / "data"

    return write


@dataclass
class Server:
    """What a local web server answers, by path."""

    url: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # path -> bytes sent before it hangs up
    failures: dict[str, list[int]] = field(default_factory=dict)  # path -> statuses sent first
    hits: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on 127.0.0.1 that can hang up early and fail on purpose."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.hits[self.path] += 1
            if state.failures.get(self.path):
                self.send_error(state.failures[self.path].pop(0))
                return
            if self.path not in state.bodies:
                self.send_error(404)
                return
            body = state.bodies[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut.get(self.path, len(body))])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()
