"""What the command lines that train many runs have in common: signals, messages, exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

from experiments.base.errors import UserError


def resumable(work: Callable[[], str]) -> int:
    """Do work that can be interrupted and continued by the same command; return the exit status.

    Args:
        work: does it and returns the closing line.

    Returns:
        0 done, 2 wrong input or failed runs, 130 interrupted by Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        closing = work()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    sys.stdout.write(f"{closing}\n")
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
