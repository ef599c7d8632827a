"""Streams that never stop the work: what is said goes through here, whoever says it.

A terminal goes away, the reader of a pipe ends, the disk behind a redirected stdout is full, a
stream knows ASCII alone or was closed before the start: none of it is a reason to lose a run. So
every command puts :func:`keep_talking` first, which replaces stdout and stderr. Whatever writes to
them afterwards (print, rich, warnings, logging, a traceback) is written if it can be, and lost if
it cannot. Results are in records, not in what is said.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

from experiments.base.errors import UserError
from experiments.base.interrupts import Interrupted, stopping

PATIENCE_S: Final = 5.0
"""Seconds for which a terminal that takes nothing is waited for (a connection that hangs)."""

_PLAIN: Final = {"→": "->", "·": "-", "–": "-", "…": "...", "−": "-", "×": "x", "±": "+/-"}


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what a stream's encoding lacks by a plain sign or, in names, by its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (
        _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs
    )
    return "".join(plain), error.end


codecs.register_error("plainly", _plainly)


class _Patient(io.RawIOBase):
    """An open file whose writes never fail: what cannot be written is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._terminal = os.isatty(descriptor)
        self._stuck = False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._terminal

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        rest = view
        while rest and self._ready():
            try:
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            except BlockingIOError:
                continue  # someone else made the stream non-blocking
            except BrokenPipeError:
                self._close()
            except OSError:
                break
        return len(view)

    def _ready(self) -> bool:
        """Wait until the stream takes something; a terminal may be waited for in vain only once."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        patience = 0.0 if self._stuck else PATIENCE_S
        ready = bool(poll.poll(1000 * patience if self._terminal else None))
        self._stuck = not ready
        return ready

    def _close(self) -> None:
        """Let all that follows go nowhere, also what other libraries and processes say."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)


def keep_talking() -> None:
    """Replace stdout and stderr by streams that never raise; harmless if it was done before.

    A stream that is not the process's own (a test's capture) stays.
    """
    for number in range(3):  # one that is closed would become the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if stream is not getattr(sys, f"__{name}__") or isinstance(raw, _Patient):
            continue
        # Python has none where the stream was closed: its number may be another file's by now.
        descriptor = number if stream else os.open(os.devnull, os.O_WRONLY)
        kept = io.TextIOWrapper(
            io.BufferedWriter(_Patient(descriptor)),
            encoding=stream.encoding if stream else "utf-8",
            errors="plainly",
            line_buffering=True,
        )
        setattr(sys, name, kept)
        setattr(sys, f"__{name}__", kept)


def duration(seconds: float) -> str:
    """Return a duration in words: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def resumable(
    work: Callable[[], str], interrupted: str = "the same command goes on from here"
) -> int:
    """Do work that the same command can continue, print the closing line that it returns.

    Nothing that is said on the way stops it.

    Returns:
        The exit status: 0 done, 2 wrong input or failed runs, 128 and the number of the signal
        where it was stopped: 130 after Ctrl-C, 143 after SIGTERM.
    """
    keep_talking()
    for signum in stopping():
        if signum != signal.SIGINT:
            signal.signal(signum, _interrupt)
    try:
        closing = work()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"interrupted; {interrupted}\n")
        return 128 + getattr(error, "signal", signal.SIGINT)
    sys.stdout.write(f"{closing}\n")
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for one in signal.valid_signals():  # a second one, as of a CPU limit, must not cut off the end
        if signal.getsignal(one) is _interrupt:
            signal.signal(one, signal.SIG_IGN)
    raise Interrupted(signum)
