"""Ctrl-C and SIGTERM end a run between two steps, where its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; its record says ``interrupted`` and can be resumed.

    It is a KeyboardInterrupt, so that a sweep or a reproduction stops as a whole.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        """Name the signal."""
        super().__init__(signal.Signals(signum).name)
        self.signal = signum


class Interrupts:
    """Remembers the first signal; the second one interrupts at once.

    Args:
        patient: whether further signals change nothing. torchrun passes on to its ranks what they
            may have received already, and ends them itself if they take too long.
    """

    def __init__(self, *, patient: bool = False) -> None:
        """Start without a signal."""
        self.received: int | None = None
        self.patient = patient

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: note the signal, or raise if one was noted before."""
        if self.received is None:
            self.received = signum
        elif not self.patient:
            raise Interrupted(signum)


@contextmanager
def catch_interrupts(*, patient: bool = False) -> Iterator[Interrupts]:
    """Note SIGINT and SIGTERM inside instead of dying from them.

    Outside the main thread Python allows no handlers; nothing is caught there.

    Args:
        patient: see :class:`Interrupts`.
    """
    interrupts = Interrupts(patient=patient)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, interrupts.handle) for signum in caught}
    try:
        yield interrupts
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
