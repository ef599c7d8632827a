"""Running benchmarks: which workloads, in which order, and what is kept when one of them fails.

A benchmark prepares a workload, measures it in rounds, scores the samples, records the entry in
``<name>.json`` and draws from that file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.base.errors import ConfigError, RecordError
from experiments.measure import engine, harness, memory, pictures, scaling, step_cost
from experiments.measure.harness import Effort
from experiments.measure.workloads import ENGINE, TRAINING, Workload
from snopt import SolverError


@dataclass(frozen=True)
class Benchmark:
    """How one result file is made.

    ``measure`` returns the scored entry of one of ``workloads``, ``headline`` the line that is
    printed about it. ``draw`` draws from the result file in a folder and returns its files. Where
    no workload is chosen, those in ``unasked`` are measured; None means all.
    """

    workloads: Sequence[Workload]
    measure: Callable[[Workload, Effort], dict[str, Any]]
    headline: Callable[[Mapping[str, Any]], str]
    draw: Callable[[Path], list[Path]]
    unasked: Sequence[str] | None = None


BENCHMARKS = {
    "engine": Benchmark(ENGINE, engine.measure_engine, engine.headline, pictures.draw_engine),
    "optimizer": Benchmark(
        TRAINING,
        step_cost.measure_optimizer,
        step_cost.headline_optimizer,
        pictures.draw_optimizer,
    ),
    "memory": Benchmark(
        (*TRAINING, memory.STIFFENING),
        memory.measure_memory,
        memory.headline,
        pictures.draw_memory,
    ),
    "optimizers": Benchmark(
        TRAINING[:1],
        step_cost.measure_optimizers,
        step_cost.headline_optimizers,
        pictures.draw_optimizers,
    ),
    "scaling": Benchmark(
        TRAINING,
        scaling.measure_scaling,
        scaling.headline,
        scaling.write_tables,
        unasked=("digits", "mnist"),
    ),
}

ALL = ("engine", "optimizer", "memory", "optimizers")
"""The benchmarks that run together; ``scaling`` wants one thread and two idle cores."""

FINISHED = ("deferral",)
"""Benchmarks that are no longer measured; their results are kept."""


def chosen(benchmarks: Sequence[str], only: Sequence[str]) -> list[tuple[str, Workload]]:
    """Return benchmark and workload of every measurement; without ``only``, of all workloads.

    Raises:
        ConfigError: an unknown benchmark, or a workload that none of them has.
    """
    found: list[tuple[str, Workload]] = []
    known: list[str] = []
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}; valid: {', '.join(BENCHMARKS)}, all")
        names = [w.name for w in BENCHMARKS[name].workloads]
        known += names
        asked = only or BENCHMARKS[name].unasked or names
        found += [(name, w) for w in BENCHMARKS[name].workloads if w.name in asked]
    for workload in only:
        if workload not in known:
            valid = ", ".join(dict.fromkeys(known))
            raise ConfigError(f"unknown workload {workload!r}; valid: {valid}")
    return found


def run(
    planned: Sequence[tuple[str, Workload]],
    effort: Effort,
    folder: Path,
    say: Callable[[str], None],
) -> list[Path]:
    """Measure, write after every workload, draw; return the files written.

    A workload that fails does not stop the others, nor does a part of one that it names as failed.

    Raises:
        RecordError: a workload failed (all of them are named), or a file cannot be written.
    """
    failures: list[str] = []
    finished: list[str] = []
    for place, (name, workload) in enumerate(planned, start=1):
        benchmark, where = BENCHMARKS[name], f"{name} {workload.name}"
        say(f"[{place}/{len(planned)}] {name}: {workload.name}")
        started = harness.origin(effort.device, effort.repeats)
        try:
            entry = {"origin": started, **benchmark.measure(workload, effort)}
        except (RuntimeError, ValueError, SolverError, RecordError) as error:
            failures.append(f"{where}: {error}")
            say(f"    failed: {error}")
            continue
        harness.save(folder, name, workload.name, entry)
        say(f"    {benchmark.headline(entry)}")
        finished.append(name)
        for part, reason in entry.get("failed", {}).items():
            failures.append(f"{where}, {part}: {reason}")
            say(f"    failed: {part}: {reason}")
    written: list[Path] = []
    for name in dict.fromkeys(finished):
        written += [folder / f"{name}.json", *BENCHMARKS[name].draw(folder)]
    if written:
        written.append(harness.write_provenance(folder, [*BENCHMARKS, *FINISHED]))
    if failures:
        raise RecordError(f"{len(failures)} workloads failed:\n  " + "\n  ".join(failures))
    return written
