"""Which evaluations are a solver's, what is recorded of them, and which collectors want it.

Solves know of collectors through this module alone: :mod:`snopt.curvature.collector` says what a
collector does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from snopt.curvature.collector import Collector
    from snopt.curvature.factors import Sums


@dataclass
class Use:
    """One use of a layer in the evaluation at a node, as one collector's hook saw it."""

    collector: Collector
    layer: nn.Module
    x: Tensor
    output: GradientEdge
    differentiated: Differentiated | None = None


class Differentiated:
    """Hook at an output that learns whether the field itself takes a gradient through it."""

    # Apart from the use, which refers to the graph: the two would keep each other alive.
    yes = False

    def __call__(self, _: object) -> None:
        """Take note of a gradient through the output."""
        self.yes |= torch.is_grad_enabled()


class Recording:
    """Uses of layers seen in one evaluation of a field, for the collectors that want them.

    The code that differentiates the field fills in ``gradients``, one at each use's output.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        """Record for these collectors only; for none, nothing is recorded."""
        self.collectors = frozenset(collectors)
        self.uses: list[Use] = []
        self.gradients: Sequence[Tensor | None] = []
        self._checked: dict[tuple[Collector, str], list[Use]] = {}
        self._inner: list[Any] = []

    def pass_through(self, func: object) -> None:
        """Have autograd go through a solve of ``func`` within the evaluation: a weight needs it."""
        for layer in func.modules() if isinstance(func, nn.Module) else ():
            watched = any(layer in collector.layers for collector in self.collectors)
            if watched and layer.weight.requires_grad:
                self._inner.append(layer.weight)
                return

    @property
    def edges(self) -> list[Any]:
        """Where autograd finds the gradients wanted: at each use's output, of weights to check."""
        self._checked = {}
        for use in self.uses:
            key = use.collector.layers[use.layer]
            if use.collector.wants_check(key):
                self._checked.setdefault((use.collector, key), []).append(use)
        weights = [use[0].layer.weight for use in self._checked.values()]
        return [*(use.output for use in self.uses), *weights, *self._inner]

    def give(self, weights: Mapping[Collector, float], scale: float = 1.0) -> None:
        """Hand every use, its gradient times ``scale``, to its collector if that has a weight."""
        with torch.no_grad():
            self._check(weights)
            for use, g in zip(self.uses, self.gradients, strict=False):
                if g is not None and use.collector in weights:
                    g = g if scale == 1 else g * scale
                    use.collector.add(use.layer, use.x, g, weights[use.collector])

    def _check(self, weights: Mapping[Collector, float]) -> None:
        gradients = {id(use): g for use, g in zip(self.uses, self.gradients, strict=False)}
        found = zip(self._checked.items(), self.gradients[len(self.uses) :], strict=False)
        for ((collector, key), uses), gradient in found:
            if collector in weights and collector.wants_check(key):
                seen = [(use, gradients[id(use)]) for use in uses]
                collector.check(key, seen, gradient)


@dataclass(frozen=True)
class _Node:
    """A point of the path of a solve, for what is gathered in solves within its evaluation."""

    task: int  # the backward pass of the outermost solve
    weights: Mapping[Collector, float]


class _Where(threading.local):
    """What this thread is doing. Backward passes on a GPU run in another thread."""

    solve_depth: int = 0
    recording: Recording | None = None
    node: _Node | None = None  # the one whose evaluation is being differentiated
    collects: bool = False  # whether solves within that evaluation are at that node


where = _Where()

armed: weakref.WeakSet[Collector] = weakref.WeakSet()

watching: weakref.WeakSet[Collector] = weakref.WeakSet()  # armed ones and those that count


class inside_solve:  # noqa: N801 - used as a function
    """Mark evaluations of the field as the solver's: uses of a layer only for a recording."""

    # A class, not a generator: it is entered at every evaluation of a small field.
    __slots__ = ("before", "collects", "recording")

    def __init__(self, recording: Recording | None = None) -> None:
        """Take effect on entering."""
        self.recording = recording

    def __enter__(self) -> None:
        """Mark this thread; without a recording, one outside is masked too."""
        self.before, self.collects = where.recording, where.collects
        where.recording, where.collects = self.recording, False
        where.solve_depth += 1

    def __exit__(self, *_: object) -> None:
        """Restore what was before."""
        where.recording, where.collects = self.before, self.collects
        where.solve_depth -= 1


def inside_a_solve() -> bool:
    """Return whether this is an evaluation of a solver's."""
    return where.solve_depth > 0


@contextmanager
def at_node(weights: Mapping[Collector, float]) -> Iterator[None]:
    """Differentiate the evaluation at a node inside, with the collectors' weights there.

    What is gathered in solves within the evaluation is an integral over both paths (eq. 8).
    """
    node, collects = where.node, where.collects
    if node is not None:
        weights = {c: weight * node.weights[c] for c, weight in weights.items()}
    where.node, where.collects = _Node(current_task(), weights), True
    try:
        yield
    finally:
        where.node, where.collects = node, collects


def current_task() -> int:
    """Return the pass that what is gathered now belongs to."""
    return backward_pass() if where.node is None else where.node.task


def backward_pass() -> int:
    """Return a number that identifies the backward pass now running, -1 outside one."""
    # torch has no public name for it; torch.utils.checkpoint relies on the same function.
    return int(torch._C._current_graph_task_id())


@contextmanager
def counted_solve(func: object, shapes: object) -> Iterator[Callable[[Sequence[Tensor]], None]]:
    """Count the rows that layers see along the solve of ``func`` made inside.

    Args:
        func: the vector field.
        shapes: those of its state.

    Yields:
        A function to be called with the solve's result, where the passes through it are seen.
    """
    if where.recording is not None:
        where.recording.pass_through(func)
    if not (watching and torch.is_grad_enabled() and where.solve_depth == 0):
        yield lambda _: None
        return
    with ExitStack() as stack:
        found = [(c, stack.enter_context(c.counting(func, shapes))) for c in list(watching)]

        def wait(outputs: Sequence[Tensor]) -> None:
            for collector, rows in found:
                if rows:
                    collector.wait(rows, outputs)

        yield wait


def merge_into(sums: dict[str, Sums], key: str, more: Sums) -> None:
    """Add what was gathered for a key to the sums that there are."""
    if key in sums:
        sums[key].merge(more)
    else:
        sums[key] = more


@contextmanager
def all_or_nothing(collectors: Sequence[Collector]) -> Iterator[None]:
    """Keep what is gathered inside only if nothing fails: half a path is no integral."""
    passes = [collector.pass_of(current_task()) for collector in collectors]
    before = [one.sums for one in passes]
    for one in passes:
        one.sums = {}
    try:
        yield
    except BaseException:
        for one, sums in zip(passes, before, strict=True):
            one.sums = sums
        raise
    for one, sums in zip(passes, before, strict=True):
        for key, gathered in one.sums.items():
            merge_into(sums, key, gathered)
        one.sums = sums


def armed_collectors(
    func: object, *, nested: bool = False, paused: bool = False
) -> list[Collector]:
    """Return the armed collectors that watch a layer of ``func`` (any layer if it is no module).

    ``nested``: for a solve within another's evaluations. It is at a node of the outer path, which
    the collectors have a weight for, or it belongs to a stage and there are none.

    ``paused``: those that are paused as well, since a forward pass does not know yet which backward
    passes they will want to see.
    """
    if where.collects and where.node is not None:
        found: Iterable[Collector] = where.node.weights
    elif paused and where.recording is not None:  # an evaluation that may be at a node
        found = where.recording.collectors
    elif nested or where.solve_depth > 0:
        return []
    else:
        found = armed
    awake = [collector for collector in found if paused or not collector.paused]
    if not awake or not isinstance(func, nn.Module):
        return awake
    modules = list(func.modules())
    return [c for c in awake if any(m in c.layers for m in modules)]


def node_collectors(func: object, *, nested: bool = False, paused: bool = False) -> list[Collector]:
    """Return those of :func:`armed_collectors` that want nodes placed on the path."""
    found = armed_collectors(func, nested=nested, paused=paused)
    return [collector for collector in found if not collector.discrete]
