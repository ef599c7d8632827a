"""Running benchmarks: which workloads, in which order, and what is kept when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.base.errors import ConfigError, RecordError
from experiments.measure import (
    plot_engine,
    plot_memory,
    plot_optimizer,
    plot_step_cost,
    step_cost,
    store,
    workloads,
)
from experiments.measure.engine import measure_engine
from experiments.measure.memory import STEPS, measure_memory, measure_steps
from experiments.measure.optimizers import measure_optimizers
from experiments.measure.origin import origin
from snopt import SolverError

Measure = Callable[[], dict[str, Any]]

Say = Callable[[str], None]

REPEATS = 9

PROCESSES = 2

MAX_SECONDS = 60.0

DRAW: dict[str, Callable[[Path], None]] = {
    "engine": plot_engine.draw,
    "optimizer": plot_optimizer.draw,
    "memory": plot_memory.draw,
    "optimizers": plot_step_cost.draw,
}
"""Draws a benchmark's picture from its JSON in a folder; the keys are the benchmarks."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        benchmarks: names in :data:`DRAW`.
        only: workloads; empty means all.
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


def measurements(plan: Plan) -> list[tuple[str, str, Measure]]:
    """Return benchmark, workload and measurement, in order.

    Raises:
        ConfigError: an unknown benchmark, or a workload that none of them has.
    """
    found: list[tuple[str, str, Measure]] = []
    for benchmark in plan.benchmarks:
        if benchmark not in DRAW:
            raise ConfigError(f"unknown benchmark {benchmark!r}; valid: {', '.join(DRAW)}, all")
        found += [(benchmark, name, measure) for name, measure in _table(plan, benchmark).items()]
    known = list(dict.fromkeys(name for _, name, _ in found))
    for name in plan.only:
        if name not in known:
            raise ConfigError(f"unknown workload {name!r}; valid: {', '.join(known)}")
    return [entry for entry in found if not plan.only or entry[1] in plan.only]


def _table(plan: Plan, benchmark: str) -> dict[str, Measure]:
    device, repeats = plan.device, plan.repeats
    table: dict[str, Measure] = {}
    if benchmark == "engine":
        for w in workloads.ENGINE:
            table[w.name] = partial(measure_engine, w, device, repeats, plan.max_seconds)
    elif benchmark == "optimizer":
        for w in workloads.TRAINING:
            table[w.name] = partial(measure_optimizers, w, device, repeats, plan.max_seconds)
    elif benchmark == "optimizers":
        table["digits"] = partial(step_cost.measure_step_cost, device, repeats)
    else:
        for w in workloads.TRAINING:
            table[w.name] = partial(measure_memory, w, device, plan.processes)
        table[STEPS] = partial(measure_steps, device, plan.processes)
    return table


def run(plan: Plan, say: Say) -> list[Path]:
    """Measure, write after every workload, draw; return the files written.

    A workload that fails does not stop the others, nor does a part of one that it names as failed.

    Raises:
        ConfigError: see :func:`measurements`.
        RecordError: a workload failed (all of them are named), or a file cannot be written.
        KeyboardInterrupt: stopped; finished workloads are in their files.
    """
    failures, written = [], []
    planned = measurements(plan)
    for place, (benchmark, name, measure) in enumerate(planned, start=1):
        say(f"[{place}/{len(planned)}] {benchmark}: {name}")
        started = origin(plan.device, plan.repeats)
        try:
            entry = {"origin": started, **measure()}
        except (RuntimeError, ValueError, SolverError, RecordError) as error:
            failures.append(f"{benchmark} {name}: {error}")
            say(f"    failed: {error}")
            continue
        store.save(plan.folder, benchmark, name, entry)
        say(f"    {headline(benchmark, entry)}")
        written.append(store.path_of(plan.folder, benchmark))
        for part, reason in entry.get("failed", {}).items():
            failures.append(f"{benchmark} {name}, {part}: {reason}")
            say(f"    failed: {part}: {reason}")
    for benchmark in plan.benchmarks:
        if store.path_of(plan.folder, benchmark) in written:
            DRAW[benchmark](plan.folder)
            written.append(plan.folder / f"{benchmark}.png")
    if written:
        written.append(store.write_provenance(plan.folder, list(DRAW)))
    if failures:
        raise RecordError(f"{len(failures)} workloads failed:\n  " + "\n  ".join(failures))
    return list(dict.fromkeys(written))


def headline(benchmark: str, entry: dict[str, Any]) -> str:
    """Return the one line that a person wants to see of a finished workload."""
    if benchmark == "engine":
        parts = [
            f"{name} {variant['over_floor']['median']:.2f}"
            for name, variant in entry["variants"].items()
        ]
        floor = entry["floor"]["seconds"]["median"]
        return f"floor {floor * 1e3:.1f} ms; times the floor: {', '.join(parts)}"
    if benchmark == "optimizers":
        return step_cost.headline(entry)
    if benchmark == "optimizer":
        refresh = entry["refresh"]
        average = entry["average"]["all"]["100"]["over_sgd"]["median"]
        return (
            f"refresh step {refresh['all']['over_ordinary']['median']:.2f} ordinary ones"
            f" (scope ode: {refresh['ode']['over_ordinary']['median']:.2f});"
            f" at update_freq 100 {average:.3f} times SGD"
        )
    if "ratios" in entry:
        ratio = entry["ratios"]["snopt/adam"]
        return "no memory beyond the start" if ratio is None else f"{ratio:.2f} times Adam's"
    slopes = (
        f"{name} {mode['mb_per_step']['slope']:+.3f} ± {mode['mb_per_step']['slope_stderr']:.3f}"
        for name, mode in entry["modes"].items()
    )
    return f"MB a step: {', '.join(slopes)}"
