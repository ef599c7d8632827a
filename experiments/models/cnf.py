"""Continuous normalizing flows: exact log-densities and samples from an ODE (Chen et al. 2018).

A flow is made of vector fields, :class:`HyperField` (Chen et al. 2018) or
:class:`ConcatSquashField` (FFJORD, Grathwohl et al. 2019), and the trace of their Jacobians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.data.splits import DataInfo
from experiments.models.checks import require_positive, require_task, require_whole
from experiments.models.solver import SolverSettings
from snopt import ODEBlock

Pair = tuple[Tensor, Tensor]

TRACES = ("exact", "rademacher", "gaussian")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}


class CNF(nn.Module):
    """Density of x = z(t1), where z(0) is standard normal and dz/dt = F(t, z).

    Data are integrated from t1 down to 0: log p(x) = log N(z(0); 0, I) - Δ, where Δ starts at 0 and
    follows dΔ/dt = -tr ∂F/∂z. With several fields, the flows follow one another, each over [t1, 0];
    the data pass through the first field first.
    """

    def __init__(
        self,
        fields: Sequence[nn.Module],
        dim: int,
        solver: SolverSettings,
        *,
        trace: str = "exact",
        t1: float = 1.0,
    ) -> None:
        """Build the flow.

        Args:
            fields: vector fields F, called as ``field(t, z)``, one a flow.
            dim: size of x.
            solver: settings of the ODE blocks.
            trace: ``"exact"``, ``"rademacher"`` or ``"gaussian"``, what :meth:`log_prob` uses where
                it is not told otherwise.
            t1: integration time of each flow.

        Raises:
            ConfigError: if the trace is unknown or a number is out of range.
        """
        super().__init__()
        _check_trace(trace)
        require_positive(type(self).__name__, dim=dim, blocks=len(fields), t1=t1)
        self.dim = dim
        self.trace = trace
        self.t1 = t1
        self.flows = nn.ModuleList(
            solver.block(AugmentedField(field), (t1, 0.0)) for field in fields
        )

    def log_prob(
        self, x: Tensor, *, trace: str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return log p(x) in nats, (batch,), of points (batch, dim); a trace estimate is unbiased.

        Args:
            x: points.
            trace: overrides the model's own choice.
            generator: source of the trace's noise; None means torch's global generator.

        Raises:
            ConfigError: if ``x`` is not of shape (batch, dim) or the trace is unknown.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ConfigError(
                f"{type(self).__name__} was built for points of dimension {self.dim}, got a batch "
                f"of {tuple(x.shape)}"
            )
        kind = self.trace if trace is None else trace
        z, delta = x, x.new_zeros(x.shape[0], 1)
        for flow in self.flows:
            z, delta = _solve(flow, (z, delta), noise=draw_noise(kind, z, generator))
        return standard_normal_log_prob(z) - delta[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`log_prob` of ``x``."""
        return self.log_prob(x)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points, (n, dim), like the parameters; no gradient.

        Base points are drawn from ``generator`` (None means torch's global one) and integrated from
        0 up to t1.
        """
        like = next(self.parameters())
        z = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device=like.device)
        return self.path(z, [1.0])[0]

    @torch.no_grad()
    def path(self, z: Tensor, fractions: Sequence[float]) -> list[Tensor]:
        """Move base points (batch, dim) towards the data; return where they are on the way.

        Args:
            z: points at time 0.
            fractions: parts of the whole time, of all flows together, from 0 to 1, not decreasing;
                for each there is one tensor of points. No gradient.

        Raises:
            ConfigError: if the fractions decrease or leave [0, 1].
        """
        if any(b < a for a, b in pairwise([0.0, *fractions, 1.0])):
            raise ConfigError(f"fractions must rise from 0 to 1, got {list(fractions)}")
        nothing, now, found = z.new_zeros(len(z), 1), 0.0, []
        flows = list(reversed(self.flows))
        for fraction in fractions:
            end = fraction * len(flows)
            while now < end:
                k = int(now)
                stop = min(end, k + 1.0)
                times = (self.t1 * (now - k), self.t1 * (stop - k))
                z, _ = _solve(flows[k], (z, nothing), times, density=False)
                now = stop
            found.append(z)
        return found


def _solve(
    flow: nn.Module,
    state: Pair,
    times: tuple[float, float] | None = None,
    *,
    noise: Tensor | None = None,
    density: bool = True,
) -> Pair:
    """Integrate (z, log p) by a field that belongs to this solve alone."""
    block = cast(ODEBlock, flow)
    field = cast(AugmentedField, block.func).field
    augmented = AugmentedField(field, noise=noise, density=density)
    return cast(Pair, block.integrate(augmented, state, times))


class HyperCNF(CNF):
    """The 2-d flow of Chen et al. 2018: one field whose weights come from a hyper-network of t."""

    def __init__(
        self,
        info: DataInfo,
        solver: SolverSettings,
        *,
        width: int = 64,
        hidden: int = 32,
        trace: str = "exact",
        t1: float = 1.0,
    ) -> None:
        """Build the flow for the points of a data set, ``input_shape`` (dim,).

        ``width`` and ``hidden`` are as in :class:`HyperField`, the rest as in :class:`CNF`; the
        exact trace has a closed form here.

        Raises:
            ConfigError: if the data set is not one of points, or an argument is out of range.
        """
        require_whole("HyperCNF", width=width, hidden=hidden)
        dim = _point_dim("HyperCNF", info)
        field = HyperField(dim, width=width, hidden=hidden)
        super().__init__([field], dim, solver, trace=trace, t1=t1)


class ConcatSquashCNF(CNF):
    """The flow of FFJORD (Grathwohl et al. 2019): one or more concat-squash fields."""

    def __init__(
        self,
        info: DataInfo,
        solver: SolverSettings,
        *,
        width: int = 64,
        layers: int = 3,
        blocks: int = 1,
        activation: str = "tanh",
        trace: str = "rademacher",
        t1: float = 1.0,
    ) -> None:
        """Build the flow for the points of a data set, ``input_shape`` (dim,).

        There are ``blocks`` flows that follow one another, each a :class:`ConcatSquashField`; the
        rest is as in :class:`CNF`.

        Raises:
            ConfigError: if the data set is not one of points, or an argument is out of range.
        """
        require_whole("ConcatSquashCNF", width=width, layers=layers, blocks=blocks)
        dim = _point_dim("ConcatSquashCNF", info)
        fields = [
            ConcatSquashField(dim, width=width, layers=layers, activation=activation)
            for _ in range(blocks)
        ]
        super().__init__(fields, dim, solver, trace=trace, t1=t1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) in nats, shape (batch,), for ``z`` of shape (batch, dim)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)


def _point_dim(model: str, info: DataInfo) -> int:
    require_task(model, info, "cnf")
    if len(info.input_shape) != 1:
        raise ConfigError(
            f"{model} needs input_shape (dim,), but data set '{info.name}' has "
            f"{tuple(info.input_shape)}"
        )
    return info.input_shape[0]


class AugmentedField(nn.Module):
    """d(z, log p)/dt = (F(t, z), -tr ∂F/∂z), the instantaneous change of variables.

    An object belongs to one solve: its noise never changes. The adjoint evaluates the field again
    long after the forward solve, keeps the object and so sees the same noise.

    F's layers run once an evaluation. The trace differentiates through that same evaluation, or,
    where the field has a method ``with_trace``, comes from it in closed form.
    """

    def __init__(
        self, field: nn.Module, *, noise: Tensor | None = None, density: bool = True
    ) -> None:
        """Wrap a field; its parameters are shared, not copied.

        Args:
            field: F, called as ``field(t, z)``; row n of its result depends on row n of z only.
            noise: frozen noise of the trace estimate, (batch, dim); None means the exact trace.
            density: False leaves the log-density where it is, for sampling.
        """
        super().__init__()
        self.field = field
        self.noise = noise
        self.density = density

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Return the time derivatives of z (batch, dim) and of the log-density (batch, 1)."""
        z, logp = state
        if not self.density:
            return self.field(t, z), torch.zeros_like(logp)
        closed_form = getattr(self.field, "with_trace", None)
        if self.noise is None and closed_form is not None:
            dz, trace = closed_form(t, z)
            return dz, -trace[:, None]

        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            dz = self.field(t, z)
            if self.noise is None:
                trace = _exact_trace(dz, z, create_graph=differentiable)
            else:  # unbiased where E[e eᵀ] = I (Hutchinson 1990; FFJORD)
                (product,) = torch.autograd.grad(
                    dz, z, self.noise, create_graph=differentiable, retain_graph=True
                )
                trace = (product * self.noise).sum(dim=1)
        if not differentiable:
            dz, trace = dz.detach(), trace.detach()
        return dz, -trace[:, None]


def _exact_trace(dz: Tensor, z: Tensor, *, create_graph: bool) -> Tensor:
    """Return tr(∂F/∂z) of each row by one backward pass a dimension."""
    trace = dz.new_zeros(dz.shape[0])
    for i in range(dz.shape[1]):
        # The graph is needed again: for the next dimension, or to differentiate dz.
        (row,) = torch.autograd.grad(
            dz[:, i].sum(), z, create_graph=create_graph, retain_graph=True
        )
        trace = trace + row[:, i]
    return trace


def draw_noise(kind: str, like: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
    """Draw the noise of one solve; None for the exact trace.

    It is drawn once, before the solve: noise that changed between evaluations would make the field
    discontinuous in time, and the adjoint would integrate another one than the forward solve.

    Args:
        kind: one of :data:`TRACES`.
        like: gives shape, dtype and device.
        generator: where the noise comes from; None means torch's global generator.
    """
    _check_trace(kind)
    if kind == "exact":
        return None
    # Drawn in place: the ..._like functions take no generator.
    noise = torch.empty_like(like, requires_grad=False)
    if kind == "gaussian":
        return noise.normal_(generator=generator)
    return noise.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _check_trace(kind: str) -> None:
    """Raise ConfigError unless ``kind`` is one of :data:`TRACES`."""
    if kind not in TRACES:
        raise ConfigError(f"unknown trace '{kind}'; valid traces: {', '.join(TRACES)}")


class HyperField(nn.Module):
    """F(t, z) = 1/K Σ_k u_k(t) tanh(w_k(t)ᵀ z + b_k(t)), with w, b, u from a hyper-network of t.

    The hyper-network has three linear layers with tanh between; u is gated, u · σ(g), as published.
    Its layers see the time alone, as one row of shape (1, 1).
    """

    def __init__(self, dim: int, *, width: int = 64, hidden: int = 32) -> None:
        """Build the field.

        Args:
            dim: size D of the state.
            width: number K of terms; 64 in the paper.
            hidden: width of the hyper-network's two inner layers.
        """
        super().__init__()
        self.dim = dim
        self.width = width
        self.fc1 = nn.Linear(1, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, width * (3 * dim + 1))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, D)."""
        w, b, u = self.weights(t.to(z))
        return torch.tanh(z @ w.T + b) @ u / self.width

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return dz/dt, shape (batch, D), and tr(∂F/∂z) in closed form, shape (batch,).

        ∂F/∂z = 1/K Σ_k (1 - h_k²) u_k w_kᵀ, so the trace needs no backward pass.
        """
        w, b, u = self.weights(t.to(z))
        h = torch.tanh(z @ w.T + b)
        return h @ u / self.width, (1 - h.square()) @ (w * u).sum(dim=1) / self.width

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return w (K, D), b (K,) and u (K, D) at the scalar time ``t``."""
        hidden = torch.tanh(self.fc1(t.reshape(1, 1)))
        flat = self.fc3(torch.tanh(self.fc2(hidden))).reshape(-1)
        shape = (self.width, self.dim)
        block = self.width * self.dim
        w, u, gate, b = flat.split([block, block, block, self.width])
        return w.view(shape), b, (u * torch.sigmoid(gate)).view(shape)


class ConcatSquashLinear(nn.Module):
    """A linear layer on z, scaled and shifted by the time: layer(z) · σ(gate(t)) + bias(t).

    ``gate`` and ``bias`` see the time alone, as one row of shape (1, 1).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Build the three linear maps."""
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(1, out_features)
        # Without a constant part: the layer's bias has that role, as published.
        self.bias = nn.Linear(1, out_features, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Map (batch, in_features) to (batch, out_features) at the scalar time ``t``."""
        row = t.to(z).reshape(1, 1)
        out: Tensor = self.layer(z) * torch.sigmoid(self.gate(row)) + self.bias(row)
        return out


class ConcatSquashField(nn.Module):
    """Concat-squash layers dim → width → … → dim with an activation between."""

    def __init__(self, dim: int, *, width: int, layers: int, activation: str) -> None:
        """Build ``layers`` layers; inner ones have the size ``width``.

        The activation, ``"softplus"`` or ``"tanh"``, is smooth: the trace is differentiated.

        Raises:
            ConfigError: if the activation is unknown.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation '{activation}'; valid activations: {', '.join(ACTIVATIONS)}"
            )
        sizes = [dim, *[width] * (layers - 1), dim]
        self.layers = nn.ModuleList(ConcatSquashLinear(a, b) for a, b in pairwise(sizes))
        self.activation = activation

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, dim)."""
        activation = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            z = activation(layer(t, z))
        out: Tensor = self.layers[-1](t, z)
        return out
