"""Kronecker factors A_ℓ(t) and B_ℓ(t) along the path, and what quadrature makes of them.

Everything is gathered as SNOpt gathers it: by collectors in one backward pass of the adjoint, each
with a rule of its own, so that all rules see the very same solve. Empirical curvature, float64.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.measure.snapshots import Snapshot
from experiments.measure.workloads import SmoothConvField
from experiments.models.fields import ConvField
from snopt import gauss_legendre, steps, uniform
from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator
from snopt.curvature.layers import SUPPORTED, Layer, input_factor, output_factor
from snopt.curvature.quadrature import Quadrature

FACTORS = ("A", "B")

Sums = Mapping[str, Any]
"""What one rule has gathered, by layer."""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        states: training steps of the first and the last snapshot.
        samples: images over which the factors are taken.
        times: points on the path, for the factors along it.
        gauss_legendre: numbers of nodes.
        uniform: numbers of nodes; 100 is the paper's.
        tolerances: of the solves whose steps the rule ``steps`` uses.
        pieces: the reference has 4 Gauss-Legendre nodes on each of so many equal pieces.
        tight: tolerance of the solve without error.
    """

    states: tuple[int, int] = (0, 100)
    samples: int = 32
    times: int = 41
    gauss_legendre: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    uniform: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 50, 100)
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    pieces: int = 128
    tight: float = 1e-7

    def facts(self) -> dict[str, Any]:
        """Return the settings for a provenance."""
        return asdict(self)


def points(times: Sequence[float]) -> Quadrature:
    """Return no quadrature: these points of the path, each with weight 1."""
    nodes = torch.tensor(times, dtype=torch.float64)
    return lambda a, b: (nodes, torch.ones_like(nodes))


def composite(pieces: int) -> Quadrature:
    """Return Gauss-Legendre with 4 nodes on each of equal pieces: a reference."""

    def rule(a: float, b: float) -> tuple[Tensor, Tensor]:
        edges = torch.linspace(a, b, pieces + 1, dtype=torch.float64).tolist()
        parts = [gauss_legendre(4)(*ends) for ends in itertools.pairwise(edges)]
        return torch.cat([nodes for nodes, _ in parts]), torch.cat([w for _, w in parts])

    return rule


class Counted(Accumulator):
    """Sums of factors that know of how many uses they are."""

    keeps = False

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.count = 0
        self.uses: list[tuple[Tensor, Tensor]] = []

    def add(self, layer: Layer, x: Tensor, g: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add one use; the arguments are those of the base class."""
        super().add(layer, x, g, *args, **kwargs)
        self.count += 1
        if self.keeps:
            self.uses.append((input_factor(layer, x)[0], output_factor(layer, g)[0]))

    def merge(self, other: Accumulator) -> None:
        """Add another one's sums."""
        super().merge(other)
        if isinstance(other, Counted):
            self.count += other.count
            self.uses += other.uses


class Kept(Counted):
    """The same, and A and B of every use by itself in ``uses``, in the order of the uses."""

    keeps = True


def smooth(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with tanh in place of the field's ReLU."""
    field = snapshot.net.ode.func
    if not isinstance(field, ConvField):
        raise ConfigError(f"the net's field must be a ConvField, got {type(field).__name__}")
    net = copy.deepcopy(snapshot.net)
    net.ode.func = SmoothConvField(copy.deepcopy(field), torch.tanh)
    return replace(snapshot, net=net, moment=None)


def gather(
    snapshot: Snapshot, rules: Mapping[str, Quadrature], rtol: float, kind: type[Counted]
) -> dict[str, Sums]:
    """Return what each rule's collector gathers in one backward pass, by rule and layer."""
    net = snapshot.solved(gradient="adjoint", rtol=rtol, atol=rtol)
    layers: dict[nn.Module, str] = {
        layer: name for name, layer in net.ode.func.named_modules() if isinstance(layer, SUPPORTED)
    }
    collectors = {
        name: Collector(layers, rule, scope="ode", accumulator=kind) for name, rule in rules.items()
    }
    for collector in collectors.values():
        collector.arm()
    try:
        loss = nn.functional.cross_entropy(net(snapshot.x), snapshot.y)
        loss.backward()
    finally:
        for collector in collectors.values():
            collector.disarm()
    return {name: dict(collector.sums) for name, collector in collectors.items()}


def along_path(snapshot: Snapshot, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield trace, largest eigenvalue and distance to the time mean of every factor at each time.

    The trace is relative to that of the time mean, the largest eigenvalue to the trace at that
    time, and the distance ‖M(t) - M̄‖ to ‖M̄‖, in the Frobenius norm.
    """
    t0, t1 = (float(x) for x in snapshot.t)
    inner = [(k + 0.5) / settings.times for k in range(settings.times)]
    times = tuple(t0 + (t1 - t0) * x for x in inner)
    kept = gather(snapshot.double(), {"points": points(times)}, settings.tight, Kept)["points"]
    for layer, sums in kept.items():
        for factor, matrices in zip(FACTORS, zip(*sums.uses, strict=True), strict=True):
            M = torch.stack(matrices).flip(0)  # the backward pass meets the last time first
            mean = M.mean(dim=0)
            for t, one in zip(times, M, strict=True):
                trace = float(one.trace())
                yield {
                    "seed": snapshot.seed,
                    "step": snapshot.step,
                    "layer": layer,
                    "factor": factor,
                    "t": t,
                    "trace": trace / float(mean.trace()),
                    "top": float(torch.linalg.eigvalsh(one)[-1]) / trace,
                    "distance": float((one - mean).norm() / mean.norm()),
                }


def node_errors(snapshot: Snapshot, field: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield each rule's relative error in A and B by number of nodes, the worst of all layers.

    Args:
        snapshot: the net; in float64.
        field: name of the field, for the rows.
        settings: rules and tolerances.

    The rules ``gauss_legendre`` and ``uniform`` are on the solve at the configured tolerance,
    ``steps`` on one solve for each tolerance; each is compared with many nodes on the same solve.
    The rule ``solve`` is that reference against the tight solve's: the error of the solve.
    """

    def rows(
        rule: str, n: int | None, tolerance: float, found: Sums, true: Sums
    ) -> Iterator[dict[str, Any]]:
        facts = {"seed": snapshot.seed, "step": snapshot.step, "field": field}
        named = {"rule": rule, "n": n, "tolerance": tolerance}
        for factor in FACTORS:
            yield {**facts, **named, "factor": factor, "error": _worst(found, true, factor)}

    reference = composite(settings.pieces)
    own = float(snapshot.net.ode.solver.rtol)
    length = float((snapshot.t[-1] - snapshot.t[0]).abs())
    rules: dict[str, Quadrature] = {"reference": reference}
    rules |= {f"gauss_legendre {n}": gauss_legendre(n) for n in settings.gauss_legendre}
    rules |= {f"uniform {n}": uniform(1.0 / n * length) for n in settings.uniform}
    gathered = gather(snapshot, rules, own, Counted)
    at_own = gathered.pop("reference")
    for name, sums in gathered.items():
        rule, n = name.split()
        yield from rows(rule, int(n), own, sums, at_own)
    tight = gather(snapshot, {"reference": reference}, settings.tight, Counted)["reference"]
    yield from rows("solve", None, own, at_own, tight)
    for tolerance in settings.tolerances:
        gathered = gather(snapshot, {"reference": reference, "steps": steps()}, tolerance, Counted)
        found = gathered["steps"]
        n_steps = max(sums.count for sums in found.values())
        yield from rows("steps", n_steps, tolerance, found, gathered["reference"])


def _worst(found: Sums, reference: Sums, factor: str) -> float:
    errors = []
    for layer, sums in reference.items():
        M, true = getattr(found[layer].factors(), factor), getattr(sums.factors(), factor)
        errors.append(float((M - true).norm() / true.norm()))
    return max(errors)
