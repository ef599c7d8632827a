"""Running benchmarks: which workloads, in which order, and what is kept when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.base.errors import ConfigError, RecordError
from experiments.measure import engine, harness, memory, pictures, scaling, step_cost
from experiments.measure.workloads import ENGINE, TRAINING, Workload
from snopt import SolverError

Say = Callable[[str], None]

REPEATS, PROCESSES, MAX_SECONDS = 9, 2, 60.0


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        benchmarks: names in :data:`BENCHMARKS`.
        only: workloads; empty means all that the benchmark takes unasked.
        device: where.
        repeats: rounds of every timing.
        processes: processes for every measurement of memory.
        max_seconds: no round of a workload starts later than this.
        folder: where results go.
    """

    benchmarks: Sequence[str]
    only: Sequence[str]
    device: torch.device
    repeats: int = REPEATS
    processes: int = PROCESSES
    max_seconds: float = MAX_SECONDS
    folder: Path = Path("results/benchmarks")


@dataclass(frozen=True)
class Benchmark:
    """How one result file is made.

    Attributes:
        workloads: what it can be measured on.
        measure: returns the entry of a workload.
        headline: the one line that a person wants to see of an entry.
        draw: draws pictures and tables from the result file in a folder; returns their files.
        unasked: workloads that are measured where none is chosen; None means all.
    """

    workloads: Sequence[Workload]
    measure: Callable[[Workload, Plan], dict[str, Any]]
    headline: Callable[[Mapping[str, Any]], str]
    draw: Callable[[Path], list[Path]]
    unasked: Sequence[str] | None = None


BENCHMARKS = {
    "engine": Benchmark(
        ENGINE,
        lambda w, plan: engine.measure_engine(w, plan.device, plan.repeats, plan.max_seconds),
        engine.headline,
        pictures.draw_engine,
    ),
    "optimizer": Benchmark(
        TRAINING,
        lambda w, plan: step_cost.measure_optimizer(w, plan.device, plan.repeats, plan.max_seconds),
        step_cost.headline_optimizer,
        pictures.draw_optimizer,
    ),
    "memory": Benchmark(
        (*TRAINING, memory.STIFFENING),
        lambda w, plan: (
            memory.measure_steps(plan.device, plan.processes)
            if w is memory.STIFFENING
            else memory.measure_memory(w, plan.device, plan.processes)
        ),
        memory.headline,
        pictures.draw_memory,
    ),
    "optimizers": Benchmark(
        TRAINING[:1],
        lambda _, plan: step_cost.measure_optimizers(plan.device, plan.repeats),
        step_cost.headline_optimizers,
        pictures.draw_optimizers,
    ),
    "scaling": Benchmark(
        TRAINING,
        lambda w, plan: scaling.measure_scaling(w, plan.repeats),
        scaling.headline,
        scaling.write_tables,
        unasked=("digits", "mnist"),
    ),
}

ALL = ("engine", "optimizer", "memory", "optimizers")
"""The benchmarks that run together; ``scaling`` wants one thread and two idle cores."""

FINISHED = ("deferral",)
"""Benchmarks that are no longer measured, and whose results are kept."""


def measurements(plan: Plan) -> list[tuple[str, Workload]]:
    """Return benchmark and workload of every measurement, in order.

    Raises:
        ConfigError: an unknown benchmark, or a workload that none of them has.
    """
    found: list[tuple[str, Workload]] = []
    known: list[str] = []
    for name in plan.benchmarks:
        if name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}; valid: {', '.join(BENCHMARKS)}, all")
        names = [w.name for w in BENCHMARKS[name].workloads]
        known += names
        chosen = plan.only or BENCHMARKS[name].unasked or names
        found += [(name, w) for w in BENCHMARKS[name].workloads if w.name in chosen]
    for only in plan.only:
        if only not in known:
            raise ConfigError(
                f"unknown workload {only!r}; valid: {', '.join(dict.fromkeys(known))}"
            )
    return found


def run(plan: Plan, say: Say) -> list[Path]:
    """Measure, write after every workload, draw; return the files written.

    A workload that fails does not stop the others, nor does a part of one that it names as failed.

    Raises:
        ConfigError: see :func:`measurements`.
        RecordError: a workload failed (all of them are named), or a file cannot be written.
        KeyboardInterrupt: stopped; finished workloads are in their files.
    """
    failures: list[str] = []
    finished: list[str] = []
    planned = measurements(plan)
    for place, (benchmark, workload) in enumerate(planned, start=1):
        name = workload.name
        say(f"[{place}/{len(planned)}] {benchmark}: {name}")
        started = harness.origin(plan.device, plan.repeats)
        try:
            entry = {"origin": started, **BENCHMARKS[benchmark].measure(workload, plan)}
        except (RuntimeError, ValueError, SolverError, RecordError) as error:
            failures.append(f"{benchmark} {name}: {error}")
            say(f"    failed: {error}")
            continue
        harness.save(plan.folder, benchmark, name, entry)
        say(f"    {BENCHMARKS[benchmark].headline(entry)}")
        finished.append(benchmark)
        for part, reason in entry.get("failed", {}).items():
            failures.append(f"{benchmark} {name}, {part}: {reason}")
            say(f"    failed: {part}: {reason}")
    written: list[Path] = []
    for benchmark in dict.fromkeys(finished):
        written.append(plan.folder / f"{benchmark}.json")
        written += BENCHMARKS[benchmark].draw(plan.folder)
    if written:
        written.append(harness.write_provenance(plan.folder, [*BENCHMARKS, *FINISHED]))
    if failures:
        raise RecordError(f"{len(failures)} workloads failed:\n  " + "\n  ".join(failures))
    return written
