"""What all measurements share: timings in turn, their spread, result files, fresh processes.

A *sample* is one timed repetition in seconds. Variants are timed in turn, and samples with the same
index are of one round. The ratio of such a pair does not see slow changes of the machine; a ratio
here is always the median over pairs.

Peak memory belongs to a process: what one measurement allocates stays resident in the next one.
:func:`call` runs ``python -m experiments.measure.harness MODULE:FUNCTION`` with the arguments as
JSON on its standard input; the result is the last line of its standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.base import errors
from experiments.base.device import describe, synchroniser
from experiments.base.environment import REPOSITORY, git_state, versions
from experiments.base.errors import RecordError, UserError
from experiments.base.files import write_whole
from experiments.publish.provenance import processor

# --- timings in turn -----------------------------------------------------------------------------

MIN_ROUNDS = 3
"""Rounds that run even after ``max_seconds``, so that there is a median."""


def interleaved(
    work: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    max_seconds: float | None = None,
    synchronise: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time all work, round-robin; each round starts with another one.

    Args:
        work: what to time, by name.
        repeats: rounds, at least 1.
        warmup: untimed rounds before.
        max_seconds: no round after the first :data:`MIN_ROUNDS` starts later than this.
        synchronise: waits for the device; called before each reading of the clock.
        clock: seconds.

    Returns:
        Samples in seconds by name; those with the same index are of the same round.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    wait = synchronise or (lambda: None)
    for _ in range(warmup):
        for run in work.values():
            run()
    names = list(work)
    samples: dict[str, list[float]] = {name: [] for name in names}
    wait()
    end = math.inf if max_seconds is None else clock() + max_seconds
    for turn in range(repeats):
        if turn >= MIN_ROUNDS and clock() >= end:
            break
        first = turn % len(names)
        gc.collect()  # between rounds: within one it would fall on whichever sample triggers it
        gc.disable()
        try:
            for name in names[first:] + names[:first]:
                wait()
                start = clock()
                work[name]()
                wait()
                samples[name].append(clock() - start)
        finally:
            gc.enable()
    return samples


@dataclass(frozen=True)
class Effort:
    """Where and how long a benchmark measures: each value of memory in ``processes`` processes."""

    device: torch.device
    repeats: int = 9
    processes: int = 2
    max_seconds: float | None = 60.0

    def rounds(
        self, work: Mapping[str, Callable[[], object]], factor: int = 1, warmup: int = 1
    ) -> dict[str, list[float]]:
        """Return the samples of ``factor * repeats`` rounds; see :func:`interleaved`."""
        return interleaved(
            work,
            factor * self.repeats,
            warmup=warmup,
            max_seconds=self.max_seconds,
            synchronise=synchroniser(self.device),
        )


# --- arithmetic on samples -----------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``count`` numbers."""

    median: float
    q25: float
    q75: float
    count: int


def spread(samples: Sequence[float]) -> Spread:
    """Return median and quartiles (linear interpolation between order statistics).

    Raises:
        ValueError: there is no sample, or one of them is not finite.
    """
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"expected finite samples, got {list(samples)}")
    q25, median, q75 = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    return Spread(median, q25, q75, len(samples))


def pair_ratio(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread over rounds of ``samples[i] / reference[i]``.

    Raises:
        ValueError: the two are no pairs, or a reference is not positive.
    """
    if len(samples) != len(reference):
        raise ValueError(f"{len(samples)} samples and {len(reference)} references are no pairs")
    if any(not value > 0 for value in reference):
        raise ValueError(f"references must be positive, got {list(reference)}")
    return spread([s / r for s, r in zip(samples, reference, strict=True)])


def averaged(ordinary: Sequence[float], refresh: Sequence[float], update_freq: int) -> list[float]:
    """Return the mean cost of a step, one in ``update_freq`` a refresh step, by round."""
    if update_freq < 1:
        raise ValueError(f"update_freq must be at least 1, got {update_freq}")
    return [
        ((update_freq - 1) * cheap + dear) / update_freq
        for cheap, dear in zip(ordinary, refresh, strict=True)
    ]


# --- where measurements come from ----------------------------------------------------------------


def origin(device: torch.device, repeats: int) -> dict[str, Any]:
    """Return what a reader must know to compare a measurement with another one."""
    return {
        "device": describe(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
    }


def in_words(entry: Mapping[str, Any]) -> str:
    """Return device and threads of an origin for a caption."""
    if entry["device"] != "cpu":
        return str(entry["device"])
    threads = entry["threads"]
    return f"CPU ({entry['processor']}), {threads} thread{'' if threads == 1 else 's'}"


def machines(found: Iterable[Mapping[str, Any]]) -> str:
    """Return machines, versions of torch and days of several entries for a caption."""
    origins = [entry["origin"] for entry in found]
    where = " and ".join(sorted({in_words(one) for one in origins}))
    days = sorted({one["date"][:10] for one in origins})
    torches = " and ".join(sorted({one["versions"]["torch"] for one in origins}))
    return f"{where}; torch {torches}; {' to '.join(dict.fromkeys([days[0], days[-1]]))}."


# --- result files --------------------------------------------------------------------------------
#
# All raise RecordError where a file is damaged or cannot be written.

SCHEMA = 1
_ORIGIN_KEYS = ("device", "processor", "threads", "versions", "git", "date", "repeats")


def load(folder: Path, benchmark: str) -> dict[str, Any]:
    """Return a benchmark's result file; without workloads where there is no file yet."""
    path = folder / f"{benchmark}.json"
    if not path.is_file():
        return {"benchmark": benchmark, "schema": SCHEMA, "origin": None, "workloads": {}}
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is damaged ({error}): remove it") from error
    if not isinstance(results, dict) or results.get("benchmark") != benchmark:
        raise RecordError(f"{path} does not hold the results of benchmark {benchmark!r}")
    if results.get("schema") != SCHEMA:
        raise RecordError(
            f"{path} has layout {results.get('schema')}, this version writes {SCHEMA}: remove it"
        )
    if not isinstance(results.get("workloads"), dict):
        raise RecordError(f"{path} has no table of workloads")
    for name, entry in results["workloads"].items():
        missing = [key for key in _ORIGIN_KEYS if key not in entry.get("origin", {})]
        if missing:
            raise RecordError(f"{path}: workload {name!r} does not say its {', '.join(missing)}")
    return results


def entries(folder: Path, benchmark: str) -> dict[str, dict[str, Any]]:
    """Return the workloads of a benchmark, at least one.

    Raises:
        RecordError: there is none.
    """
    found: dict[str, dict[str, Any]] = load(folder, benchmark)["workloads"]
    if not found:
        raise RecordError(f"there are no results in {folder / benchmark}.json yet")
    return found


def save(folder: Path, benchmark: str, name: str, entry: Mapping[str, Any]) -> None:
    """Put one workload's entry into the benchmark's file; the others stay as they are."""
    results = load(folder, benchmark)
    results["origin"] = entry["origin"]  # the newest one
    results["workloads"][name] = dict(entry)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / f"{benchmark}.json", text)


def write_provenance(folder: Path, benchmarks: Iterable[str]) -> Path:
    """Write the origin of every workload of some benchmarks; return the file."""
    origins = {}
    for benchmark in benchmarks:
        if found := load(folder, benchmark)["workloads"]:
            origins[benchmark] = {name: entry["origin"] for name, entry in found.items()}
    content = {"command": "make benchmark", "origins": origins}
    path = folder / "provenance.json"
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


# --- a process for a measurement -----------------------------------------------------------------

_USER_ERROR = 2  # exit status


def call(
    target: str,
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900.0,
) -> Any:
    """Call ``module:function`` in a fresh process, with as many threads as this one has.

    Keyword arguments and result must fit into JSON.

    Raises:
        RecordError: the call failed or took longer than ``timeout`` seconds.
        UserError: the function raised one; of the same class.
    """
    threads = torch.get_num_threads()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.measure.harness", target],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})},
            input=json.dumps({"arguments": dict(arguments), "threads": threads}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise RecordError(f"{target} took longer than {timeout:g} s: {dict(arguments)}") from None
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == _USER_ERROR and last:
        error = json.loads(last)
        raise getattr(errors, error["kind"], UserError)(error["message"])
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise RecordError(f"{target} failed in its process: {reason} ({dict(arguments)})")
    return json.loads(last)


def _answer(target: str) -> int:
    """Answer one :func:`call` in its process; return the exit status."""
    request = json.loads(sys.stdin.read())
    torch.set_num_threads(request["threads"])
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        result, status = function(**request["arguments"]), 0
    except UserError as error:
        result = {"kind": type(error).__name__, "message": str(error)}
        status = _USER_ERROR
    sys.stdout.write("\n" + json.dumps(result, allow_nan=False) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(_answer(sys.argv[1]))
