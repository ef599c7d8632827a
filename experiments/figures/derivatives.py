"""Tables 1 and 2: error and memory of first and second derivatives from adjoints.

Table 1: relative errors (Frobenius norm) against the exact values of a tight solve, by system and
solver. On the small field all columns of the matrices, on the digits batch their products with four
random directions. Table 2: entries that each way has to hold, as a formula and in MB, beside the
measured peak of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from experiments.figures.request import Figure, Request, listed
from experiments.measure.derivatives import (
    BATCH,
    DIGITS,
    LIMIT_MB,
    SMALL,
    SOLVERS,
    WAYS,
    Solver,
    System,
    digits_batch,
    error,
    first_order,
    measure_memory,
    proposition_2,
    recursion,
    reference,
    sizes,
    small,
    theorem_1,
)
from experiments.measure.harness import in_words, origin
from experiments.publish.tables import Table, csv_of, read_table
from experiments.studies.execute import Say

TABLE_1, TABLE_2 = "table-1", "table-2"
ERRORS = {
    "system": str,
    "z": int,
    "theta": int,
    "quantity": str,
    "way": str,
    "solver": str,
    "seed": int,
    "error": float,
}
"""``data.csv`` of table 1."""
REFERENCE = "reference"
"""Name of the "solver" whose error is the difference of two references, ten times apart."""
WIDTHS = (8, 32, 128, 512)
"""Widths of the layers in table 2, two columns each."""
MEMORY = {
    "way": str,
    "width": int,
    "z": int,
    "theta": int,
    "theory_mb": float,
    "seed": float,
    "measured_mb": float,
}
"""``data.csv`` of table 2; a way that was not run has neither seed nor measurement."""


class Entry(NamedTuple):
    """A row of table 1 within each system; ``quantity`` is an attribute of :class:`Exact`."""

    quantity: str
    way: str
    label: str
    compute: Callable[[System, Mapping[str, Any]], Tensor]


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


def reproduce_errors(request: Request, say: Say) -> None:
    """Measure and write table 1; seeds determine weights, batches and directions."""
    rows: list[dict[str, Any]] = []
    for seed in request.seeds:
        for system in (small(seed), *digits_batch(seed)):
            say(f"{TABLE_1}: {system.name}, seed {seed}")
            rows += measure_errors(system, seed)
    solvers = {solver.name: dict(solver.arguments) for solver in SOLVERS}
    facts = {"device": "CPU", "small": SMALL, "digits": DIGITS, "solvers": solvers}
    _publish(request, rows, errors_table(pd.DataFrame(rows)), facts)


def measure_errors(
    system: System, seed: int, solvers: Sequence[Solver] = SOLVERS
) -> Iterator[dict[str, Any]]:
    """Yield the rows of table 1's ``data.csv`` of one system."""
    n, m = system.sizes
    facts = {"system": system.name, "z": n, "theta": m}
    true, looser = reference(system), reference(system, looser=True)
    for entry in ENTRIES:
        if not system.smooth and entry.way not in ("adjoint", "proposition-2"):
            continue
        target, other = (torch.as_tensor(getattr(one, entry.quantity)) for one in (true, looser))
        found = {REFERENCE: error(other, target)}
        for solver in solvers:
            found[solver.name] = error(entry.compute(system, solver.arguments), target)
        named = {**facts, "quantity": entry.quantity, "way": entry.way}
        for name, value in found.items():
            yield {**named, "solver": name, "seed": seed, "error": value}


def errors_table(rows: pd.DataFrame) -> Table:
    """Return table 1: medians over seeds."""
    lines: list[list[str]] = []
    for (system, n, m), own in rows.groupby(["system", "z", "theta"], sort=False):
        lines.append([f"{system} (|z| = {n}, |θ| = {m})"])
        middle = own.groupby(["quantity", "way", "solver"])["error"].median()
        for entry in ENTRIES:
            where = (entry.quantity, entry.way)
            if where in middle:
                cells = [f"{middle[(*where, solver.name)]:.1e}" for solver in SOLVERS]
                lines.append([entry.label, *cells])
    of_reference = rows[rows["solver"] == REFERENCE]
    kinks = of_reference["system"].str.contains("ReLU")
    smooth, relu = (of_reference.loc[mask, "error"].max() for mask in (~kinks, kinks))
    caption = (
        "Relative error in the Frobenius norm, float64, CPU; medians over seeds"
        f" {listed(rows['seed'].unique())}. The reference is double backpropagation through dopri5"
        f" at rtol 1e-10 (at 1e-9 it differs by at most {smooth:.1g}); for the ReLU field the"
        f" adjoint at rtol 1e-7 (at 1e-6 it differs by at most {relu:.1g}), since"
        " backpropagation errs where a step crosses a kink. The Hessian of the ReLU field has jumps"
        " at the kinks that no adjoint ODE contains; the softplus field has the same weights."
        " Digits: conv field of 4 channels after 100 steps of Adam, two images, the matrices along"
        " 4 random orthonormal directions. Gauss-Newton: second derivatives of F left out, on both"
        " sides."
    )
    return Table(["", *(solver.label for solver in SOLVERS)], lines, caption)


def reproduce_memory(request: Request, say: Say, *, widths: Sequence[int] = WIDTHS) -> None:
    """Measure and write table 2, one process a seed."""
    where = origin(torch.device("cpu"), len(request.seeds))
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        say(f"{TABLE_2}: {way.label}")
        rows += measure_memory(way, widths, request.seeds)
    facts = {"device": in_words(where), "origin": where}
    _publish(request, rows, memory_table(pd.DataFrame(rows)), facts)


def memory_table(rows: pd.DataFrame) -> Table:
    """Return table 2: theory and median of the measurements by width, in MB of 2^20 bytes."""
    widths = sorted(int(width) for width in rows["width"].unique())
    header = ["", "entries"]
    for d in widths:
        n, m = sizes(d)
        header += [f"d = {d} (|z| = {n}, |θ| = {m})", "measured"]
    lines = []
    for way in WAYS:
        cells = [way.label, way.formula]
        for d in widths:
            own = rows[(rows["way"] == way.name) & (rows["width"] == d)]
            seen = own["measured_mb"].dropna()
            cells += [_mb(own["theory_mb"].iloc[0]), _mb(seen.median()) if len(seen) else "–"]
        lines.append(cells)
    caption = (
        "MB of 2^20 bytes, float32. Theory: the entries that the way has to hold, z a batch of"
        f" {BATCH} states of size d, F two linear layers d → d with tanh, θ their weights"
        " and biases, a and b inputs (with the bias) and outputs of a layer. Measured: peak of the"
        " resident memory of a process of its own less that at its start, after a run on a tiny"
        " system; medians over seeds, resolution about 0.3 MB. dopri5 keeps a copy of what it"
        " integrates for each of its 7 stages and some 10 more (states, error, products). Of the"
        " adjoint of the adjoint two rows were run beside the whole matrix. The Kronecker row"
        " includes eigenbases and second moment. –: not run, above"
        f" {LIMIT_MB:g} MB in theory."
    )
    return Table(header, lines, caption, align="ll" + "r" * (len(header) - 2))


def _mb(value: float) -> str:
    if value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _publish(
    request: Request, rows: Sequence[Mapping[str, Any]], table: Table, facts: Mapping[str, Any]
) -> None:
    columns = ERRORS if request.target == TABLE_1 else MEMORY
    data = csv_of(pd.DataFrame(rows)[list(columns)], digits=6)
    request.publish(data, caption=table.caption, seeds=list(request.seeds), **facts)
    table.write(request.folder)


def redraw_errors(folder: Path) -> None:
    """Write table 1 again from ``data.csv``."""
    errors_table(read_table(folder / "data.csv", ERRORS)).write(folder)


def redraw_memory(folder: Path) -> None:
    """Write table 2 again from ``data.csv``."""
    memory_table(read_table(folder / "data.csv", MEMORY)).write(folder)


FIGURES = (
    Figure(
        TABLE_1,
        reproduce_errors,
        redraw_errors,
        takes_overrides=False,
        note="it trains no configuration, and dense second derivatives of the published data sets"
        " do not fit into memory",
    ),
    Figure(
        TABLE_2,
        reproduce_memory,
        redraw_memory,
        takes_overrides=False,
        note="it trains no configuration and reads no data",
    ),
)
