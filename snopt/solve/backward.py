"""The backward solve: (z, a, Q_u) from the last output time to the first, curvature on the way.

With a(t1) = Φ_z and Q_u(t1) = 0 it integrates

    dz/dt = F(t, z, θ),    -da/dt = F_zᵀ a,    -dQ_u/dt = F_θᵀ a

(docs/method.md, eq. 2), adding the loss's gradient at every output time on the way: O(1) memory in
the number of solver steps. This file does it on stock torchdiffeq, the reference and the road for
everything that the engine (:mod:`snopt.solve.backward_engine`) does not take.

On a step at which an optimizer wants curvature, the quadrature nodes become extra output times of
that same solve. Output times are dense output: they change neither its steps nor its result, so the
gradient with collection is the gradient without, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snopt.curvature.collector import Collector, all_or_nothing, node_collectors
from snopt.curvature.nodes import collect_node, leaves_no_trace, plan_nodes
from snopt.solve.backward_engine import integrate_on_engine
from snopt.solve.norms import adjoint_norm
from snopt.solve.problem import Problem
from snopt.solve.torchdiffeq import FIXED_GRID, NFE, Settings, solve, user_callbacks


def integrate_backward(
    problem: Problem,
    t: Tensor,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
    params: Sequence[Tensor],
    collectors: Sequence[Collector],
    *,
    t_requires_grad: bool = False,
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Integrate (z, a, Q_u) from ``t[-1]`` back to ``t[0]`` and collect curvature on the way.

    Args:
        problem: the solve.
        t: output times, (T,).
        solution: components of the forward solution, each (T, …).
        grad_solution: gradient of the loss with respect to them, same shapes.
        params: parameters whose gradient is accumulated (Q_u).
        collectors: who wants curvature; nodes are placed for them on every output interval.
        t_requires_grad: whether to compute gradients with respect to ``t``.

    Returns:
        a(t[0]) by component; the gradient with respect to ``t``, or None; Q_u(t[0]) by parameter.

    Raises:
        SolverError: if the solve fails.
    """
    if problem.engine[1]:
        return integrate_on_engine(
            problem, t, solution, grad_solution, params, collectors, t_requires_grad=t_requires_grad
        )
    n = len(solution)
    dynamics = _augmented_dynamics(problem, n, params, t_requires_grad)
    times = t.detach().tolist()
    a = [g[-1].clone() for g in grad_solution]
    vjp_t = solution[0].new_zeros(())
    Q_u = [torch.zeros_like(p) for p in params]
    grad_t = torch.zeros_like(t) if t_requires_grad else None
    for i in range(len(times) - 1, 0, -1):
        if grad_t is not None:
            grad_t[i] = _grad_of_output_time(problem, t, i, solution, grad_solution)
            vjp_t = vjp_t - grad_t[i]
        plan = plan_nodes(collectors, times[i], times[i - 1]) if collectors else []
        grid = _output_times(t, i, [node for node, _ in plan])
        z = [s[i] for s in solution]
        aug = solve(
            dynamics,
            (vjp_t, *z, *a, *Q_u),
            grid,
            _backward_settings(problem, n, extra_outputs=bool(plan)),
            nfe=problem.nfe,
            kind="backward",
            callbacks=user_callbacks(problem.func, adjoint=True),
        )
        for k, (_, takers) in enumerate(plan, start=1):
            problem.nfe.add("curvature")
            collect_node(
                problem.func,
                grid[k],
                tuple(part[k] for part in aug[1 : 1 + n]),
                tuple(part[k] for part in aug[1 + n : 1 + 2 * n]),
                takers,
                is_tuple=problem.is_tuple,
            )
        extra = _interpolation_cost(problem, len(plan))
        problem.nfe.add("curvature", extra)
        problem.nfe.add("backward", -extra)
        vjp_t, Q_u = aug[0][-1], [part[-1] for part in aug[1 + 2 * n :]]
        a = [
            part[-1] + g[i - 1]
            for part, g in zip(aug[1 + n : 1 + 2 * n], grad_solution, strict=True)
        ]
    if grad_t is not None:
        grad_t[0] = vjp_t
    return a, grad_t, Q_u


def _augmented_dynamics(
    problem: Problem, n: int, params: Sequence[Tensor], t_requires_grad: bool
) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return the right-hand side for the state (vjp_t, *z, *a, *Q_u)."""

    def dynamics(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a = state[1 : 1 + n], state[1 + n : 1 + 2 * n]
        with torch.enable_grad():
            t = t.detach().requires_grad_(t_requires_grad)
            z = tuple(part.detach().requires_grad_(True) for part in z)
            out = problem.func(t, problem.pack(z))
            outputs = out if problem.is_tuple else (out,)
            inputs = [*([t] if t_requires_grad else []), *z, *params]
            pairs = [(o, -adj) for o, adj in zip(outputs, a, strict=True) if o.requires_grad]
            products: Sequence[Tensor | None] = [None] * len(inputs)
            if pairs:
                # retain_graph: a field may hold a graph made before the solve.
                products = torch.autograd.grad(
                    [o for o, _ in pairs],
                    inputs,
                    [adj for _, adj in pairs],
                    allow_unused=True,
                    retain_graph=True,
                )
        filled = [
            torch.zeros_like(x) if p is None else p for x, p in zip(inputs, products, strict=True)
        ]
        if not t_requires_grad:
            filled = [torch.zeros_like(state[0]), *filled]
        outputs = tuple(o.detach() for o in outputs)
        return (filled[0].to(state[0].dtype), *outputs, *filled[1:])

    return dynamics


def _grad_of_output_time(
    problem: Problem,
    t: Tensor,
    i: int,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
) -> Tensor:
    """Return dΦ/dt_i = F(t_i, z(t_i))ᵀ Φ_z(t_i), the effect of moving output time i alone."""
    problem.nfe.add("backward")
    out = problem.func(t[i].to(solution[0].dtype), problem.pack([s[i] for s in solution]))
    outputs = out if problem.is_tuple else (out,)
    terms = [(o * g[i]).sum() for o, g in zip(outputs, grad_solution, strict=True)]
    return torch.stack([term.to(t.dtype) for term in terms]).sum()


def _output_times(t: Tensor, i: int, nodes: list[float]) -> Tensor:
    """Return t[i], the nodes, t[i-1]; a node that rounds onto a neighbour names the interval."""
    inner = torch.tensor(nodes, dtype=t.dtype, device=t.device)
    grid = torch.cat([t[i : i + 1], inner, t[i - 1 : i]]).detach()
    if nodes and not bool((torch.diff(grid) * torch.sign(t[i - 1] - t[i]) > 0).all()):
        raise ValueError(
            f"{len(nodes)} quadrature nodes cannot be told apart in {t.dtype} between t ="
            f" {float(t[i])} and {float(t[i - 1])}: use fewer nodes or times in float64"
        )
    return grid


def _interpolation_cost(problem: Problem, nodes: int) -> int:
    """Return the evaluations that the backward solve spends on interpolating at the nodes.

    Adaptive methods have dense output for nothing; a fixed grid's cubic (see
    :func:`_backward_settings`) costs one evaluation for each output time.
    """
    if problem.backward.method not in FIXED_GRID or nodes == 0:
        return 0
    users_choice = problem.backward.options.get("interp")
    return {None: nodes + 1, "cubic": nodes}.get(users_choice, 0)


def _backward_settings(problem: Problem, n: int, *, extra_outputs: bool) -> Settings:
    """Return the backward settings, such that extra output times leave the result alone."""
    options = dict(problem.backward.options)
    if problem.backward.method in FIXED_GRID:
        options.pop("norm", None)
        if "step_size" not in options and "grid_constructor" not in options:
            # Without either, torchdiffeq takes the output times as the grid.
            options["grid_constructor"] = lambda _func, _y0, t: t[[0, -1]]
        if extra_outputs:
            # Linear interpolation would put first-order errors into the factors. The cubic costs an
            # evaluation for each output time and returns the grid's own values at the grid's times.
            options.setdefault("interp", "cubic")
    else:
        norm = options.get("norm")
        if not callable(norm):
            user_norm = problem.forward.options.get("norm")
            seminorm = norm is not None
            options["norm"] = adjoint_norm(problem.pack, n, user_norm, seminorm=seminorm)
    backward = problem.backward
    return Settings(backward.rtol, backward.atol, backward.method, options)


def collect_without_gradient(
    problem: Problem, t: Tensor, solution: Sequence[Tensor], grad_solution: Sequence[Tensor]
) -> None:
    """Integrate (z, a) backward for the curvature alone, where the gradient comes by another way.

    A failure here must not end a training step whose gradient is sound: it warns, and the
    optimizer keeps the factors that it has.
    """
    collectors = node_collectors(problem.func)
    if not collectors:
        return
    nfe = NFE()
    try:
        with (
            torch.no_grad(),
            all_or_nothing(collectors),
            leaves_no_trace(problem.func, t.device),
        ):
            integrate_backward(
                replace(problem, nfe=nfe, memory=None),
                t,
                solution,
                grad_solution,
                (),
                collectors,
            )
    except RuntimeError as error:
        warnings.warn(f"no curvature from this step: {error}", RuntimeWarning, stacklevel=2)
    problem.nfe.add("curvature", nfe.backward + nfe.curvature)
