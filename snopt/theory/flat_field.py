"""A vector field as the second-order adjoints see it: flat states, many products at a time.

The state becomes one vector z, (n,), its parts one after the other, and the parameters one vector
θ, (m,), in the order of ``func.parameters()``. All vector-Jacobian products at a point come from
one evaluation of F: the vectors are a batch dimension of the backward pass (``torch.func.vmap``).
F on the batch repeated R times would add up the parameter products of all vectors, would need
samples that do not see one another, and took 1.4 to 2.2 times as long on ten vectors through two
3×3 convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snopt.curvature.recording import inside_solve
from snopt.errors import NON_FINITE, SolverError, failure
from snopt.solve.field import Field, State, check_times, parts_of
from snopt.solve.forward import solve_forward
from snopt.solve.solver import NFE, Problem, Solver

ScalarOfPath: TypeAlias = Callable[[Tensor, Any], Tensor]


class FlatField(Field):
    """F(t, z, θ) on flat vectors, with its derivatives.

    θ are the parameters of ``func``, an ``nn.Module``, that require a gradient.

    Attributes:
        params: θ by parameter.
        n: entries of z.
        m: entries of θ.

    Raises:
        TypeError: if ``func`` is no module.
        ValueError: if the state is empty, or state or parameters are complex.
    """

    def __init__(self, func: nn.Module, y0: State) -> None:
        """Look up shapes and parameters."""
        if not isinstance(func, nn.Module):
            raise TypeError(
                "func must be an nn.Module: its parameters are what to differentiate with respect"
                f" to; got {type(func).__name__}"
            )
        super().__init__(func, y0)
        self.params = [p for p in func.parameters() if p.requires_grad]
        self.n = sum(self.layout.sizes)
        self.m = sum(p.numel() for p in self.params)
        if self.n == 0 or any(p.is_complex() for p in (*parts_of(y0), *self.params)):
            raise ValueError("second-order adjoints need a real state that is not empty")

    def products(
        self, t: Tensor, z: Tensor, vectors: Tensor, *, parameters: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return F(t, z), (n,), the rows F_zᵀ v_i, (R, n), and the rows F_θᵀ v_i, (R, m).

        Args:
            t: time, a scalar.
            z: state, (n,).
            vectors: rows v_i, (R, n).
            parameters: whether to make the products with F_θ; otherwise they are (R, 0).
        """
        with torch.enable_grad():
            parts = self._leaves(z)
            out = self._evaluate(t, parts)
            rows = product_rows(out, [*parts, *(self.params if parameters else ())], vectors)
        return out.detach(), rows[:, : self.n], rows[:, self.n :]

    def path_scalar(
        self, t: Tensor, z: Tensor, a: Tensor | None, running: ScalarOfPath | None
    ) -> tuple[Tensor, Tensor]:
        """Return the second derivatives of h = aᵀF + ℓ and the first ones of ℓ alone.

        Args:
            t: time, a scalar.
            z: state, (n,).
            a: adjoint, (n,); None leaves aᵀF out of h.
            running: running cost ℓ(t, z); None leaves it out.

        Returns:
            The Hessian of h over (z, θ), (n + m, n + m), and the gradient of ℓ, (n + m,).
        """
        with torch.enable_grad():
            parts = self._leaves(z)
            inputs = [*parts, *self.params]
            slope = z.new_zeros(self.n + self.m)
            hessian = z.new_zeros(self.n + self.m, self.n + self.m)
            if running is not None:
                cost = running(t, self.pack(parts))
                slope, hessian = scalar_derivatives(cost, inputs, "running(t, z)")
            if a is not None:
                inner = self._evaluate(t, parts) @ a
                if inner.requires_grad:
                    hessian = hessian + scalar_derivatives(inner, inputs, "aᵀF")[1]
        return hessian, slope

    def _leaves(self, z: Tensor) -> list[Tensor]:
        return [part.detach().requires_grad_(True) for part in self.layout.split(z)]

    def _evaluate(self, t: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return self.layout.flatten(self.at(float(t), parts))


def product_rows(out: Tensor, inputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Return the products of the rows of ``vectors``, (R, k), with the Jacobian of ``out``, (k,).

    They are (R, entries of inputs), zero where ``out`` does not depend on an input. The graph of
    ``out`` is kept.
    """
    count = vectors.shape[0]
    if not out.requires_grad or count == 0:
        return vectors.new_zeros(count, sum(x.numel() for x in inputs))
    found: Sequence[Tensor | None]
    try:
        found = torch.autograd.grad(
            out, inputs, vectors, is_grads_batched=True, allow_unused=True, retain_graph=True
        )
    except RuntimeError:
        # An operation in the graph that vmap cannot pass (an autograd function without a rule for
        # it, such as a solve within the field): one row at a time. A true error comes up again.
        rows = [
            torch.autograd.grad(out, inputs, v, allow_unused=True, retain_graph=True)
            for v in vectors
        ]
        columns = zip(*rows, strict=True)
        found = [None if column[0] is None else torch.stack(column) for column in columns]
    blocks = [
        vectors.new_zeros(count, x.numel()) if f is None else f.reshape(count, -1).to(vectors.dtype)
        for f, x in zip(found, inputs, strict=True)
    ]
    return torch.cat(blocks, dim=1)


def scalar_derivatives(value: Tensor, inputs: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return gradient, (k,), and Hessian, (k, k), of a scalar over all entries of ``inputs``.

    Raises:
        TypeError: if ``value``, called ``name`` in the message, is no tensor.
        ValueError: if it is no finite scalar, or has no graph to ``inputs``.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(
            f"{name} must be a scalar, got shape {tuple(value.shape)}: reduce it, for example with"
            " .mean()"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} is {float(value.detach()):g}: check the state and the parameters")
    if not value.requires_grad:
        raise ValueError(
            f"{name} has no graph to the state or the parameters: it must be computed from them"
            " with torch, without .detach() or torch.no_grad()"
        )
    dtype = inputs[0].dtype
    with inside_solve():
        found = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
        slope = torch.cat(
            [
                torch.zeros_like(x).reshape(-1) if g is None else g.reshape(-1).to(dtype)
                for g, x in zip(found, inputs, strict=True)
            ]
        )
        unit = torch.eye(len(slope), dtype=dtype, device=slope.device)
        hessian = product_rows(slope, inputs, unit)
    return slope.detach(), (hessian + hessian.T) / 2


def terminal_derivatives(
    field: FlatField, z1: Tensor, terminal: Callable[[Any], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return Φ_z, (n,), and Φ_zz, (n, n), at the flat state ``z1``, (n,)."""
    # The layers that a loss uses are not used by a training step here.
    with torch.enable_grad(), inside_solve():
        parts = [part.detach().requires_grad_(True) for part in field.layout.split(z1)]
        value = terminal(field.pack(parts))
        return scalar_derivatives(value, parts, "terminal(z)")


def end_of_solve(
    field: FlatField, y0: State, t: Tensor, solver: Solver, nfe: NFE | None
) -> list[Tensor]:
    """Solve forward without graph; return the state at ``t[-1]`` by part."""
    check_times(t)
    if t.numel() < 2:
        raise ValueError(
            "t needs a start and an end, such as torch.tensor([0.0, 1.0]); got"
            f" {t.numel()} time{'' if t.numel() == 1 else 's'}"
        )
    problem = Problem(field, solver, solver.adjoint(), NFE() if nfe is None else nfe)
    return [part[-1] for part in _solve(problem, parts_of(y0), t)]


def _solve(problem: Problem, parts: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
    """Solve without graph; raise SolverError for what a grid would return not finite."""
    with torch.no_grad():
        solution = solve_forward(problem, parts, t)
    if not all(bool(torch.isfinite(part).all()) for part in solution):
        raise failure(problem.forward, "forward", *NON_FINITE)
    return solution


def solve_back(
    func: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    parts: tuple[Tensor, ...],
    t: Tensor,
    solver: Solver,
    nfe: NFE | None,
) -> tuple[Tensor, ...]:
    """Integrate a tuple state without graph, as a backward solve; return it at all times.

    A norm given by the user is left out: it is one of z, and this state has other components.
    """
    backward = solver.adjoint()
    problem = Problem(Field(func, parts), backward, backward, NFE())
    check_times(t)
    try:
        return _solve(problem, parts, t)
    except SolverError as error:
        raise SolverError(**{**vars(error), "direction": "backward"}) from error
    finally:
        if nfe is not None:
            nfe.add("backward", problem.nfe.forward)
