"""Memory of each way to second-order information: what it must hold, and what it is seen to hold.

The system: two linear layers of width d with tanh between, a batch of 4 states, float32, dopri5. So
|z| = 4 d and |θ| = 2 d² + 2 d. Each measurement is made in a process of its own by
:func:`measure_peak`, after the same on a tiny system, so that code which is loaded at its first use
does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.measure.derivative_systems import System
from experiments.measure.derivative_ways import first_order, recursion
from experiments.measure.process import call
from experiments.measure.resident import ALLOCATOR, peak_of
from experiments.models.fields import MLPField
from snopt import Preconditioner, low_rank_adjoint, odeint_adjoint, second_order_adjoint

BATCH, CLASSES = 4, 10

BYTES = 4

SOLVER: Mapping[str, Any] = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}

LIMIT_MB = 1024.0
"""A way whose theory alone is above this is not run."""

_WARM_UP = 3

_ROWS = 2


def theory_first_order(d: int) -> int:
    """2|z| + |θ|: state, adjoint, gradient."""
    n, m = sizes(d)
    return 2 * n + m


def theory_recursion(d: int) -> int:
    """2(2|z| + |θ|) + |θ|²: the augmented state and its adjoint, row by row into the matrix."""
    return 2 * theory_first_order(d) + sizes(d)[1] ** 2


def theory_theorem_1(d: int) -> int:
    """2|z| + |θ| + |z|² + |z||θ| + |θ|²."""
    n, m = sizes(d)
    return 2 * n + m + n * n + n * m + m * m


def theory_proposition_2(d: int) -> int:
    """|z| + R(|z| + |θ|)."""
    n, m = sizes(d)
    return n + CLASSES * (n + m)


def theory_kronecker(d: int) -> int:
    """2|z| + |θ| + Σ_ℓ (a_ℓ² + b_ℓ²), a_ℓ inputs with the bias, b_ℓ outputs."""
    return theory_first_order(d) + 2 * ((d + 1) ** 2 + d**2)


def sizes(d: int) -> tuple[int, int]:
    """Return |z| and |θ|."""
    return BATCH * d, 2 * (d * d + d)


def system(d: int, seed: int) -> System:
    """Return the system of width ``d`` with one direction."""
    torch.manual_seed(seed)
    field = MLPField(d, 2)
    head = nn.Linear(d, CLASSES).requires_grad_(False)
    z0, labels = torch.randn(BATCH, d), torch.randint(CLASSES, (BATCH,))
    direction = torch.zeros(sizes(d)[1], 1)
    direction[0] = 1.0

    def terminal(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(z), labels)

    return System("memory", field, z0, torch.tensor([0.0, 1.0]), terminal, direction)


def run_first_order(system: System) -> object:
    """Run the first-order adjoint."""
    return first_order(system, SOLVER)


def run_recursion(system: System) -> object:
    """Hold the matrix and run the recursion for its first rows; the others need no more."""
    m = system.sizes[1]
    matrix = torch.full((m, m), 1.0)
    for i in range(min(_ROWS, m)):
        matrix[i] = recursion(system, SOLVER)[:, 0]
    return matrix


def run_theorem_1(system: System) -> object:
    """Run Theorem 1, Gauss-Newton."""
    return second_order_adjoint(
        *(system.field, system.z0, system.t, system.terminal), max_mb=float("inf"), **SOLVER
    )


def run_proposition_2(system: System) -> object:
    """Run Proposition 2 with one row for each class."""
    rows = torch.randn(CLASSES, *system.z0.shape)
    return low_rank_adjoint(system.field, system.z0, system.t, rows, **SOLVER)


def run_kronecker(system: System) -> object:
    """Run the adjoint with collection, and the refresh of the eigenbases."""
    preconditioner = Preconditioner(system.field)
    z1 = odeint_adjoint(system.field, system.z0, system.t, **SOLVER)[-1]
    loss = system.terminal(z1)
    loss.backward()
    preconditioner.step()
    return preconditioner


@dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        name: in ``data.csv``.
        label: for a reader.
        formula: entries that it must hold.
        theory: the same as a number, by width.
        run: does it.
    """

    name: str
    label: str
    formula: str
    theory: Callable[[int], int]
    run: Callable[[System], object]

    def theory_mb(self, d: int) -> float:
        """Return the theory in MB of 2**20 bytes, in float32."""
        return self.theory(d) * BYTES / 2**20


WAYS = (
    Way(
        "first-order",
        "first-order adjoint",
        "2|z| + |θ|",
        theory_first_order,
        run_first_order,
    ),
    Way(
        "recursion",
        "adjoint of the adjoint, all rows",
        "2(2|z| + |θ|) + |θ|²",
        theory_recursion,
        run_recursion,
    ),
    Way(
        "theorem-1",
        "Theorem 1",
        "2|z| + |θ| + |z|² + |z||θ| + |θ|²",
        theory_theorem_1,
        run_theorem_1,
    ),
    Way(
        "proposition-2",
        f"Proposition 2, R = {CLASSES}",
        "|z| + R(|z| + |θ|)",
        theory_proposition_2,
        run_proposition_2,
    ),
    Way(
        "kronecker",
        "Kronecker factors (SNOpt)",
        "2|z| + |θ| + Σ(a² + b²)",
        theory_kronecker,
        run_kronecker,
    ),
)


def measure_peak(way: str, d: int, seed: int) -> dict[str, Any]:
    """Return the memory of one way in this process; call it in a fresh one."""
    chosen = {w.name: w for w in WAYS}[way]
    chosen.run(system(_WARM_UP, seed))
    target = system(d, seed)
    held: list[object] = []
    return peak_of(lambda: held.append(chosen.run(target)), torch.device("cpu")).as_json()


def measure(way: Way, widths: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of ``data.csv`` of one way, one process for each width and seed."""
    rows: list[dict[str, Any]] = []
    for d in widths:
        n, m = sizes(d)
        facts = {"way": way.name, "width": d, "z": n, "theta": m, "theory_mb": way.theory_mb(d)}
        if way.theory_mb(d) > LIMIT_MB:
            rows.append({**facts, "seed": None, "measured_mb": None})
            continue
        for seed in seeds:
            found = call(
                "experiments.measure.derivative_memory:measure_peak",
                {"way": way.name, "d": d, "seed": seed},
                environment=ALLOCATOR,
            )
            rows.append({**facts, "seed": seed, "measured_mb": found["extra_mb"]})
    return rows
