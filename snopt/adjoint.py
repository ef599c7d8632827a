"""The backward ODE as an autograd function over the public ``torchdiffeq.odeint``.

With a(t1) = Φ_z and Q_u(t1) = 0 the backward solve integrates

    dz/dt = F(t, z, θ),    -da/dt = F_zᵀ a,    -dQ_u/dt = F_θᵀ a

from the last output time to the first (Chen et al. 2018; SNOpt paper, eq. 3), adding the loss's
gradient at every output time on the way: O(1) memory in the number of solver steps.

On a step at which an optimizer wants curvature, the quadrature nodes become extra output times of
that same solve. Output times are dense output: they change neither its steps nor its result, so the
gradient with collection is the gradient without, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snopt.curvature import Collector, armed_collectors, collect_node, plan_nodes
from snopt.solve import (
    FIXED_GRID,
    NFE,
    Settings,
    State,
    check_problem,
    solve,
    user_callbacks,
)


@dataclass(frozen=True)
class Problem:
    """Everything about a solve that is not a tensor to differentiate.

    Attributes:
        func: vector field F(t, z).
        is_tuple: whether the state is a tuple.
        forward: settings of the forward solve.
        backward: settings of the backward solve; its ``norm`` option is as the user gave it.
        nfe: counter of evaluations.
    """

    func: Callable[..., Any]
    is_tuple: bool
    forward: Settings
    backward: Settings
    nfe: NFE

    def pack(self, parts: Sequence[Tensor]) -> State:
        """Return the state as ``func`` wants it."""
        return tuple(parts) if self.is_tuple else parts[0]


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: object = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    nfe: NFE | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``; gradients come from the adjoint ODE.

    Arguments, defaults and results are those of ``torchdiffeq.odeint_adjoint`` (without events), so
    it can take its place. In addition, while a :class:`snopt.SNOpt` waits for curvature, the
    backward solve hands it the factors of every layer inside ``func``.

    Do not use it to differentiate twice (use :func:`snopt.odeint`), nor where memory is plentiful
    and the gradient must be that of the discretised solve.

    Args:
        func: vector field F(t, y) -> dy/dt; an ``nn.Module``, or any callable together with
            ``adjoint_params``. Its ``callback_*`` and ``callback_*_adjoint`` methods are honoured.
        y0: state at ``t[0]``, a tensor of any shape or a tuple of tensors.
        t: output times, (T,), strictly increasing or strictly decreasing; may require a gradient.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: any torchdiffeq method; None means ``"dopri5"``.
        options: solver options. ``max_num_steps`` is 10 000 where not given.
        event_fn: must be None.
        adjoint_rtol: relative tolerance of the backward solve, a scalar; None means ``rtol``.
        adjoint_atol: absolute tolerance of the backward solve, a scalar; None means ``atol``.
        adjoint_method: method of the backward solve; None means ``method``.
        adjoint_options: options of the backward solve; None means ``options`` without its norm.
            ``norm`` may be a function of the tuple (vjp_t, *y, *a, *parameter adjoints), or
            ``"seminorm"``, which leaves the parameter adjoints out of the step-size control.
        adjoint_params: tensors to differentiate with respect to; None means
            ``func.parameters()``.
        nfe: counter to which evaluations are added.

    Returns:
        The solution at all times: like ``y0`` with a leading axis of length T.

    Raises:
        SolverError: if the forward or, in ``backward()``, the backward solve fails.
        TypeError: if the state or ``t`` is not of floating point.
        ValueError: if ``t`` is not strictly monotonic, the method is unknown, ``func`` is no module
            and ``adjoint_params`` is missing, or ``adjoint_options`` cannot be inferred.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(
            "func is no nn.Module, so its parameters are unknown: pass adjoint_params=… (an empty"
            " tuple if there are none)"
        )
    problem = make_problem(
        func,
        y0,
        t,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
        event_fn=event_fn,
        adjoint_rtol=adjoint_rtol,
        adjoint_atol=adjoint_atol,
        adjoint_method=adjoint_method,
        adjoint_options=adjoint_options,
        nfe=nfe,
    )
    if adjoint_params is None and isinstance(func, nn.Module):
        adjoint_params = func.parameters()
    params = [p for p in adjoint_params or () if p.requires_grad]
    parts = y0 if isinstance(y0, tuple) else (y0,)
    solution = _Adjoint.apply(problem, len(parts), t, *parts, *params)  # type: ignore[no-untyped-call]
    return problem.pack(solution)


def make_problem(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: object = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    nfe: NFE | None = None,
) -> Problem:
    """Check a solve's arguments and settle its defaults (see :func:`odeint_adjoint`)."""
    method = check_problem(y0, t, method, event_fn)
    adjoint_method = check_problem(y0, t, adjoint_method or method, None)
    if adjoint_method != method and options and adjoint_options is None:
        raise ValueError(
            f"adjoint_method={adjoint_method!r} differs from method={method!r}, so adjoint_options"
            " cannot be inferred from options: pass adjoint_options too ({} for none)"
        )
    if adjoint_options is None:
        adjoint_options = {k: v for k, v in (options or {}).items() if k != "norm"}
    adjoint_rtol = rtol if adjoint_rtol is None else adjoint_rtol
    adjoint_atol = atol if adjoint_atol is None else adjoint_atol
    for name, tol in (("adjoint_rtol", adjoint_rtol), ("adjoint_atol", adjoint_atol)):
        if isinstance(tol, (tuple, list)):
            raise ValueError(f"{name} must be a scalar: the backward state has other components")
    return Problem(
        func=func,
        is_tuple=isinstance(y0, tuple),
        forward=Settings(rtol, atol, method, dict(options or {})),
        backward=Settings(adjoint_rtol, adjoint_atol, adjoint_method, dict(adjoint_options)),
        nfe=NFE() if nfe is None else nfe,
    )


class _Adjoint(torch.autograd.Function):
    """Forward: one solve without graph. Backward: one augmented solve for each output interval."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, n_state: int, t: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Solve forward; save times, solution and parameters."""
        parts, params = tensors[:n_state], tensors[n_state:]
        with torch.no_grad():
            solution = solve(
                problem.func,
                problem.pack(parts),
                t,
                problem.forward,
                nfe=problem.nfe,
                kind="forward",
                callbacks=user_callbacks(problem.func),
            )
        solution = solution if isinstance(solution, tuple) else (solution,)
        ctx.problem, ctx.n_state = problem, n_state
        ctx.save_for_backward(t, *solution, *params)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Solve backward; return gradients to times, initial state and parameters."""
        t, *saved = ctx.saved_tensors
        solution, params = saved[: ctx.n_state], saved[ctx.n_state :]
        with torch.no_grad():
            a, grad_t, grad_params = integrate_backward(
                ctx.problem,
                t,
                solution,
                grad_solution,
                params,
                armed_collectors(ctx.problem.func),
                t_requires_grad=ctx.needs_input_grad[2],
            )
        return (None, None, grad_t, *a, *grad_params)


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
        if plan and _interpolates_by_evaluation(problem):
            # One more evaluation an output time, see _backward_settings.
            problem.nfe.add("curvature", len(plan) + 1)
            problem.nfe.add("backward", -(len(plan) + 1))
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


def _interpolates_by_evaluation(problem: Problem) -> bool:
    return problem.backward.method in FIXED_GRID and "interp" not in problem.backward.options


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
        options["norm"] = _adjoint_norm(options.get("norm"), problem.forward.options, n, problem)
    backward = problem.backward
    return Settings(backward.rtol, backward.atol, backward.method, options)


def _adjoint_norm(
    norm: Any, forward_options: Mapping[str, Any], n: int, problem: Problem
) -> Callable[[tuple[Tensor, ...]], Any]:
    """Return torchdiffeq's norm of the backward state: the largest of its components' norms."""
    if callable(norm):
        user_norm: Callable[[tuple[Tensor, ...]], Any] = norm
        return user_norm
    if norm not in (None, "seminorm"):
        raise ValueError(f'norm must be a function or "seminorm", got {norm!r}')
    user_state_norm = forward_options.get("norm")

    def state_norm(parts: tuple[Tensor, ...]) -> Any:
        if user_state_norm is not None:
            return user_state_norm(problem.pack(parts))
        return max(_rms(p) for p in parts)

    def adjoint_norm(state: tuple[Tensor, ...]) -> Any:
        z, a, params = state[1 : 1 + n], state[1 + n : 1 + 2 * n], state[1 + 2 * n :]
        norms = [state[0].abs(), state_norm(z), state_norm(a)]
        if norm is None:
            norms.extend(_rms(p) for p in params)
        return max(norms)

    return adjoint_norm


def _rms(x: Tensor) -> Tensor:
    return x.abs().pow(2).mean().sqrt()


def collect_without_gradient(
    problem: Problem, t: Tensor, solution: Sequence[Tensor], grad_solution: Sequence[Tensor]
) -> None:
    """Integrate (z, a) backward for the curvature alone, where the gradient comes by another way.

    A failure here must not end a training step whose gradient is sound: it warns, and the
    optimizer keeps the factors that it has.
    """
    collectors = armed_collectors(problem.func)
    if not collectors:
        return
    nfe = NFE()
    try:
        with torch.no_grad():
            integrate_backward(
                Problem(problem.func, problem.is_tuple, problem.forward, problem.backward, nfe),
                t,
                solution,
                grad_solution,
                (),
                collectors,
            )
    except RuntimeError as error:
        warnings.warn(f"no curvature from this step: {error}", RuntimeWarning, stacklevel=2)
    problem.nfe.add("curvature", nfe.backward + nfe.curvature)
