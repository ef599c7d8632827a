"""Table 1: error of first and second derivatives from adjoints, by solver, on three systems.

For each system and solver the relative error (Frobenius norm) of ∂Φ/∂θ by the adjoint, of the
Hessian in θ by the adjoint of the adjoint and by Theorem 1, and of Gauss-Newton's matrix by
Theorem 1 and Proposition 2, against the exact values of a tight solve. On the small field all
columns of the matrices, on the digits batch their products with four random directions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.base.errors import ConfigError
from experiments.measure.derivatives import (
    DIGITS,
    SMALL,
    SOLVERS,
    Exact,
    Solver,
    System,
    digits_batch,
    error,
    first_order,
    proposition_2,
    recursion,
    reference,
    small,
    theorem_1,
)
from experiments.publish.tables import Table, csv_text, write_table

NAME = "table-1"
PROFILES = ("embedded",)
COLUMNS = ("system", "z", "theta", "quantity", "way", "solver", "seed", "error")
REFERENCE = "reference"
"""Name of the "solver" whose error is the difference of two references, ten times apart."""

Say = Callable[[str], None]
Way = Callable[[System, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Entry:
    """A row of the table within each system.

    Attributes:
        quantity: name of the derivative, an attribute of :class:`Exact`.
        way: name of how it was computed.
        label: both for a reader.
        compute: computes it.
    """

    quantity: str
    way: str
    label: str
    compute: Way


ENTRIES = (
    Entry("gradient", "adjoint", "∂Φ/∂θ, adjoint", first_order),
    Entry("hessian", "recursion", "∂²Φ/∂θ², adjoint of the adjoint", recursion),
    Entry("hessian", "theorem-1", "∂²Φ/∂θ², Theorem 1", partial(theorem_1, full_hessian=True)),
    Entry(
        "gauss_newton",
        "theorem-1",
        "Gauss-Newton, Theorem 1",
        partial(theorem_1, full_hessian=False),
    ),
    Entry("gauss_newton", "proposition-2", "Gauss-Newton, Proposition 2", proposition_2),
)


def reproduce(
    *,
    profile: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    data_dir: Path,
    output_dir: Path,
    folder: Path,
    command: str,
    say: Say,
) -> None:
    """Measure and write the table.

    Args:
        profile: must be ``"embedded"``: published data sets are too large for dense matrices.
        seeds: of weights, batches and directions.
        overrides: must be empty: nothing is trained from a configuration.
        data_dir: not used.
        output_dir: not used.
        folder: where the table goes.
        command: the command that makes it.
        say: prints one line.

    Raises:
        ConfigError: another profile, overrides, or seeds that are not all different.
        RecordError: a file cannot be written.
    """
    del data_dir, output_dir
    check_request(NAME, profile, seeds, overrides, PROFILES)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for system in (small(seed), *digits_batch(seed)):
            say(f"{NAME}: {system.name}, seed {seed}")
            rows += measure(system, seed)
    make(rows, folder, command=command, seeds=seeds)


def check_request(
    name: str,
    profile: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    profiles: Sequence[str],
) -> None:
    """Raise ConfigError for what a table that trains nothing cannot be asked."""
    if profile not in profiles:
        raise ConfigError(
            f"{name} has no profile {profile!r}; valid: {', '.join(profiles)} (the dense second"
            " derivatives of the published data sets do not fit into memory)"
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")
    if overrides:
        raise ConfigError(f"{name} trains no configuration, so it takes no overrides: {overrides}")


def measure(
    system: System, seed: int, solvers: Sequence[Solver] = SOLVERS
) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``data.csv`` of one system."""
    n, m = system.sizes
    facts = {"system": system.name, "z": n, "theta": m, "seed": seed}
    true, looser = reference(system), reference(system, looser=True)
    for entry in ENTRIES:
        if not system.smooth and entry.way not in ("adjoint", "proposition-2"):
            continue
        target = _of(true, entry.quantity)
        named = {**facts, "quantity": entry.quantity, "way": entry.way}
        difference = error(_of(looser, entry.quantity), target)
        yield {**named, "solver": REFERENCE, "error": difference}
        for solver in solvers:
            found = entry.compute(system, solver.arguments)
            yield {**named, "solver": solver.name, "error": error(found, target)}


def _of(exact: Exact, quantity: str) -> Tensor:
    value = getattr(exact, quantity)
    if value is None:
        raise ConfigError(f"there is no reference for {quantity}")
    return torch.as_tensor(value)


def make(
    rows: Sequence[Mapping[str, Any]], folder: Path, *, command: str, seeds: Sequence[int]
) -> None:
    """Write the table's four files from the rows of ``data.csv``."""
    facts = {"device": "CPU", "seeds": list(seeds), "small": SMALL, "digits": DIGITS}
    write_table(
        folder,
        as_table(rows, seeds),
        csv_text(COLUMNS, rows),
        target=NAME,
        command=command,
        facts={**facts, "solvers": {s.name: dict(s.arguments) for s in SOLVERS}},
    )


def as_table(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Table:
    """Return the table: medians over seeds."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for row in rows:
        key = (row["system"], row["quantity"], row["way"], row["solver"])
        found.setdefault(key, []).append(float(row["error"]))
        sizes[row["system"]] = (int(row["z"]), int(row["theta"]))
    lines: list[list[str]] = []
    for system, (n, m) in sizes.items():
        lines.append([f"{system} (|z| = {n}, |θ| = {m})"])
        for entry in ENTRIES:
            where = (system, entry.quantity, entry.way)
            if (*where, SOLVERS[0].name) in found:
                cells = [_median(found[(*where, solver.name)]) for solver in SOLVERS]
                lines.append([entry.label, *cells])
    worst = {True: 0.0, False: 0.0}
    for (system, _, _, solver), errors in found.items():
        if solver == REFERENCE:
            kinks = "ReLU" in system
            worst[kinks] = max(worst[kinks], *errors)
    caption = (
        "Relative error in the Frobenius norm, float64, CPU; medians over seeds"
        f" {', '.join(map(str, seeds))}. The reference is double backpropagation through dopri5 at"
        f" rtol 1e-10 (at 1e-9 it differs by at most {worst[False]:.1g}); for the ReLU field the"
        f" adjoint at rtol 1e-7 (at 1e-6 it differs by at most {worst[True]:.1g}), since"
        " backpropagation errs where a step crosses a kink. The Hessian of the ReLU field has jumps"
        " at the kinks that no adjoint ODE contains; the softplus field has the same weights."
        " Digits: conv field of 4 channels after 100 steps of Adam, two images, the matrices along"
        " 4 random orthonormal directions. Gauss-Newton: second derivatives of F left out, on both"
        " sides."
    )
    return Table(["", *(solver.label for solver in SOLVERS)], lines, caption)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1e}"
