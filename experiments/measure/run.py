"""Running benchmarks: which workloads, in which order, and what is kept when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.base.errors import ConfigError, RecordError
from experiments.measure import engine, harness, memory, pictures, scaling, step_cost
from experiments.measure.workloads import ENGINE, TRAINING
from snopt import SolverError

Measure = Callable[[], dict[str, Any]]

Say = Callable[[str], None]

REPEATS = 9

PROCESSES = 2

MAX_SECONDS = 60.0


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


def _engine(plan: Plan) -> dict[str, Measure]:
    timing = (plan.device, plan.repeats, plan.max_seconds)
    return {w.name: partial(engine.measure_engine, w, *timing) for w in ENGINE}


def _optimizer(plan: Plan) -> dict[str, Measure]:
    timing = (plan.device, plan.repeats, plan.max_seconds)
    return {w.name: partial(step_cost.measure_optimizer, w, *timing) for w in TRAINING}


def _memory(plan: Plan) -> dict[str, Measure]:
    where = (plan.device, plan.processes)
    of_nets: dict[str, Measure] = {
        w.name: partial(memory.measure_memory, w, *where) for w in TRAINING
    }
    return {**of_nets, memory.STEPS: partial(memory.measure_steps, *where)}


def _optimizers(plan: Plan) -> dict[str, Measure]:
    return {"digits": partial(step_cost.measure_optimizers, plan.device, plan.repeats)}


def _scaling(plan: Plan) -> dict[str, Measure]:
    return {w.name: partial(scaling.measure_scaling, w, plan.repeats) for w in TRAINING}


@dataclass(frozen=True)
class Benchmark:
    """One result file.

    Attributes:
        workloads: returns what measures each workload, by its name.
        draw: draws pictures and tables from the result file in a folder; returns their files.
        headline: returns the one line that a person wants to see of a workload's entry.
        unasked: workloads that are measured where none is chosen; None means all.
    """

    workloads: Callable[[Plan], dict[str, Measure]]
    draw: Callable[[Path], list[Path]]
    headline: Callable[[Mapping[str, Any]], str]
    unasked: Sequence[str] | None = None


BENCHMARKS = {
    "engine": Benchmark(_engine, pictures.draw_engine, engine.headline),
    "optimizer": Benchmark(_optimizer, pictures.draw_optimizer, step_cost.headline_optimizer),
    "memory": Benchmark(_memory, pictures.draw_memory, memory.headline),
    "optimizers": Benchmark(_optimizers, pictures.draw_optimizers, step_cost.headline_optimizers),
    "scaling": Benchmark(
        _scaling, scaling.write_tables, scaling.headline, unasked=("digits", "mnist")
    ),
}

ALL = ("engine", "optimizer", "memory", "optimizers")
"""The benchmarks that run together; ``scaling`` wants one thread and two idle cores."""

FINISHED = ("deferral",)
"""Benchmarks that are no longer measured, and whose results are kept."""


def measurements(plan: Plan) -> list[tuple[str, str, Measure]]:
    """Return benchmark, workload and measurement, in order.

    Raises:
        ConfigError: an unknown benchmark, or a workload that none of them has.
    """
    found: list[tuple[str, str, Measure]] = []
    known: list[str] = []
    for name in plan.benchmarks:
        if name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}; valid: {', '.join(BENCHMARKS)}, all")
        table = BENCHMARKS[name].workloads(plan)
        known += table
        chosen = plan.only or BENCHMARKS[name].unasked or table
        found += [(name, workload, m) for workload, m in table.items() if workload in chosen]
    for workload in plan.only:
        if workload not in known:
            valid = ", ".join(dict.fromkeys(known))
            raise ConfigError(f"unknown workload {workload!r}; valid: {valid}")
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
    for place, (benchmark, name, measure) in enumerate(planned, start=1):
        say(f"[{place}/{len(planned)}] {benchmark}: {name}")
        started = harness.origin(plan.device, plan.repeats)
        try:
            entry = {"origin": started, **measure()}
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
