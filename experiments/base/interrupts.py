"""Ctrl-C and SIGTERM end a run between two steps, where its state is whole.

After SIGTERM, which ends a pre-empted job, a run waits :data:`GRACE_S` for the step or evaluation
under way, then gives that up; it resumes from its last checkpoint. Before a long step or validation
(:data:`LONG_S`) the trainer writes a checkpoint, so that no more is lost. Several ranks, which
cannot give up one by one, wait for the end of the step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

GRACE_S: Final = 6.0
"""Seconds from SIGTERM to giving up what is under way; the record is written within ten."""

LONG_S: Final = 3.0
"""Seconds from which on a step or validation is long."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the signal of number ``signal``; its record can be resumed.

    It is a KeyboardInterrupt, so that a sweep or a reproduction stops as a whole.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        """Name the signal."""
        super().__init__(signal.Signals(signum).name)
        self.signal = signum


class Interrupts:
    """Remembers the first signal; the second one interrupts at once, as does the end of patience.

    Args:
        patient: whether further signals change nothing. torchrun passes on to its ranks what they
            may have received already, and ends them itself if they take too long.
        grace_s: seconds from a first SIGTERM to the end of patience; None: no end.
    """

    def __init__(self, *, patient: bool = False, grace_s: float | None = None) -> None:
        """Start without a signal."""
        self.received: int | None = None
        self.patient = patient
        self.grace_s = grace_s

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: note the signal, or raise if one was noted before."""
        if self.received is None:
            self.received = signum
            if signum == signal.SIGTERM and self.grace_s is not None:
                signal.setitimer(signal.ITIMER_REAL, self.grace_s)
        elif not self.patient:
            raise Interrupted(signum)

    def out_of_time(self, signum: int, frame: FrameType | None) -> None:
        """Handler of the timer: interrupt at once."""
        raise Interrupted(signal.SIGTERM if self.received is None else self.received)

    def settle(self) -> None:
        """Stop the timer: a whole state has been reached and is being saved."""
        if self.grace_s is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def catch_interrupts(*, patient: bool = False, for_good: bool = False) -> Iterator[Interrupts]:
    """Note SIGINT and SIGTERM inside instead of dying from them.

    Outside the main thread, where Python allows no handlers, nothing is caught. ``for_good`` says
    that the signals change nothing afterwards either: the process ends by itself, and must not be
    cut off before it has said why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts(patient=patient)
        return
    interrupts = Interrupts(patient=patient, grace_s=None if patient else GRACE_S)
    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupts.handle)
    before = {
        signum: signal.signal(signum, handler)
        for signum, handler in {**handlers, signal.SIGALRM: interrupts.out_of_time}.items()
    }
    try:
        yield interrupts
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for signum, old in before.items():
            if not for_good or signum == signal.SIGALRM:
                signal.signal(signum, old)
