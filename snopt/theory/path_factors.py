"""Kronecker factors of any rows of Proposition 2, integrated along the path.

A layer's part of p_i is ∫ x ⊗ g_i dt with its input x and g_i = (∂F/∂h)ᵀ q_i at its output h. From
the rows y_i of every sample's own loss come (docs/method.md)

    A = ∫ E[x xᵀ] dt,    B = ∫ Σ_i E[g_i g_iᵀ] dt                                                (8)

with E the mean over samples; A ⊗ B stands for Σ_i E[p_i p_iᵀ]. With one vector, Φ_z, this is
what a backward pass with :class:`snopt.SNOpt` collects; here the rows are the caller's, so that
the factors of other curvatures can be compared with dense matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Factors
from snopt.curvature.layers import SUPPORTED, batch_of, input_factor, output_factor
from snopt.curvature.quadrature import Evaluations, Quadrature, StepEnds, gauss_legendre
from snopt.curvature.recording import Recording, inside_solve
from snopt.solve.field import State, check_times
from snopt.solve.solver import NFE, Solver, SolverKeywords, is_on_a_grid
from snopt.theory.flat_field import FlatField, end_of_solve, solve_back
from snopt.theory.low_rank import Vectors, flat_rows


def path_factors(
    func: nn.Module,
    y0: State,
    t: Tensor,
    vectors: Vectors,
    *,
    quadrature: Quadrature | None = None,
    nfe: NFE | None = None,
    **solver: Unpack[SolverKeywords],
) -> dict[str, Factors]:
    """Return the factors A and B of every layer of ``func`` from rows at ``t[-1]`` (eq. 8).

    Args:
        func: vector field F(t, z), an ``nn.Module``.
        y0: state at ``t[0]``; its leading dimension is the batch of N samples.
        t: start and end, (2,).
        vectors: rows y_i as for :func:`low_rank_adjoint`, row i holding one vector of every
            sample: of the sample's own loss, not divided by N.
        quadrature: rule for the nodes; None means ``gauss_legendre(4)``.
        nfe: counter to which evaluations are added.
        **solver: settings of both solves, see :func:`snopt.second_order_adjoint`.

    Returns:
        Factors by layer name, for the layers that the field used.

    Raises:
        SolverError: if a solve fails.
        ValueError: if ``t`` is no interval, the vectors do not fit the state, or the quadrature is
            that of step ends.
    """
    settings = Solver(**solver)
    check_times(t)
    if t.numel() > 2:
        raise ValueError(f"path_factors takes a start and an end, got {t.numel()} times")
    rule = gauss_legendre(4) if quadrature is None else quadrature
    if isinstance(rule, (StepEnds, Evaluations)):
        raise ValueError("path_factors needs nodes: use gauss_legendre(n) or uniform(step)")
    field = FlatField(func, y0)
    end = end_of_solve(field, y0, t, settings, nfe)
    rows = flat_rows(field, vectors(field.pack(end)) if callable(vectors) else vectors)
    if rows.shape[0] == 0:
        raise ValueError("no vectors were given: there is nothing to integrate")
    # As gradients of the batch's mean loss, which is what a layer's output factor expects.
    rows = rows.to(end[0]) / field.layout.shapes[0][0]
    start, stop = t.detach()
    nodes, weights = rule(float(stop), float(start))

    def first_order(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        F, dq, _ = field.products(time, state[0], state[1], parameters=False)
        return F, -dq

    solution = solve_back(
        first_order,
        (field.layout.flatten(end), rows),
        torch.cat([stop[None], nodes.to(t), start[None]]),
        _with_nodes(settings, abs(float(stop) - float(start))),
        nfe,
    )
    sums = _Sums(field, {m: n for n, m in func.named_modules() if isinstance(m, SUPPORTED)})
    for k, (node, weight) in enumerate(zip(nodes.tolist(), weights.tolist(), strict=True), start=1):
        sums.add(node, solution[0][k], solution[1][k], weight)
        if nfe is not None:
            nfe.add("curvature")
    return sums.factors


def _with_nodes(solver: Solver, length: float) -> Solver:
    """Return the solver with which the nodes are dense output and leave the solve's grid alone."""
    options = dict(solver.options)
    if is_on_a_grid(solver.method):
        if "grid_constructor" not in options:
            options.setdefault("step_size", length)
        options.setdefault("interp", "cubic")
    return replace(solver, options=options)


@dataclass
class _Sums:
    """Factors of the layers of one field, summed over nodes."""

    field: FlatField
    layers: Mapping[nn.Module, str]
    factors: dict[str, Factors] = dataclass_field(default_factory=dict)

    def add(self, t: float, z: Tensor, q: Tensor, weight: float) -> None:
        """Evaluate the field at a node and add every use of a layer: z (n,), q (R, n)."""
        field = self.field
        watcher = Collector(self.layers, gauss_legendre(1), Accumulator)
        recording = Recording([watcher])
        watcher.arm()
        try:
            with torch.enable_grad(), inside_solve(recording):
                parts = [part.detach().requires_grad_(True) for part in field.layout.split(z)]
                flat = field.layout.flatten(field.at(t, parts))
        finally:
            watcher.disarm()
        uses = recording.uses
        if not uses or not flat.requires_grad:
            return
        edges = [use.output for use in uses]
        B: list[Any] = [0.0] * len(uses)
        for row in q:
            gradients = torch.autograd.grad(flat, edges, row, allow_unused=True, retain_graph=True)
            for i, (use, g) in enumerate(zip(uses, gradients, strict=True)):
                if g is not None:
                    B[i] = B[i] + output_factor(use.layer, g)  # type: ignore[arg-type]
        for use, square in zip(uses, B, strict=True):
            if isinstance(square, Tensor):
                self._keep(use.layer, use.x, square, weight)

    def _keep(self, layer: Any, x: Tensor, B: Tensor, weight: float) -> None:
        name, batch = self.layers[layer], batch_of(layer, x)
        old = self.factors.get(name)
        A, B = input_factor(layer, x).mul_(weight), B * weight
        if old is not None:
            A, B, weight, batch = old.A + A, old.B + B, old.weight + weight, max(old.batch, batch)
        self.factors[name] = Factors(A=A, B=B, weight=weight, batch=batch)
