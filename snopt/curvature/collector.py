"""Collecting every supported layer's Kronecker factors (docs/method.md, eq. 8) in a backward pass.

A :class:`Collector` is *armed* for the steps at which factors are wanted. While it is armed,

- a layer used outside an ODE is seen by a forward hook, whose tensor hook on the output gives
  (x, g) once in the backward pass: one node of weight 1;
- inside an ODE solve the hooks stay silent: the solver evaluates the field at stages, probes and
  rejected steps, none of which is a use of the layer. Instead the backward solve's observers
  (:mod:`snopt.solve.observers`) give every layer's (x, g) at each quadrature node, with its weight.

A collector may ask for the solver's evaluations instead
(:class:`snopt.curvature.quadrature.Evaluations`). It then sees those that autograd differentiates
through like any use outside an ODE, and gets the others from the solve that makes a gradient of
them.

Disarmed, no hook is registered at all. Nothing here touches a gradient.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

if TYPE_CHECKING:
    from snopt.curvature.factors import Sums
    from snopt.curvature.quadrature import Quadrature


@dataclass(frozen=True)
class _Use:
    """One use of a layer in the evaluation at a node, as one collector's hook saw it."""

    collector: Collector
    layer: nn.Module
    x: Tensor
    output: GradientEdge


class Recording:
    """Uses of layers seen in one evaluation of a field, for the collectors that want them.

    The code that differentiates the field fills in ``gradients``, one at each use's output.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        """Record for these collectors only; for none, nothing is recorded."""
        self.collectors = frozenset(collectors)
        self.uses: list[_Use] = []
        self.gradients: Sequence[Tensor | None] = []

    @property
    def edges(self) -> list[GradientEdge]:
        """Where autograd finds the gradient at each use's output."""
        return [use.output for use in self.uses]

    def give(self, weights: Mapping[Collector, float], scale: float = 1.0) -> None:
        """Hand every use, its gradient times ``scale``, to its collector if that has a weight."""
        task = backward_pass()
        with torch.no_grad():
            for use, g in zip(self.uses, self.gradients, strict=True):
                if g is not None and use.collector in weights:
                    g = g if scale == 1 else g * scale
                    use.collector.add(use.layer, use.x, g, weights[use.collector], task)


class _Where(threading.local):
    """What this thread is doing. Backward passes on a GPU run in another thread."""

    solve_depth: int = 0
    recording: Recording | None = None


_where = _Where()

_armed: weakref.WeakSet[Collector] = weakref.WeakSet()


class inside_solve:  # noqa: N801 - used as a function
    """Mark evaluations of the field as the solver's: uses of a layer only for a recording."""

    # A class, not a generator: it is entered at every evaluation of a small field.
    __slots__ = ("before", "recording")

    def __init__(self, recording: Recording | None = None) -> None:
        """Take effect on entering."""
        self.recording = recording

    def __enter__(self) -> None:
        """Mark this thread; without a recording, one outside is masked too."""
        self.before = _where.recording
        _where.recording = self.recording
        _where.solve_depth += 1

    def __exit__(self, *_: object) -> None:
        """Restore what was before."""
        _where.recording = self.before
        _where.solve_depth -= 1


def backward_pass() -> int:
    """Return a number that identifies the backward pass now running, -1 outside one."""
    # torch has no public name for it; torch.utils.checkpoint relies on the same function.
    return int(torch._C._current_graph_task_id())


class WeakHook:
    """Forward hook that calls ``owner.on_forward(module, args, kwargs, output)`` while it lives.

    The hook of a copied or pickled module has no owner (None).
    """

    def __init__(self, owner: Any) -> None:
        """Watch for ``owner``."""
        self._owner = None if owner is None else weakref.ref(owner)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Tell the owner of a forward pass."""
        owner = self._owner() if self._owner is not None else None
        if owner is not None:
            owner.on_forward(module, args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeakHook:
        """Return a hook without an owner."""
        return WeakHook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a hook without an owner."""
        return (WeakHook, (None,))


class Collector:
    """Gathers factors for a set of layers while armed.

    Args:
        layers: the layers to watch, each with the key under which its sums are kept (layers that
            share their weights share a key).
        quadrature: where an ODE is looked at.
        accumulator: makes the running sums of one layer.
        scope: ``"all"``, or ``"ode"`` to ignore uses outside an ODE.
        max_rows: rows of a batch that factors are made from, evenly spaced; None means all.

    Raises:
        TypeError: if ``quadrature`` is no rule.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, str],
        quadrature: Quadrature,
        accumulator: Callable[[], Sums],
        scope: str = "all",
        max_rows: int | None = None,
    ) -> None:
        """Start disarmed and empty."""
        if not callable(quadrature) and not hasattr(quadrature, "looks_at"):
            raise TypeError(
                f"quadrature must be a rule such as gauss_legendre(4), got {quadrature!r}"
            )
        self.max_rows = max_rows
        self.accumulator = accumulator
        self.layers = dict(layers)
        self.quadrature = quadrature
        # Where a solve is seen: "nodes", "step ends" or "evaluations".
        self.looks_at: str = getattr(quadrature, "looks_at", "nodes")
        self.discrete = self.looks_at == "evaluations"  # then a use is one of the solver's own
        self.scope = scope
        self.paused = False  # an armed collector that is paused lets backward passes go by
        self.sums: dict[str, Sums] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._generation = 0
        self._held: list[list[Tensor]] = []  # inputs that tensor hooks wait with

    @property
    def armed(self) -> bool:
        """Whether uses are being recorded."""
        return bool(self._handles)

    def arm(self) -> None:
        """Forget what was gathered and record the forward passes made from now on."""
        self.clear()
        self._release()
        self._generation += 1
        if not self._handles:
            hook, layers = WeakHook(self), self.layers
            self._handles = [m.register_forward_hook(hook, with_kwargs=True) for m in layers]
            _armed.add(self)

    def disarm(self) -> None:
        """Stop recording; what was gathered stays until the next :meth:`arm` or :meth:`clear`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._release()
        _armed.discard(self)

    def _release(self) -> None:
        """Let go of layer inputs: autograd keeps a hook, and what it holds, as long as the loss."""
        for held in self._held:
            held.clear()
        self._held = []

    def clear(self) -> None:
        """Forget what was gathered."""
        self.sums = {}

    def add(self, layer: nn.Module, x: Tensor, g: Tensor, weight: float, task: int) -> None:
        """Add one use of ``layer`` (see :meth:`Accumulator.add`)."""
        if g.numel() == 0:  # an empty batch is no data
            return
        key = self.layers[layer]
        # Factors are summed in full precision even where backward() runs under autocast.
        with torch.autocast(x.device.type, enabled=False):
            if key not in self.sums:
                self.sums[key] = self.accumulator()
            self.sums[key].add(layer, x, g, weight, task, self.max_rows)  # type: ignore[arg-type]

    def on_forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Handle one forward pass of ``layer`` (called by its hook)."""
        if layer not in self.layers:  # a copy of the model
            return
        x = args[0] if args else kwargs["input"]
        recording = _where.recording
        if recording is not None and self in recording.collectors:
            if output.requires_grad:
                recording.uses.append(_Use(self, layer, x, get_gradient_edge(output)))
            return
        # A forward inside a backward pass is a recomputation, for instance by another library's
        # adjoint: its gradients are not those of the loss.
        inside = _where.solve_depth > 0
        if (not self.discrete if inside else self.scope == "ode") or backward_pass() != -1:
            return
        if torch.is_grad_enabled() and output.requires_grad:
            held = [x.detach()]
            self._held.append(held)
            output.register_hook(self._on_gradient(layer, held))

    def _on_gradient(self, layer: nn.Module, held: list[Tensor]) -> Callable[[Tensor], None]:
        generation = self._generation

        def hook(g: Tensor) -> None:
            # Grad mode is on in passes made with create_graph=True: those belong to a quantity
            # that is itself part of the loss (a trace, a penalty), not to the loss.
            stale = generation != self._generation or not self.armed or self.paused
            if not stale and held and not torch.is_grad_enabled():
                self.add(layer, held[0], g, 1.0, backward_pass())

        return hook


@contextmanager
def all_or_nothing(collectors: Sequence[Collector]) -> Iterator[None]:
    """Keep what is gathered inside only if nothing fails: half a path is no integral."""
    before = [collector.sums for collector in collectors]
    for collector in collectors:
        collector.sums = {}
    try:
        yield
    except BaseException:
        for collector, sums in zip(collectors, before, strict=True):
            collector.sums = sums
        raise
    for collector, sums in zip(collectors, before, strict=True):
        for key, gathered in collector.sums.items():
            if key in sums:
                sums[key].merge(gathered)
            else:
                sums[key] = gathered
        collector.sums = sums


def armed_collectors(func: object, *, paused: bool = False) -> list[Collector]:
    """Return the armed collectors that watch a layer of ``func`` (any layer if it is no module).

    None within another solve: the backward pass of an ODE inside a vector field belongs to a stage.

    ``paused``: those that are paused as well, since a forward pass does not know yet which backward
    passes they will want to see.
    """
    if not _armed or _where.solve_depth > 0:
        return []
    awake = [collector for collector in _armed if paused or not collector.paused]
    if not isinstance(func, nn.Module):
        return awake
    modules = list(func.modules())
    return [c for c in awake if any(m in c.layers for m in modules)]


def node_collectors(func: object, *, paused: bool = False) -> list[Collector]:
    """Return those of :func:`armed_collectors` that want nodes placed on the path."""
    return [c for c in armed_collectors(func, paused=paused) if not c.discrete]
