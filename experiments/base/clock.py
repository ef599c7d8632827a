"""A clock with three accounts that always add up to the wall time.

Optimizers are compared by wall time, so what is counted decides who wins. The rule: ``train``
holds everything an optimizer needs (drawing the batch, both passes, curvature, extra solves, the
update) and nothing else; ``evaluation`` holds validation and test; ``logging`` holds the rest:
set-up, records, checkpoints, tracking, the progress bar.

Exactly one account is open at any moment, so that no second is lost or counted twice.

Beside the wall time of ``train`` the clock keeps its CPU seconds: those of all threads of this
process, without processes that it started. On a machine where something else runs, wall time grows
and CPU time does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

TRAIN: Final = "train"
EVALUATION: Final = "evaluation"
LOGGING: Final = "logging"
ACCOUNTS: Final = (TRAIN, EVALUATION, LOGGING)
_CPU: Final = "train_cpu"


class Clock:
    """Accumulates seconds in three accounts, from its creation on; ``logging`` is open first.

    Args:
        synchronise: called before every reading; on CUDA this must wait for the queued kernels.
        now: source of time in seconds; replaced in tests.
        cpu: source of CPU time in seconds; replaced in tests.
    """

    def __init__(
        self,
        synchronise: Callable[[], None] | None = None,
        now: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        """Start the clock."""
        self._synchronise = synchronise
        self._now, self._cpu = now, cpu
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._open = LOGGING
        self._since, self._cpu_since, self._train_cpu = now(), cpu(), 0.0
        self._started = self._since
        self._wall_before = 0.0

    @contextmanager
    def booked_on(self, account: str) -> Iterator[None]:
        """Book the time spent inside on ``account``, then on the account that was open before."""
        if account not in ACCOUNTS:
            raise ValueError(f"unknown account {account!r}; the accounts are {', '.join(ACCOUNTS)}")
        outer = self._switch(account)
        try:
            yield
        finally:
            self._switch(outer)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every account up to now."""
        self._switch(self._open)
        return dict(self._seconds)

    def train_cpu(self) -> float | None:
        """Return the CPU seconds of ``train``; None if a process before this one kept none."""
        self._switch(self._open)
        return None if math.isnan(self._train_cpu) else self._train_cpu

    def wall(self) -> float:
        """Return the seconds since the start, measured apart from the accounts."""
        return self._wall_before + self._now() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint needs to continue the accounts."""
        return {**self.seconds(), "wall": self.wall(), _CPU: self._train_cpu}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Add the seconds of an earlier process; ValueError if one is missing or impossible."""
        for name in (*ACCOUNTS, "wall"):
            if not 0 <= state.get(name, math.nan) < math.inf:
                raise ValueError(f"{name} is {state.get(name)!r} seconds")
        for account in ACCOUNTS:
            self._seconds[account] += state[account]
        self._wall_before += state["wall"]
        self._train_cpu += state.get(_CPU, math.nan)  # older checkpoints have none

    def _switch(self, account: str) -> str:
        """Close the open account, open ``account`` and return the one that was open."""
        if self._synchronise is not None:
            self._synchronise()
        now, cpu = self._now(), self._cpu()
        self._seconds[self._open] += now - self._since
        if self._open == TRAIN:
            self._train_cpu += cpu - self._cpu_since
        self._since, self._cpu_since = now, cpu
        previous, self._open = self._open, account
        return previous
