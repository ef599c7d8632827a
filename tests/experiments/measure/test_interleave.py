"""Order of the rounds, warm-up, limits; a fake clock tells the samples."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from experiments.measure.interleave import MIN_ROUNDS, interleaved, rounds


class Bench:
    """Work that takes a known time of a clock of its own, and remembers the order of calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.waits = 0

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run

    def wait(self) -> None:
        self.waits += 1


def test_rounds_hold_all_names_and_start_with_another_each_time() -> None:
    assert list(rounds("abc", 4)) == [list("abc"), list("bca"), list("cab"), list("abc")]
    with pytest.raises(ValueError, match="at least 1"):
        list(rounds("abc", 0))


def test_samples_are_taken_round_robin_after_the_warm_up() -> None:
    bench = Bench()
    work = {"a": bench.work("a", 1.0), "b": bench.work("b", 2.0)}
    samples = interleaved(work, 3, warmup=2, clock=bench.clock, synchronise=bench.wait)
    assert samples == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(bench.calls) == "abab" + "ab" + "ba" + "ab"
    assert bench.waits == 1 + 2 * 6  # before and after every sample, and once before the first


def test_a_slow_workload_stops_early_but_has_a_median() -> None:
    bench = Bench()
    slow = interleaved({"a": bench.work("a", 9.0)}, 20, max_seconds=5.0, clock=bench.clock)
    assert len(slow["a"]) == MIN_ROUNDS
    bench = Bench()
    some = interleaved({"a": bench.work("a", 1.0)}, 20, max_seconds=5.0, clock=bench.clock)
    assert len(some["a"]) == 5
    bench = Bench()
    assert len(interleaved({"a": bench.work("a", 1.0)}, 20, clock=bench.clock)["a"]) == 20


def test_garbage_is_not_collected_inside_a_sample() -> None:
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, 2, warmup=0)
    assert seen == [False, False]
    assert gc.isenabled()
