"""Ctrl-C, SIGTERM and their like end a run between two steps, where its state is whole.

After SIGTERM, which ends a pre-empted job, and all others but Ctrl-C, a run waits :data:`GRACE_S`
for the step or evaluation under way, then gives that up; it resumes from its last checkpoint.
Before a long step or validation (:data:`LONG_S`) the trainer writes a checkpoint, so that no more
is lost. Several ranks, which cannot give up one by one, wait for the end of the step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

GRACE_S: Final = 6.0
"""Seconds from SIGTERM to giving up what is under way; the record is written within ten."""

LONG_S: Final = 3.0
"""Seconds from which on a step or validation is long."""


_WARNINGS: Final = (
    signal.SIGHUP,  # the terminal goes away
    signal.SIGQUIT,
    signal.SIGUSR1,  # a cluster announces the end of the job, by one or the other
    signal.SIGUSR2,
    signal.SIGXCPU,  # a limit of CPU seconds: once a second until the process is killed
)


def stopping() -> list[signal.Signals]:
    """Return the signals that stop a run: not those that are ignored (nohup) or others handle."""
    free = [one for one in _WARNINGS if signal.getsignal(one) == signal.SIG_DFL]
    return [signal.SIGINT, signal.SIGTERM, *free]


_PARENT: Final = "SNOPT_WORKERS_OF"
"""Environment variable: process whose workers get signals from it."""

_stopped = False
"""Whether a run of this process, which is a worker, was stopped."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the signal of number ``signal``; its record can be resumed.

    It is a KeyboardInterrupt, so that a sweep or a reproduction stops as a whole.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        """Name the signal."""
        super().__init__(signal.Signals(signum).name)
        self.signal = signum


class Interrupts:
    """Remembers the first signal; a second Ctrl-C or SIGTERM interrupts at once.

    So does the end of patience.

    Args:
        patient: whether further signals change nothing. torchrun passes on to its ranks what they
            may have received already, and ends them itself if they take too long.
        grace_s: seconds from the first signal, if it is not Ctrl-C, to the end of patience; None:
            no end.
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
            if signum != signal.SIGINT and self.grace_s is not None:
                signal.setitimer(signal.ITIMER_REAL, self.grace_s)
        elif not self.patient and signum in (signal.SIGINT, signal.SIGTERM):
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
    """Note signals (:func:`stopping`) inside instead of dying from them.

    Outside the main thread, where Python allows no handlers, nothing is caught. ``for_good`` says
    that the signals change nothing afterwards either: the process ends by itself, and must not be
    cut off before it has said why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts(patient=patient)
        return
    interrupts = Interrupts(patient=patient, grace_s=None if patient else GRACE_S)
    handlers = dict.fromkeys(stopping(), interrupts.handle)
    before = {
        signum: signal.signal(signum, handler)
        for signum, handler in {**handlers, signal.SIGALRM: interrupts.out_of_time}.items()
    }
    blocked = None
    if in_worker():
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    try:
        yield interrupts
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for signum, old in before.items():
            if not for_good or signum == signal.SIGALRM:
                signal.signal(signum, old)


@contextmanager
def passing_on() -> Iterator[None]:
    """Let the worker processes of a launcher (joblib) end their runs as a process alone does.

    A terminal's Ctrl-C reaches all processes, and the launcher kills its workers with the first one
    that ends. Here signals go to this process alone, which passes them on, and workers finish what
    they do in :func:`as_worker`. Signals are blocked in workers from their start; so none of them
    is lost, nor kills a worker, before its run listens.

    Raises:
        Interrupted: a signal came; all runs have ended.
    """
    received, done = [], threading.Event()

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, signum)

    os.environ[_PARENT] = str(os.getpid())
    handlers = {signum: signal.signal(signum, pass_on) for signum in stopping()}
    listener = threading.Thread(target=done.wait)  # a thread that the kernel may give signals to
    listener.start()
    # The main thread, from which workers are started, hands down that it takes none.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        done.set()
        listener.join()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    if received:
        raise Interrupted(received[0])


def in_worker() -> bool:
    """Return whether this process is a worker of one that passes signals on."""
    own = str(os.getpid())
    return os.environ.get(_PARENT, own) != own


def as_worker(work: Callable[[], object]) -> None:
    """Do a job of a worker; one that is interrupted is its last, and ends like any other."""
    global _stopped
    with suppress(PermissionError):  # of a session of its own already
        os.setsid()  # the terminal's Ctrl-C reaches it through the parent, exactly once
    if _stopped:
        return
    try:
        work()
    except Interrupted:
        _stopped = True
