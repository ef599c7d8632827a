"""Fields and oracles shared by the library's tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator
from snopt.curvature.layers import SUPPORTED


class TanhField(nn.Module):
    """A smooth, time-dependent field of two linear layers."""

    def __init__(self, dim: int = 3, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(dim + 1, width)
        self.second = nn.Linear(width, dim)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = t.expand(*z.shape[:-1], 1)
        return self.second(torch.tanh(self.first(torch.cat([z, time], dim=-1))))


class PairField(nn.Module):
    """The tanh field with a second component that depends on both."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        self.inner = TanhField(dim)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, c = state
        dz = self.inner(t, z)
        return dz, (z * dz).sum(-1) - 0.3 * c


def initial_state(kind: str, batch: int = 4, dim: int = 3) -> Tensor | tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    if kind == "tensor":
        return z.requires_grad_()
    c = torch.randn(batch, generator=generator, dtype=torch.float64)
    return z.requires_grad_(), c.requires_grad_()


def make_field(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return (TanhField() if kind == "tensor" else PairField()).double()


def times_for(direction: str, count: int) -> Tensor:
    t = torch.linspace(0.2, 1.3, count, dtype=torch.float64)
    return t if direction == "forward" else t.flip(0)


def parts_of(state: object) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)  # type: ignore[return-value]


def scalar_loss(solution: object, *, every_time: bool = True) -> Tensor:
    """Return a loss that reads every output time (or the last) of every component."""
    terms = []
    for k, part in enumerate(parts_of(solution), start=1):
        used = part[1:] if every_time else part[-1:]
        steps = torch.arange(1, used.shape[0] + 1, dtype=part.dtype)
        shape = (-1, *[1] * (used.dim() - 1))
        terms.append((steps.reshape(shape) * (used + 0.1 * k) ** 2).sum())
    return torch.stack(terms).sum()


def assert_close(actual: Tensor, expected: Tensor, *, rtol: float, atol: float = 0.0) -> None:
    """Compare two tensors and, where they differ, show the worst entry."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = expected.abs().max()
    error = (actual - expected).abs()
    worst = int(error.argmax())
    assert bool((error <= atol + rtol * scale).all()), (
        f"entry {worst}: {actual.flatten()[worst]:.10g} instead of"
        f" {expected.flatten()[worst]:.10g} (largest {scale:.3g})"
    )


def watch(model, quadrature, scope="all", accumulator=Accumulator):
    """Return an armed collector over all linear layers and convolutions of ``model``."""
    layers = {m: name for name, m in model.named_modules() if isinstance(m, SUPPORTED)}
    collector = Collector(layers, quadrature, accumulator, scope)
    collector.arm()
    return collector
