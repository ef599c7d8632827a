"""Whatever happens to the streams of a command, it does its work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]

SPEAKING = """
import logging, sys, time, warnings
from pathlib import Path
from rich.console import Console
from rich.progress import Progress
from experiments.base import say
say.PATIENCE_S = 0.1
say.keep_talking()
say.keep_talking()
logging.basicConfig(level="INFO")
for stream in (sys.stdout, sys.stderr):
    with Progress(console=Console(file=stream, force_terminal=True)) as bar:
        for _ in bar.track(range(3)):
            print("é → ü · \\udcff", file=stream)
            Console(file=stream).print("é → ü ·")
            warnings.warn("é →")
            logging.info("é →")
            stream.flush()
            time.sleep(0.01)
Path(sys.argv[1]).write_text("done")
raise SystemExit(7)
"""


@pytest.fixture
def speak(tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs what says a lot in many ways, and asserts that it ends."""

    def call(**streams: object) -> int:
        done, environment = tmp_path / "done", {"PYTHONPATH": str(REPOSITORY), **os.environ}
        environment |= streams.pop("environment", {})
        command = [sys.executable, "-c", SPEAKING, str(done)]
        code = subprocess.run(command, env=environment, timeout=120, **streams).returncode
        assert done.read_text() == "done"
        return code

    return call


@pytest.fixture(params=["pipe", "terminal", "file"])
def gone(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the writing end of a pipe without reader, a terminal without window, /dev/full."""
    if request.param == "file":
        reading, writing = None, os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe() if request.param == "pipe" else os.openpty()
        os.close(reading)
    yield writing
    os.close(writing)


def test_a_stream_that_is_gone_stops_nothing(speak, gone):
    assert speak(stdout=gone, stderr=gone) == 7
    assert speak(stdout=gone, stderr=subprocess.DEVNULL) == 7


def test_streams_that_were_closed_before_the_start_stop_nothing(speak):
    assert speak(preexec_fn=lambda: [os.close(number) for number in range(3)]) == 7


def test_a_terminal_that_takes_nothing_is_not_waited_for(speak):
    """A connection that hangs: nobody reads, and the terminal's buffer is full."""
    reading, writing = os.openpty()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    assert speak(stdout=writing, stderr=writing) == 7
    os.close(reading)
    os.close(writing)


def test_a_stream_made_non_blocking_by_its_other_users_loses_nothing(tmp_path):
    """The write of more than a pipe holds waits for the reader instead of raising."""
    say = "from experiments.base.say import keep_talking; keep_talking(); print('x' * 300_000)"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    environment = {"PYTHONPATH": str(REPOSITORY), **os.environ}
    process = subprocess.Popen([sys.executable, "-c", say], stdout=writing, env=environment)
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.read() == "x" * 300_000 + "\n"
    assert process.wait(timeout=60) == 0


def test_signs_that_a_stream_lacks_are_replaced(speak, tmp_path):
    path = tmp_path / "said"
    with path.open("wb") as file:
        code = speak(stdout=file, stderr=file, environment={"PYTHONIOENCODING": "ascii"})
    assert code == 7
    said = path.read_text("ascii")
    assert "\\xe9 -> \\xfc - \\udcff" in said
    assert "Traceback" not in said


def test_a_run_is_trained_without_anybody_to_listen(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    settings = ["model=conv_ode_small", "optimizer=adam", "trainer.max_steps=1", "tracking=none"]
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *settings]
    ended = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, timeout=240)
    assert ended.returncode == 0
    assert '"done"' in next(tmp_path.rglob("status.json")).read_text()
