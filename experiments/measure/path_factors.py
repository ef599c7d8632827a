"""Kronecker factors A_ℓ(t) and B_ℓ(t) along the path, and what quadrature makes of them.

Collectors gather them as SNOpt does: in one backward pass of the adjoint, one collector for each
rule, so that all rules see the very same solve. Empirical curvature, float64.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from snopt.curvature.layers import SUPPORTED
from snopt.curvature.quadrature import Quadrature

FACTORS = ("A", "B")

Sums = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    states: tuple[int, int] = (0, 100)  # training steps of the first and the last snapshot
    samples: int = 32  # images over which the factors are taken
    times: int = 41  # points on the path, for the factors along it
    gauss_legendre: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # nodes
    uniform: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 50, 100)  # nodes; paper: 100
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)  # of the solves of the rule ``steps``
    pieces: int = 128  # of the reference, each with 4 Gauss-Legendre nodes
    tight: float = 1e-7  # tolerance of the solve without error


def point(t: float) -> Quadrature:
    """Return no quadrature: one point of the path, with weight 1."""
    node = torch.tensor([t], dtype=torch.float64)
    return lambda a, b: (node, torch.ones_like(node))


def composite(pieces: int) -> Quadrature:
    """Return Gauss-Legendre with 4 nodes on each of equal pieces: a reference."""

    def rule(a: float, b: float) -> tuple[Tensor, Tensor]:
        edges = torch.linspace(a, b, pieces + 1, dtype=torch.float64).tolist()
        parts = [gauss_legendre(4)(*ends) for ends in itertools.pairwise(edges)]
        return torch.cat([nodes for nodes, _ in parts]), torch.cat([w for _, w in parts])

    return rule


class Counted(Accumulator):
    """Sums of factors with the number of their uses."""

    count: int = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one use."""
        super().add(*args, **kwargs)
        self.count += 1

    def merge(self, other: Any) -> None:
        """Add another one's sums."""
        super().merge(other)
        self.count += other.count


def smooth(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with tanh in place of the field's ReLU."""
    field = snapshot.net.ode.func
    if not isinstance(field, ConvField):
        raise ConfigError(f"the net's field must be a ConvField, got {type(field).__name__}")
    net = copy.deepcopy(snapshot.net)
    net.ode.func = SmoothConvField(copy.deepcopy(field), torch.tanh)
    return replace(snapshot, net=net, moment=None)


def gather(snapshot: Snapshot, rules: Mapping[str, Quadrature], rtol: float) -> dict[str, Sums]:
    """Return what each rule's collector gathers in one backward pass, by rule and layer."""
    net = snapshot.solved(gradient="adjoint", rtol=rtol, atol=rtol)
    layers: dict[nn.Module, str] = {
        layer: name for name, layer in net.ode.func.named_modules() if isinstance(layer, SUPPORTED)
    }
    collectors = {
        name: Collector(layers, rule, scope="ode", accumulator=Counted)
        for name, rule in rules.items()
    }
    for collector in collectors.values():
        collector.arm()
    try:
        loss = nn.functional.cross_entropy(net(snapshot.x), snapshot.y)
        loss.backward()
    finally:
        for collector in collectors.values():
            collector.disarm()
    return {name: collector.sums for name, collector in collectors.items()}


def along_path(snapshot: Snapshot, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield trace, largest eigenvalue and distance to the time mean of every factor at each time.

    The trace is relative to that of the time mean, the largest eigenvalue to the trace at that
    time, and the distance ‖M(t) - M̄‖ to ‖M̄‖, in the Frobenius norm.
    """
    t0, t1 = (float(x) for x in snapshot.t)
    times = [t0 + (t1 - t0) * (k + 0.5) / settings.times for k in range(settings.times)]
    found = gather(snapshot.double(), {str(t): point(t) for t in times}, settings.tight)
    by_time = [{layer: sums.factors() for layer, sums in rule.items()} for rule in found.values()]
    for layer in by_time[0]:
        for factor in FACTORS:
            M = torch.stack([getattr(factors[layer], factor)[0] for factors in by_time])
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

    The rules ``gauss_legendre`` and ``uniform`` are on the solve at the configured tolerance,
    ``steps`` on one solve for each tolerance; each is compared with many nodes on the same solve.
    The rule ``solve`` is that reference against the tight solve's: the error of the solve. The
    snapshot is in float64, ``field`` a name for the rows.
    """

    def rows(
        rule: str, n: int | None, tolerance: float, found: Sums, true: Sums
    ) -> Iterator[dict[str, Any]]:
        facts = {"seed": snapshot.seed, "step": snapshot.step, "field": field}
        named = {"rule": rule, "n": n, "tolerance": tolerance}
        for factor in FACTORS:
            error = 0.0
            for layer, sums in true.items():
                M, exact = (getattr(one.factors(), factor) for one in (found[layer], sums))
                error = max(error, float((M - exact).norm() / exact.norm()))
            yield {**facts, **named, "factor": factor, "error": error}

    reference = composite(settings.pieces)
    own = float(snapshot.net.ode.solver.rtol)
    length = float((snapshot.t[-1] - snapshot.t[0]).abs())
    rules: dict[str, Quadrature] = {"reference": reference}
    rules |= {f"gauss_legendre {n}": gauss_legendre(n) for n in settings.gauss_legendre}
    rules |= {f"uniform {n}": uniform(1.0 / n * length) for n in settings.uniform}
    gathered = gather(snapshot, rules, own)
    at_own = gathered.pop("reference")
    for name, sums in gathered.items():
        rule, n = name.split()
        yield from rows(rule, int(n), own, sums, at_own)
    tight = gather(snapshot, {"reference": reference}, settings.tight)["reference"]
    yield from rows("solve", None, own, at_own, tight)
    for tolerance in settings.tolerances:
        gathered = gather(snapshot, {"reference": reference, "steps": steps()}, tolerance)
        found = gathered["steps"]
        n_steps = max(sums.count for sums in found.values())
        yield from rows("steps", n_steps, tolerance, found, gathered["reference"])
