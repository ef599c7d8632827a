"""Continuous normalizing flows: exact log-densities and samples from an ODE (Chen et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.data.splits import DataInfo
from experiments.models.augmented import AugmentedField
from experiments.models.checks import require_positive, require_task, require_whole
from experiments.models.concat_squash import ConcatSquashField
from experiments.models.hyper_field import HyperField
from experiments.models.solver import SolverSettings
from experiments.models.trace import check_trace, draw_noise
from snopt import ODEBlock


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
        check_trace(trace)
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
        """Return log p(x) in nats; with a trace estimate, an unbiased estimate of it.

        Args:
            x: points, shape (batch, dim).
            trace: overrides the model's own choice.
            generator: source of the trace's noise; None means torch's global generator.

        Returns:
            Log-densities, shape (batch,).

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
            noise = draw_noise(kind, z, generator)
            z, delta = self._solve(flow, (z, delta), noise=noise)
        return standard_normal_log_prob(z) - delta[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`log_prob` of ``x``."""
        return self.log_prob(x)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points by integrating from 0 up to t1; no gradient.

        Args:
            n: number of points.
            generator: source of the base points; None means torch's global generator.

        Returns:
            Points, shape (n, dim), with the dtype and on the device of the parameters.
        """
        like = next(self.parameters())
        z = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device=like.device)
        return self.path(z, [1.0])[0]

    @torch.no_grad()
    def path(self, z: Tensor, fractions: Sequence[float]) -> list[Tensor]:
        """Move base points towards the data and return where they are on the way; no gradient.

        Args:
            z: points at time 0, shape (batch, dim).
            fractions: parts of the whole time, of all flows together, from 0 to 1, not decreasing.

        Returns:
            For each fraction the points, shape (batch, dim).

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
                z, _ = self._solve(flows[k], (z, nothing), times=times, density=False)
                now = stop
            found.append(z)
        return found

    @staticmethod
    def _solve(
        flow: nn.Module,
        state: tuple[Tensor, Tensor],
        *,
        times: tuple[float, float] | None = None,
        noise: Tensor | None = None,
        density: bool = True,
    ) -> tuple[Tensor, Tensor]:
        block = cast(ODEBlock, flow)
        field = cast(AugmentedField, block.func).field
        # A fresh wrapper a solve: a backward pass still to come keeps the noise of its own solve.
        block.func = AugmentedField(field, noise=noise, density=density)
        return cast("tuple[Tensor, Tensor]", block(state, t=times))


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
        """Build the flow for the points of a data set.

        Args:
            info: data set; ``input_shape`` is (dim,).
            solver: settings of the ODE block.
            width: terms of the field, see :class:`HyperField`.
            hidden: width of the hyper-network.
            trace: see :class:`CNF`; the exact one has a closed form here.
            t1: integration time.

        Raises:
            ConfigError: if the data set is not one of points, or an argument is out of range.
        """
        require_whole("HyperCNF", width=width, hidden=hidden)
        dim = point_dim("HyperCNF", info)
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
        """Build the flow for the points of a data set.

        Args:
            info: data set; ``input_shape`` is (dim,).
            solver: settings of the ODE blocks.
            width: size of the inner layers.
            layers: concat-squash layers of each field.
            blocks: number of flows that follow one another.
            activation: ``"softplus"`` or ``"tanh"``.
            trace: see :class:`CNF`.
            t1: integration time of each flow.

        Raises:
            ConfigError: if the data set is not one of points, or an argument is out of range.
        """
        require_whole("ConcatSquashCNF", width=width, layers=layers, blocks=blocks)
        dim = point_dim("ConcatSquashCNF", info)
        fields = [
            ConcatSquashField(dim, width=width, layers=layers, activation=activation)
            for _ in range(blocks)
        ]
        super().__init__(fields, dim, solver, trace=trace, t1=t1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) in nats, shape (batch,), for ``z`` of shape (batch, dim)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)


def point_dim(model: str, info: DataInfo) -> int:
    """Return the dimension of the data set's points; raise ConfigError if it has none."""
    require_task(model, info, "cnf")
    if len(info.input_shape) != 1:
        raise ConfigError(
            f"{model} needs input_shape (dim,), but data set '{info.name}' has "
            f"{tuple(info.input_shape)}"
        )
    return info.input_shape[0]
