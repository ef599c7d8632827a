"""First and second derivatives of a loss in θ by each way: their errors, and their memory.

Ways: exact by double backpropagation, the adjoint, the adjoint of the adjoint (recursion), Theorem
1 and Proposition 2. Second derivatives are products with the system's directions, (m, K).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import vhp

from experiments.data import digits
from experiments.measure.harness import call
from experiments.measure.memory import ALLOCATOR, peak_of
from experiments.measure.workloads import SmoothConvField
from experiments.models.conv_ode import ConvODE
from experiments.models.fields import ConvField, MLPField
from experiments.models.solver import SolverSettings
from snopt import (
    Preconditioner,
    hessian_factors,
    low_rank_adjoint,
    odeint,
    odeint_adjoint,
    second_order_adjoint,
)

# --- systems whose exact second derivatives are within reach -------------------------------------
#
# All in float64, so that the errors are those of the solver. A kink of a ReLU adds a jump to the
# second derivatives that neither backpropagation through a solve nor any adjoint ODE contains;
# Gauss-Newton's matrix consists of first derivatives and has no such gap. For the full Hessian the
# digits net therefore has a softplus in place of the field's ReLU. The batch is small enough for
# the dense matrices of Theorem 1.

SMALL = {"dim": 3, "layers": 2, "batch": 4, "classes": 3}

DIGITS = {"width": 4, "batch": 2, "steps": 100, "training_batch": 64, "directions": 4}


@dataclass(frozen=True)
class System:
    """An initial value problem over [0, 1], its loss, and the directions along which to look.

    ``terminal`` maps the final state to the loss, a mean over the batch. ``V`` are directions in θ,
    (m, K), orthonormal columns. ``smooth``: the field has second derivatives everywhere.
    """

    name: str
    field: nn.Module
    z0: Tensor
    terminal: Callable[[Tensor], Tensor]
    V: Tensor
    smooth: bool = True

    @property
    def t(self) -> Tensor:
        """Start and end."""
        return self.z0.new_tensor([0.0, 1.0])

    @property
    def params(self) -> list[nn.Parameter]:
        """θ by parameter."""
        return list(self.field.parameters())

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of z and of θ."""
        return self.z0.numel(), sum(p.numel() for p in self.params)


def small(seed: int) -> System:
    """Return two linear layers with tanh between, at three times the usual weights.

    The directions are all of θ.
    """
    torch.manual_seed(seed)
    field = MLPField(SMALL["dim"], SMALL["layers"]).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(3.0)
    head = nn.Linear(SMALL["dim"], SMALL["classes"]).double().requires_grad_(False)
    z0 = torch.randn(SMALL["batch"], SMALL["dim"], dtype=torch.float64)
    labels = torch.randint(SMALL["classes"], (SMALL["batch"],))
    m = sum(p.numel() for p in field.parameters())

    def terminal(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(z), labels)

    return System("small field", field, z0, terminal, torch.eye(m, dtype=torch.float64))


def digits_batch(seed: int) -> tuple[System, System]:
    """Return the digits net with its ReLU field, and the same with softplus, after some training.

    ``seed`` is that of weights, batches and directions.
    """
    splits = digits.load()
    torch.manual_seed(seed)
    solver = SolverSettings(gradient="direct", method="rk4", options={"step_size": 0.25})
    net = ConvODE(splits.info, solver, width=DIGITS["width"])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, labels = splits.train
    for _ in range(DIGITS["steps"]):
        chosen = torch.randint(len(x), (DIGITS["training_batch"],))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
    net = net.double()
    x, labels = (part[: DIGITS["batch"]] for part in splits.test)
    with torch.no_grad():
        z0 = net.stem(x.double())
    readout = net.readout.requires_grad_(False)

    def terminal(z: Tensor) -> Tensor:
        logits = readout(torch.relu(z).mean(dim=(2, 3)))
        return nn.functional.cross_entropy(logits, labels)

    field = net.ode.func
    if not isinstance(field, ConvField):
        raise TypeError(f"the digits net has a {type(field).__name__} for its field")
    m = sum(p.numel() for p in field.parameters())
    V, _ = torch.linalg.qr(torch.randn(m, DIGITS["directions"], dtype=torch.float64))
    soft = partial(nn.functional.softplus, beta=10.0)  # within 0.07 of the ReLU
    return (
        System("digits, ReLU", field, z0, terminal, V, smooth=False),
        System("digits, softplus", SmoothConvField(field, soft), z0, terminal, V),
    )


# --- derivatives, way by way --------------------------------------------------------------------


def tight(rtol: float) -> Mapping[str, Any]:
    """Return the arguments of a reference's solves."""
    return {"method": "dopri5", "rtol": rtol, "atol": rtol / 100}


@dataclass(frozen=True)
class Solver:
    """A solver as a column of the table: arguments of every solve, forward and backward."""

    name: str
    label: str
    arguments: Mapping[str, Any]


SOLVERS = (
    Solver("rk4", "rk4, step 0.1", {"method": "rk4", "options": {"step_size": 0.1}}),
    Solver(
        "implicit_adams",
        "implicit Adams, step 0.1",
        {"method": "implicit_adams", "options": {"step_size": 0.1}, "rtol": 1e-3, "atol": 1e-3},
    ),
    Solver("dopri5-3", "dopri5, tol 1e-3", {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}),
    Solver("dopri5-6", "dopri5, tol 1e-6", {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}),
)


@dataclass(frozen=True)
class Exact:
    """Reference values: gradient (m,), Hessian and Gauss-Newton products (m, K)."""

    gradient: Tensor
    hessian: Tensor | None
    gauss_newton: Tensor


def reference(system: System, *, looser: bool = False) -> Exact:
    """Return the exact derivatives, from a tight solve.

    Backpropagation through a solve errs at every kink of a ReLU that a step crosses, whatever the
    tolerance. The adjoint's error control sees the kinks; where the field has them the reference is
    the tight adjoint, and there is none for the Hessian. ``looser`` takes ten times the tolerance,
    to see how good the reference is.
    """
    if system.smooth:
        return exact(system, tight(1e-9 if looser else 1e-10))
    solver = tight(1e-6 if looser else 1e-7)
    return Exact(first_order(system, solver), None, proposition_2(system, solver))


def exact(system: System, solver: Mapping[str, Any]) -> Exact:
    """Return the derivatives by double backpropagation through one solve."""
    params = system.params
    z1 = odeint(system.field, system.z0, system.t, **solver)[-1]
    loss = system.terminal(z1)
    slope = flat(torch.autograd.grad(loss, params, create_graph=True))
    # J v is the derivative of uᵀ J v in u; then Φ_zz (J v), then Jᵀ.
    u = torch.zeros_like(z1, requires_grad=True)
    pulled = flat(torch.autograd.grad(z1, params, u, create_graph=True))
    hessian, gauss_newton = [], []
    for v in system.V.T:
        hessian.append(flat(_grad(slope @ v, params)))
        (Jv,) = torch.autograd.grad(pulled @ v, u, retain_graph=True)
        _, curved = vhp(system.terminal, z1.detach(), Jv)
        gauss_newton.append(flat(_grad(z1, params, curved)))
    return Exact(slope.detach(), torch.stack(hessian, 1), torch.stack(gauss_newton, 1))


def first_order(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return ∂Φ/∂θ, (m,), by the adjoint."""
    z1 = odeint_adjoint(system.field, system.z0, system.t, **solver)[-1]
    return flat(torch.autograd.grad(system.terminal(z1), system.params))


def recursion(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return the Hessian's products by the adjoint of the adjoint.

    The backward solve (z, a, Q_u) is itself an ODE with θ as parameters. The adjoint method gives
    the derivative of its solution, and the adjoint of the forward solve that of its starting point
    (z1, Φ_z(z1)): one row of the Hessian for each direction.
    """
    params = system.params
    solve = {**solver, "adjoint_params": tuple(params)}
    z1 = odeint_adjoint(system.field, system.z0, system.t, **solve)[-1]
    (a1,) = torch.autograd.grad(system.terminal(z1), z1, create_graph=True)

    def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a, _ = state
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_(True)
            out = system.field(t, z)
            products = torch.autograd.grad(
                out, [z, *params], a, create_graph=True, materialize_grads=True
            )
        return out, -products[0], -flat(products[1:])

    zeros = z1.new_zeros(sum(p.numel() for p in params))
    Q_u = odeint_adjoint(augmented, (z1, a1, zeros), system.t.flip(0), **solve)[2][-1]
    return torch.stack([flat(_grad(Q_u @ v, params)) for v in system.V.T], 1)


def theorem_1(system: System, solver: Mapping[str, Any], *, full_hessian: bool) -> Tensor:
    """Return the products of Q_uu by the second-order adjoint ODEs."""
    found = second_order_adjoint(
        system.field, system.z0, system.t, system.terminal, full_hessian=full_hessian, **solver
    )
    return found.Q_uu @ system.V


def proposition_2(system: System, solver: Mapping[str, Any]) -> Tensor:
    """Return Gauss-Newton's products by R ordinary adjoints, R the rank of Φ_zz."""
    rows = low_rank_adjoint(
        system.field, system.z0, system.t, lambda z: hessian_factors(system.terminal, z), **solver
    ).p
    return rows.T @ (rows @ system.V)


def error(found: Tensor, reference: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((found - reference).norm() / reference.norm())


def flat(tensors: Sequence[Tensor | None]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors if t is not None])


def _grad(
    out: Tensor, params: Sequence[Tensor], vector: Tensor | None = None
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, params, vector, retain_graph=True, materialize_grads=True)


# --- memory of each way --------------------------------------------------------------------------
#
# The system: two linear layers of width d with tanh between, a batch of 4 states, float32, dopri5.
# So |z| = 4 d and |θ| = 2 d² + 2 d.

BATCH, CLASSES = 4, 10

DOPRI5: Mapping[str, Any] = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}

LIMIT_MB = 1024.0
"""A way whose theory alone is above this is not run."""


def sizes(d: int) -> tuple[int, int]:
    """Return |z| and |θ|."""
    return BATCH * d, 2 * (d * d + d)


def memory_system(d: int, seed: int) -> System:
    """Return the system of width ``d`` with one direction."""
    torch.manual_seed(seed)
    field = MLPField(d, 2)
    head = nn.Linear(d, CLASSES).requires_grad_(False)
    z0, labels = torch.randn(BATCH, d), torch.randint(CLASSES, (BATCH,))
    direction = torch.zeros(sizes(d)[1], 1)
    direction[0] = 1.0

    def terminal(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(z), labels)

    return System("memory", field, z0, terminal, direction)


def run_recursion(system: System) -> Tensor:
    """Hold the matrix and run the recursion for its first two rows; the others need no more."""
    m = system.sizes[1]
    matrix = torch.full((m, m), 1.0)
    for i in range(2):
        matrix[i] = recursion(system, DOPRI5)[:, 0]
    return matrix


def run_kronecker(system: System) -> Preconditioner:
    """Run the adjoint with collection, and the refresh of the eigenbases."""
    preconditioner = Preconditioner(system.field)
    z1 = odeint_adjoint(system.field, system.z0, system.t, **DOPRI5)[-1]
    loss = system.terminal(z1)
    loss.backward()
    preconditioner.step()
    return preconditioner


@dataclass(frozen=True)
class Way:
    """A row of the table: ``formula`` are the entries that ``run`` must hold.

    ``theory`` is the same as a number, of |z|, |θ| and the width.
    """

    name: str
    label: str
    formula: str
    theory: Callable[[int, int, int], int]
    run: Callable[[System], Any]

    def theory_mb(self, d: int) -> float:
        """Return the theory in MB of 2**20 bytes, in float32."""
        return self.theory(*sizes(d), d) * 4 / 2**20


WAYS = (
    # State, adjoint, gradient.
    Way(
        "first-order",
        "first-order adjoint",
        "2|z| + |θ|",
        lambda n, m, d: 2 * n + m,
        lambda system: first_order(system, DOPRI5),
    ),
    # The augmented state and its adjoint, row by row into the matrix.
    Way(
        "recursion",
        "adjoint of the adjoint, all rows",
        "2(2|z| + |θ|) + |θ|²",
        lambda n, m, d: 2 * (2 * n + m) + m * m,
        run_recursion,
    ),
    Way(
        "theorem-1",
        "Theorem 1",
        "2|z| + |θ| + |z|² + |z||θ| + |θ|²",
        lambda n, m, d: 2 * n + m + n * n + n * m + m * m,
        lambda s: second_order_adjoint(
            s.field, s.z0, s.t, s.terminal, max_mb=float("inf"), **DOPRI5
        ),
    ),
    Way(
        "proposition-2",
        f"Proposition 2, R = {CLASSES}",
        "|z| + R(|z| + |θ|)",
        lambda n, m, d: n + CLASSES * (n + m),
        lambda s: low_rank_adjoint(s.field, s.z0, s.t, torch.randn(CLASSES, *s.z0.shape), **DOPRI5),
    ),
    # Of each layer: a inputs with the bias, b outputs.
    Way(
        "kronecker",
        "Kronecker factors (SNOpt)",
        "2|z| + |θ| + Σ(a² + b²)",
        lambda n, m, d: 2 * n + m + 2 * ((d + 1) ** 2 + d**2),
        run_kronecker,
    ),
)


def measure_peak(way: str, d: int, seed: int) -> dict[str, Any]:
    """Return the memory of one way in this process; call it in a fresh one.

    A tiny system comes first, so that code which is loaded at its first use does not count.
    """
    chosen = {w.name: w for w in WAYS}[way]
    chosen.run(memory_system(3, seed))
    target = memory_system(d, seed)
    held: list[object] = []
    return peak_of(lambda: held.append(chosen.run(target)), torch.device("cpu"))


def measure_memory(way: Way, widths: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of ``data.csv`` of one way, one process for each width and seed."""
    rows: list[dict[str, Any]] = []
    for d in widths:
        n, m = sizes(d)
        facts = {"way": way.name, "width": d, "z": n, "theta": m, "theory_mb": way.theory_mb(d)}
        if way.theory_mb(d) > LIMIT_MB:
            rows.append({**facts, "seed": None, "measured_mb": None})
            continue
        for seed in seeds:
            arguments = {"way": way.name, "d": d, "seed": seed}
            found = call(f"{__name__}:measure_peak", arguments, environment=ALLOCATOR)
            rows.append({**facts, "seed": seed, "measured_mb": found["extra_mb"]})
    return rows
