"""Who watches a backward solve: where along the path curvature is collected, and how.

A collector's rule says at which points of the path (z, a) it wants to see the uses of layers: at
nodes of a quadrature, at the ends of the solver's steps, or at the stages that the gradient is made
of. The solve tells its observers of every step (``on_step``); it knows nothing else about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from snopt.curvature.quadrature import Evaluations, Nodes, StepEnds
from snopt.curvature.recording import Recording, at_node, inside_solve
from snopt.solve.field import leaves_no_trace, parts_of

if TYPE_CHECKING:
    from snopt.curvature.collector import Collector
    from snopt.solve.runge_kutta import Step
    from snopt.solve.solver import Problem
    from snopt.solve.tableau import Tableau

# Collectors with the weight of a point of the path.
Takers: TypeAlias = "Sequence[tuple[Collector, float]]"


class Observer:
    """Watches the accepted steps of a backward solve on the engine."""

    def begin(self, t1: float, t0: float) -> None:
        """Be told that the solve goes on from output time ``t1`` back to ``t0``."""

    def records(self, stage: int, *, counts: bool) -> Sequence[Collector]:
        """Return who wants the uses of layers at a stage; it ``counts`` if Q_u takes a product."""
        return ()

    def on_step(self, step: Step, *, is_last: bool) -> None:
        """Be told of an accepted step over the flat state (z, a), maybe the last of its interval.

        ``step.stages.kept`` has what was recorded at its stages.
        """


@dataclass
class AtNodes(Observer):
    """Nodes of quadrature rules, by dense output: the steps are those of a solve without nodes."""

    problem: Problem
    collectors: Sequence[Collector]
    _ahead: list[tuple[float, Takers]] = field(default_factory=list)

    def plan(self, t1: float, t0: float) -> list[tuple[float, Takers]]:
        """Return the nodes from ``t1`` to ``t0`` in order, each with its takers and weights."""
        takers: dict[float, list[tuple[Collector, float]]] = {}
        for collector in self.collectors:
            nodes, weights = cast("Nodes", collector.quadrature)(t1, t0)
            for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
                takers.setdefault(node, []).append((collector, weight))
        return sorted(takers.items(), key=lambda item: item[0], reverse=t0 < t1)

    def begin(self, t1: float, t0: float) -> None:
        """Place the nodes of the interval."""
        self._ahead = self.plan(t1, t0)

    def on_step(self, step: Step, *, is_last: bool) -> None:
        """Collect at the nodes that lie in this step."""
        sign, layout = (1.0 if step.t1 > step.t0 else -1.0), self.problem.field.layout.twice()
        # On a grid the last step's interpolant needs an evaluation that the solve does not.
        extra = is_last and not step.stages.tableau.adaptive
        found = False
        while self._ahead and sign * (self._ahead[0][0] - step.t1) <= 0:
            node, takers = self._ahead.pop(0)
            trace = leaves_no_trace(self.problem.field.func, step.y0.device)
            with trace if extra else nullcontext():
                state = step.interpolate(node)
            self.on_node(_time(node, state), layout.split(state), takers)
            found = True
        if found and extra:
            self.problem.nfe.curvature += 1
            self.problem.nfe.backward -= 1

    def on_node(self, t: Tensor, parts: Sequence[Tensor], takers: Takers) -> None:
        """Evaluate the field at a node, given by the parts of z and a, and collect."""
        _collect(self.problem, t, parts, takers)


class AtStepEnds(Observer):
    """The trapezoid rule over the ends of accepted steps, from the method's own evaluations there.

    A method that takes no stage at an end is evaluated there once more.
    """

    def __init__(self, problem: Problem, collectors: Sequence[Collector], tableau: Tableau) -> None:
        """Look up which stages are F at an end, exactly."""
        self.problem = problem
        self.collectors = collectors
        self._starts_on_a_stage = tableau.ends_on_a_stage or not tableau.adaptive
        self._ends_on_a_stage = tableau.ends_on_a_stage
        self._last_stage = tableau.stages - 1
        self._owed = 0.0  # the weight that the end of the last step still has to get

    def begin(self, t1: float, t0: float) -> None:
        """Owe nothing."""
        self._owed = 0.0

    def records(self, stage: int, *, counts: bool) -> Sequence[Collector]:
        """Return all of them for a stage at an end."""
        at_start = stage == 0 and self._starts_on_a_stage
        at_end = stage == self._last_stage and self._ends_on_a_stage
        return self.collectors if at_start or at_end else ()

    def on_step(self, step: Step, *, is_last: bool) -> None:
        """Add half of the step at its start, and at its end unless the next one does."""
        half = abs(step.t1 - step.t0) / 2
        weight, self._owed = self._owed + half, half
        if self._starts_on_a_stage:
            step.stages.kept[0].give(dict.fromkeys(self.collectors, weight))
        else:
            self._collect(step.t0, step.y0, weight)
        if is_last and self._ends_on_a_stage:
            step.stages.kept[-1].give(dict.fromkeys(self.collectors, half))
        elif is_last:
            self._collect(step.t1, step.y1, half)

    def _collect(self, t: float, y: Tensor, weight: float) -> None:
        parts = self.problem.field.layout.twice().split(y)
        _collect(self.problem, _time(t, y), parts, [(c, weight) for c in self.collectors])


@dataclass
class AtStages(Observer):
    """The stages that the gradient is made of, each a use by itself.

    Stage i of a step dt has the weight dt b_i in the sum that is Q_u, so that dt b_i (∂F/∂h)ᵀ a is
    the gradient at its output.
    """

    collectors: Sequence[Collector]

    def records(self, stage: int, *, counts: bool) -> Sequence[Collector]:
        """Return all of them for a stage that counts."""
        return self.collectors if counts else ()

    def on_step(self, step: Step, *, is_last: bool) -> None:
        """Give the recorded uses with the weight that their stage has in the gradient."""
        dt = step.t0 - step.t1  # the solve runs from the end of the path to its start
        for weight, recording in zip(step.stages.tableau.b, step.stages.kept, strict=True):
            if weight != 0:
                recording.give(dict.fromkeys(self.collectors, 1.0), scale=dt * weight)


def observers_on_engine(
    problem: Problem, collectors: Sequence[Collector], tableau: Tableau
) -> list[Observer]:
    """Return the observers that collectors need, none without collectors."""
    kinds: dict[str, Callable[[list[Collector]], Observer]] = {
        "nodes": lambda found: AtNodes(problem, found),
        "step ends": lambda found: AtStepEnds(problem, found, tableau),
        "evaluations": AtStages,
    }
    at = {kind: [c for c in collectors if c.looks_at == kind] for kind in kinds}
    return [make(at[kind]) for kind, make in kinds.items() if at[kind]]


def observer_on_torchdiffeq(problem: Problem, collectors: Sequence[Collector]) -> AtNodes | None:
    """Return the observer of nodes, None without collectors.

    Raises:
        ValueError: if a collector wants steps or stages, which torchdiffeq does not hand over.
    """
    for collector in collectors:
        if isinstance(collector.quadrature, (StepEnds, Evaluations)):
            raise ValueError(collector.quadrature.needs_engine)
    return AtNodes(problem, collectors) if collectors else None


def _time(t: float, like: Tensor) -> Tensor:
    return torch.full((), t, dtype=like.dtype, device=like.device)


def _collect(problem: Problem, t: Tensor, parts: Sequence[Tensor], takers: Takers) -> None:
    """Evaluate the field once at (t, z) and give every watched layer's (x, g) to the takers.

    g_ℓ = (∂F/∂h_ℓ)ᵀ a is the total derivative at the layer's output (for a continuous normalizing
    flow: trace included), taken with respect to the node of the graph at which the layer produced
    it, so that in-place activations behind it do no harm. ``parts`` are those of z, then of a.
    """
    problem.nfe.curvature += 1
    func, n = problem.field.func, len(parts) // 2
    recording = Recording([collector for collector, _ in takers])
    trace = leaves_no_trace(func, parts[0].device)
    with torch.enable_grad(), trace, inside_solve(recording):
        z = tuple(part.detach().requires_grad_(True) for part in parts[:n])
        outputs = parts_of(func(t, problem.field.pack(z)))
        pairs = [(o, adj) for o, adj in zip(outputs, parts[n:], strict=True) if o.requires_grad]
        edges = recording.edges
        if not edges or not pairs:
            return
        reached, adjoints = zip(*pairs, strict=True)
        with at_node(dict(takers)):
            recording.gradients = torch.autograd.grad(reached, edges, adjoints, allow_unused=True)
        del outputs, pairs, reached  # before the factors need room of their own
    recording.give(dict(takers))
