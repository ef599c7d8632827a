"""What N ranks cost, from what one costs and from what they have to send.

With N ranks of b rows each, P parameters, the factors' entries F = Σ (d_A² + d_B²) and those of
their bases E = Σ (d_A² + d_A + d_B² + d_B), in float32 over links of β bytes and α seconds:

    step(N)     = C + ring(4 P)
    refresh(N)  = K + ring(4 F) + D ρ(N) + relay(4 E)
    ring(x)     = 2 (N - 1) (x / (N β) + α)        sum of all ranks by a ring
    relay(x)    = (N - 1) (x / (N β) + α)          every rank sends its part to all others

C is the ordinary step of one rank, K what a refresh adds to it without the decompositions, D the
seconds of those, and ρ(N) the largest rank's share of them: at least that of the largest matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snopt.precondition.ranks import assign

BYTES = 4


@dataclass(frozen=True)
class Volume:
    """What a model makes its ranks send, in bytes, and how its decompositions divide.

    Attributes:
        gradients: a step's, 4 P.
        factors: a refresh's, 4 F.
        bases: a refresh's, 4 E.
        costs: d³ of each matrix.
    """

    gradients: int
    factors: int
    bases: int
    costs: tuple[float, ...]

    def largest_share(self, ranks: int) -> float:
        """Return ρ(N), in (0, 1]."""
        owners = assign(self.costs, ranks)
        loads = [0.0] * ranks
        for cost, owner in zip(self.costs, owners, strict=True):
            loads[owner] += cost
        return max(loads) / sum(loads)


@dataclass(frozen=True)
class Link:
    """What connects the ranks.

    Attributes:
        name: in words.
        bandwidth: bytes per second.
        latency: seconds of one message.
    """

    name: str
    bandwidth: float
    latency: float

    def ring(self, size: float, ranks: int) -> float:
        """Return the seconds of a sum of ``size`` bytes over all ranks."""
        return 2 * self.relay(size, ranks)

    def relay(self, size: float, ranks: int) -> float:
        """Return the seconds in which every rank gives its part of ``size`` bytes to all."""
        return (ranks - 1) * (size / (ranks * self.bandwidth) + self.latency)


LINKS = (
    Link("1 Gbit/s", 1e9 / 8, 50e-6),
    Link("10 Gbit/s", 1e10 / 8, 30e-6),
    Link("100 Gbit/s", 1e11 / 8, 5e-6),
)


@dataclass(frozen=True)
class Compute:
    """Seconds of one rank with its own rows.

    Attributes:
        step: C, an ordinary step.
        collect: K, what a refresh adds without the decompositions.
        decompose: D, the decompositions.
    """

    step: float
    collect: float
    decompose: float


def volume(parameters: int, shapes: Sequence[tuple[int, int, int]]) -> Volume:
    """Return what is sent for a model.

    Args:
        parameters: P.
        shapes: (groups, out / groups, features) of every preconditioned layer.
    """
    sides = [(groups, d) for groups, *both in shapes for d in both]
    return Volume(
        gradients=BYTES * parameters,
        factors=BYTES * sum(g * d * d for g, d in sides),
        bases=BYTES * sum(g * d * (d + 1) for g, d in sides),
        costs=tuple(float(g * d**3) for g, d in sides),
    )


def efficiency(
    compute: Compute, sent: Volume, link: Link, ranks: int, update_freq: int = 100
) -> float:
    """Return the time of one rank over that of N with as many rows each; 1 is perfect.

    Args:
        compute: seconds of one rank.
        sent: what the model makes ranks send.
        link: between the ranks.
        ranks: N.
        update_freq: steps between two refreshes.
    """
    alone = compute.step + (compute.collect + compute.decompose) / update_freq
    refresh = (
        compute.collect
        + link.ring(sent.factors, ranks)
        + compute.decompose * sent.largest_share(ranks)
        + link.relay(sent.bases, ranks)
    )
    together = compute.step + link.ring(sent.gradients, ranks) + refresh / update_freq
    return alone / together
