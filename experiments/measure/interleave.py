"""Timing several variants of one thing in turn, so that a drifting machine hits all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

MIN_ROUNDS = 3
"""Rounds that are run even where ``max_seconds`` is over, so that there is a median."""


def rounds(names: Sequence[str], repeats: int) -> Iterator[list[str]]:
    """Yield the order of every round: all names, starting with another one each time.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    for turn in range(repeats):
        start = turn % len(names)
        yield [*names[start:], *names[:start]]


def interleaved(
    work: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    max_seconds: float | None = None,
    synchronise: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each piece of work ``repeats`` times, round-robin.

    Args:
        work: what to time, by name.
        repeats: rounds.
        warmup: untimed rounds before.
        max_seconds: no round starts later than this after the first, except that there are
            :data:`MIN_ROUNDS`; None means no limit.
        synchronise: waits for the device; called before each reading of the clock.
        clock: seconds.

    Returns:
        Samples in seconds by name; those with the same index are of the same round.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    wait = synchronise or (lambda: None)
    for _ in range(warmup):
        for run in work.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in work}
    wait()
    began = clock()
    for turn, order in enumerate(rounds(list(work), repeats)):
        if turn >= MIN_ROUNDS and max_seconds is not None and clock() - began >= max_seconds:
            break
        with _no_collection():
            for name in order:
                wait()
                start = clock()
                work[name]()
                wait()
                samples[name].append(clock() - start)
    return samples


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before, not inside: its cost would fall on whichever sample triggers it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
