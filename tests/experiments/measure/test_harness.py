"""What measurements share: order of the rounds, arithmetic, result files, calls in a process."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.base.errors import DataError, RecordError
from experiments.measure import harness
from experiments.measure.harness import averaged, call, in_words, interleaved, pair_ratio, spread
from tests.experiments.measure.synthetic import ORIGIN, engine_entry
from tests.experiments.measure.tiny import CPU

TINY = "tests.experiments.measure.tiny"


class Bench:
    """A clock that moves by the seconds that work takes, and the order of calls."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls += name
            self.now += seconds

        return run

    def wait(self) -> None:
        self.calls += "."


def test_samples_are_taken_round_robin_after_the_warm_up() -> None:
    bench = Bench()
    work = {name: bench.work(name, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 3))}
    samples = interleaved(work, 4, warmup=2, clock=lambda: bench.now, synchronise=bench.wait)
    assert samples == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}
    # Each round starts with another one; the device is waited for before and after every sample.
    rounds = "".join(f".{name}." for name in "abc" + "bca" + "cab" + "abc")
    assert bench.calls == "abcabc" + "." + rounds
    with pytest.raises(ValueError, match="at least 1"):
        interleaved(work, 0)


@pytest.mark.parametrize(("seconds", "limit", "rounds"), [(9, 5, 3), (1, 5, 5), (1, None, 20)])
def test_a_slow_workload_stops_early_but_has_a_median(seconds, limit, rounds) -> None:
    bench = Bench()
    work = {"a": bench.work("a", seconds)}
    samples = interleaved(work, 20, max_seconds=limit, clock=lambda: bench.now)
    assert len(samples["a"]) == rounds


def test_garbage_is_not_collected_inside_a_sample() -> None:
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, 2, warmup=0)
    assert seen == [False, False]
    assert gc.isenabled()


def test_spread_is_median_and_quartiles() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.q25, found.q75, found.count) == (3.0, 2.0, 4.0, 5)
    assert spread([1.0, 2.0]).q25 == pytest.approx(1.25)  # between order statistics
    for samples in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite samples"):
            spread(samples)


def test_ratio_is_the_median_over_pairs_not_the_ratio_of_medians() -> None:
    # A machine that slows down threefold in the last round hits both samples of the pair.
    ours, other = [2.0, 4.0, 3.0], [1.0, 1.0, 3.0]
    assert pair_ratio(ours, other).median == 2.0
    assert spread(ours).median / spread(other).median == 3.0
    with pytest.raises(ValueError, match="2 samples and 1 references are no pairs"):
        pair_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be positive"):
        pair_ratio([1.0], [0.0])


def test_average_step_has_one_refresh_in_update_freq() -> None:
    ordinary, refresh = [1.0, 2.0], [5.0, 12.0]
    assert averaged(ordinary, refresh, 1) == refresh
    assert averaged(ordinary, refresh, 10) == pytest.approx([1.4, 3.0])
    with pytest.raises(ValueError, match="at least 1"):
        averaged(ordinary, refresh, 0)
    with pytest.raises(ValueError, match="shorter"):
        averaged(ordinary, [1.0], 10)


def test_every_workload_says_where_it_comes_from(tmp_path: Path) -> None:
    harness.save(tmp_path / "new", "engine", "conv", engine_entry(origin=harness.origin(CPU, 9)))
    results = json.loads((tmp_path / "new" / "engine.json").read_text())
    found = results["origin"]
    assert found == results["workloads"]["conv"]["origin"]
    assert (found["device"], found["repeats"]) == ("cpu", 9)
    assert found["processor"]
    assert found["threads"] == torch.get_num_threads()
    assert {"torch", "torchdiffeq", "python"} <= set(found["versions"])
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["date"][:2] == "20"


def test_a_new_workload_leaves_the_others(tmp_path: Path) -> None:
    for name, title in (("conv", "a"), ("linear", "b"), ("conv", "c")):
        harness.save(tmp_path, "engine", name, engine_entry(title))
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.save(tmp_path, "engine", "conv", engine_entry(bad=float("nan")))
    titles = {n: e["title"] for n, e in harness.entries(tmp_path, "engine").items()}
    assert titles == {"conv": "c", "linear": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine.json"]  # nothing left over


GOOD = {"benchmark": "engine", "schema": 1, "workloads": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "benchmark 'engine'"),
        (json.dumps({**GOOD, "benchmark": "memory"}), "benchmark 'engine'"),
        (json.dumps({**GOOD, "schema": 0}), "layout 0"),
        (json.dumps({**GOOD, "workloads": 1}), "no table"),
        (json.dumps({**GOOD, "workloads": {"conv": {}}}), "'conv' does not say its device, proc"),
    ],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        harness.save(tmp_path, "engine", "conv", engine_entry())
    assert (tmp_path / "engine.json").read_text() == text


def test_machines_in_words() -> None:
    assert in_words(ORIGIN) == "CPU (A Processor), 2 threads"
    assert in_words({**ORIGIN, "threads": 1}) == "CPU (A Processor), 1 thread"
    assert in_words({**ORIGIN, "device": "cuda (NVIDIA H200)"}) == "cuda (NVIDIA H200)"
    line = harness.machines([engine_entry(), engine_entry()])
    assert line == "CPU (A Processor), 2 threads; torch 2.13.0; 2026-01-02."


def test_a_process_gets_arguments_threads_and_environment() -> None:
    result = call(f"{TINY}:echo", {"a": [1, 2.5], "b": None})
    assert result == {"a": [1, 2.5], "b": None, "threads": torch.get_num_threads()}
    assert call("os:getenv", {"key": "SNOPT_TEST"}, environment={"SNOPT_TEST": "here"}) == "here"
    assert "SNOPT_TEST" not in os.environ


def test_what_goes_wrong_in_a_process_is_named() -> None:
    with pytest.raises(DataError, match=r"^no such data: put it into data/$"):
        call(f"{TINY}:fail", {"kind": "data", "message": "no such data: put it into data/"})
    with pytest.raises(RecordError, match="RuntimeError: it broke"):
        call(f"{TINY}:fail", {"kind": "bug", "message": "it broke"})
    with pytest.raises(RecordError, match=r"longer than 0\.05 s"):
        call(f"{TINY}:echo", {}, timeout=0.05)
