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

**What counts.** A backward pass may be the loss's, or serve an attack, a saliency map, a penalty
or somebody's own adjoint. What a pass gathered waits until the pass adds to the weight's ``.grad``,
and is dropped if it does not. Two passes through one forward pass are two losses of the same rows.

**Rows.** The update needs the rows of the present step, not those of the last refresh. A collector
that ``counts`` knows them on every step: layers outside an ODE keep a hook, and a solve says which
layers it passes through; the rows of these depend on the field and the shapes of its state alone,
so they are counted once for each. All others have no hook at all while disarmed.

Nothing here touches a gradient.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from snopt.curvature.layers import Sketch, batch_of
from snopt.curvature.recording import (
    Differentiated,
    Use,
    armed,
    backward_pass,
    current_task,
    merge_into,
    watching,
    where,
)

if TYPE_CHECKING:
    from snopt.curvature.factors import Sums
    from snopt.curvature.quadrature import Quadrature


SOLVERS = ("torchdiffeq", "torchdyn", "torchode", "torchsde")
"""Packages whose solvers, where they are not ours, take the stages for uses of a layer."""


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


def on_accumulation(
    parameter: Tensor, method: Callable[..., None], *arguments: object
) -> torch.utils.hooks.RemovableHandle:
    """Call a method, while its object lives, when a backward pass has added to ``.grad``."""
    reference = weakref.WeakMethod(method)

    def hook(_: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive(*arguments)

    handle: torch.utils.hooks.RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)
    return handle


class _Waiting:
    """Hook at the output of a layer or a solve: rows (and an input) that wait for a backward pass.

    Autograd keeps it as long as the graph, and nothing else does.
    """

    __slots__ = (
        "__weakref__",
        "_collector",
        "before",
        "differentiated",
        "gathered",
        "latest",
        "layer",
        "owner",
        "pass_",
        "rows",
        "x",
    )

    def __init__(
        self,
        collector: Collector,
        rows: Mapping[str, int],
        layer: nn.Module | None,
        x: Tensor | None,
    ) -> None:
        self._collector = weakref.ref(collector)
        self.rows = rows  # by key; that of a solve is filled in while it runs
        self.layer, self.x = layer, x
        # The pass that this is a recomputation in, as reentrant checkpoints make them.
        self.pass_ = backward_pass()
        self.differentiated = False  # whether a penalty or the like takes a gradient through it
        self.owner: int | None = None  # the first pass that it was committed in
        self.gathered: Sums | None = None  # what it was added to then
        # Gradients where more may come: of passes that have been taken in, of the present one.
        self.before: Tensor | None = None
        self.latest: Tensor | None = None

    def __call__(self, g: Tensor | None) -> None:
        collector = self._collector()
        if collector is not None and g is not None:
            collector.on_gradient(self, g)


@dataclass
class _Pass:
    """What one backward pass has gathered, by key, for weights that it has not added to yet."""

    task: int
    owner: int  # the pass under which its rows are counted
    again: bool = False  # whether it goes through a solve that an earlier one has gathered
    rows: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    sketches: dict[str, Sketch | None] = field(default_factory=dict)
    uses: dict[str, list[_Waiting]] = field(default_factory=dict)


class Collector:
    """Gathers factors for a set of layers while armed.

    Args:
        layers: the layers to watch, each with the key under which its sums are kept (layers that
            share their weights share a key).
        quadrature: where an ODE is looked at.
        accumulator: makes the running sums of one layer.
        scope: ``"all"``, or ``"ode"`` to ignore uses outside an ODE.
        max_rows: rows of a batch that factors are made from, evenly spaced; None means all.
        counts: whether to count rows while disarmed, too.

    Attributes:
        sums: what was gathered by passes that added to the weight's gradient, by key.
        rows: rows of each such pass, by key.

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
        *,
        counts: bool = False,
    ) -> None:
        """Start disarmed and empty."""
        if not callable(quadrature) and not hasattr(quadrature, "looks_at"):
            raise TypeError(
                f"quadrature must be a rule such as gauss_legendre(4), got {quadrature!r}"
            )
        self.max_rows = max_rows
        self.accumulator = accumulator
        self.quadrature = quadrature
        # Where a solve is seen: "nodes", "step ends" or "evaluations".
        self.looks_at: str = getattr(quadrature, "looks_at", "nodes")
        self.discrete = self.looks_at == "evaluations"  # then a use is one of the solver's own
        self.scope = scope
        self.counts = counts
        self.paused = False  # an armed collector that is paused lets backward passes go by
        self.armed = False  # whether uses are being recorded
        # Keys of layers whose uses have been compared with the gradient: whether they make it.
        self.checked: dict[str, bool] = {}
        self.only_differentiated: set[str] = set()  # keys of layers that a field's value passes by
        self.sums: dict[str, Sums] = {}
        self.rows: dict[str, dict[int, int]] = {}
        self._passes: dict[int, _Pass] = {}
        self._versions: dict[str, int]  # of the gradient when a pass was committed
        self._last: dict[str, int]  # rows that a layer saw last, by key
        # Without a hook, a use has the rows of the first since the step: one of other rows gets a
        # hook that tells the two, and so do all uses of such a layer from then on.
        self._first: dict[str, int] = {}
        self._varied: set[str] = set()
        self._forwards = 0
        self._times: dict[nn.Module, int] = {}  # uses outside our solves since it was armed
        self._told = False  # whether the user knows of another library's solver
        self._kept: dict[str, tuple[int, int]] = {}  # forward passes before one that kept its graph
        self._inside: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # layers seen in a solve
        self._along: weakref.WeakKeyDictionary[Any, dict[Any, dict[str, int]]]
        self._held: weakref.WeakSet[_Waiting] = weakref.WeakSet()
        self._handles: dict[Any, torch.utils.hooks.RemovableHandle] = {}
        weakref.finalize(self, _remove, self._handles)
        self.watch(layers)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as one that is disarmed and empty: its hooks are the model's."""
        own = (self.layers, self.quadrature, self.accumulator, self.scope, self.max_rows)
        return partial(type(self), counts=self.counts), own, {"paused": self.paused}

    def watch(self, layers: Mapping[nn.Module, str]) -> None:
        """Watch these layers in place of the present ones, of which everything is forgotten."""
        _remove(self._handles)
        self.layers = dict(layers)
        self._weights: dict[str, Any] = {}
        for layer, key in layers.items():
            self._weights.setdefault(key, layer.weight)
        self._versions, self._last = {}, {}
        self._along = weakref.WeakKeyDictionary()
        self._release()
        self.clear()
        self._hook()

    def arm(self) -> None:
        """Forget what was gathered and record the forward passes made from now on."""
        self.clear()
        self._release()
        self.checked, self.only_differentiated, self._times = {}, set(), {}
        self.armed = True
        armed.add(self)
        self._hook()

    def disarm(self) -> None:
        """Stop recording; what was gathered stays until the next :meth:`arm` or :meth:`clear`."""
        if not self.armed:  # at every ordinary step
            return
        self.armed = False
        armed.discard(self)
        self._release()
        self._hook()

    def _hook(self) -> None:
        """Have the hooks that the present state needs, and no other."""
        awake = self.armed or self.counts
        for layer, key in self.layers.items():
            weight = self._weights[key]
            wanted = awake and (self.armed or layer not in self._inside)
            if not wanted:
                _remove(self._handles, layer)
            elif layer not in self._handles:
                hook = WeakHook(self)
                self._handles[layer] = layer.register_forward_hook(hook, with_kwargs=True)
            if not awake:
                _remove(self._handles, key)
            elif key not in self._handles and weight.requires_grad and weight.is_leaf:
                self._handles[key] = on_accumulation(weight, self.on_accumulated, key)
        (watching.add if awake else watching.discard)(self)

    def _release(self) -> None:
        """Let go of layer inputs: autograd keeps a hook, and what it holds, as long as the loss."""
        for waiting in list(self._held):
            waiting.x = waiting.before = waiting.gathered = None
        self._held.clear()

    def clear(self) -> None:
        """Forget what was gathered and counted."""
        self.sums, self.rows, self._passes = {}, {}, {}
        self._first, self._kept = {}, {}

    def add(
        self,
        layer: nn.Module,
        x: Tensor,
        g: Tensor,
        weight: float,
        seen: _Waiting | None = None,
    ) -> None:
        """Add one use of ``layer`` (see :meth:`Accumulator.add`) to what the present pass gathers.

        Of a use that an earlier pass has gathered, ``seen`` or in a solve, the gradient alone is
        new.
        """
        if g.numel() == 0:  # an empty batch is no data
            return
        task, key = current_task(), self.layers[layer]
        current = self.pass_of(task)
        if where.node is not None:
            weight *= where.node.weights[self]
        if key not in current.sums:
            current.sums[key] = self.accumulator()
        if seen is None:  # a node of an integral, which is no part of a sum
            current.sketches[key] = None
        again = current.again if seen is None else self._has_gathered(seen)
        # Factors are summed in full precision even where backward() runs under autocast.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            sums, rest = current.sums[key], (weight, task, self.max_rows)
            if again:
                before = None if seen is None else seen.before
                sums.add_again(layer, x, g, before, *rest)  # type: ignore[arg-type]
            else:
                sums.add(layer, x, g, *rest)  # type: ignore[arg-type]

    def on_forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Handle one forward pass of ``layer`` (called by its hook)."""
        if layer not in self.layers:  # a copy of the model
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(output):  # its gradient is no tensor's
            return
        x = args[0] if args else kwargs["input"]
        recording = where.recording
        if recording is not None and self in recording.collectors:
            if output.requires_grad:
                use = Use(self, layer, x, get_gradient_edge(output))
                recording.uses.append(use)
                if self.wants_check(self.layers[layer]):
                    use.differentiated = Differentiated()
                    output.register_hook(use.differentiated)
            return
        task, inside = backward_pass(), where.solve_depth > 0
        if task == -1 and self._passes:
            self._passes = {}  # they are over
        if inside and not (self.discrete and self.armed):
            self._inside.add(layer)  # its rows are counted once a solve
            if not self.armed:
                _remove(self._handles, layer)
            return
        # A forward pass of a solve's own backward pass repeats one that was seen already.
        if task != -1 if inside else self.scope == "ode":
            return
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        key, rows = self.layers[layer], batch_of(layer, x)  # type: ignore[arg-type]
        self._last[key] = rows
        if not self._is_told_apart(key, rows, task):
            return
        waiting = _Waiting(self, {key: rows}, layer, x.detach() if self.armed else None)
        if self.armed:
            self._held.add(waiting)
            if task == -1 and not self.discrete:
                self._look_for_a_solver(layer)
        output.register_hook(waiting)

    def _look_for_a_solver(self, layer: nn.Module) -> None:
        """Say, once, that another library's solver is using a layer: its second use shows it."""
        times = self._times[layer] = self._times.get(layer, 0) + 1
        if times != 2 or self._told:
            return
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            if package in SOLVERS:
                self._told = True
                warnings.warn(
                    f"the layers of a vector field, {self.layers[layer]} among them, are used by"
                    f" {package}'s solver, so that each stage, probe and rejected step counts as a"
                    " use of weight 1, and the factors grow with the solver's steps. Solve with"
                    " snopt.odeint, snopt.odeint_adjoint or snopt.ODEBlock; if you want the uses,"
                    " say so with quadrature=snopt.evaluations()",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return

    @contextmanager
    def counting(self, func: object, shapes: object) -> Iterator[Mapping[str, int]]:
        """Yield the rows, by key, that layers see along a solve of ``func`` made inside."""
        try:
            known = self._along.setdefault(func, {})
        except TypeError:  # it cannot be referred to weakly
            known = {}
        if shapes in known and not self.armed:
            yield known[shapes]
            return
        rows: dict[str, int] = {}

        def count(layer: nn.Module, _: object, output: Tensor) -> None:
            key = self.layers[layer]
            seen = batch_of(layer, output)  # type: ignore[arg-type]
            rows[key] = max(seen, rows.get(key, 0))

        modules = func.modules() if isinstance(func, nn.Module) else self.layers
        handles = [m.register_forward_hook(count) for m in modules if m in self.layers]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()
        known[shapes] = rows

    def wait(self, rows: Mapping[str, int], outputs: Sequence[Tensor]) -> None:
        """Wait for the passes through a solve that has been counted, at its result."""
        if self._passes and backward_pass() == -1:
            self._passes = {}
        self._last.update(rows)
        task = backward_pass()
        told_apart = [self._is_told_apart(key, count, task) for key, count in rows.items()]
        if not any(told_apart):
            return
        waiting = _Waiting(self, rows, None, None)
        for output in outputs:
            if output.requires_grad:
                output.register_hook(waiting)

    def _is_told_apart(self, key: str, rows: int, task: int) -> bool:
        """Note the rows of a use; return whether it takes a hook to know the passes through it."""
        self._forwards += 1
        if self._first.setdefault(key, rows) != rows:
            self._varied.add(key)
        return self.armed or task != -1 or key in self._varied

    def on_gradient(self, waiting: _Waiting, g: Tensor) -> None:
        """Handle the gradient at the output of a layer or a solve (called by its hook)."""
        current = self.pass_of(backward_pass())
        if waiting.pass_ not in (-1, current.task):
            current.owner = self.pass_of(waiting.pass_).owner
        if waiting.owner is not None:
            current.owner = waiting.owner
        for key, rows in waiting.rows.items():
            if key not in current.rows:
                if key in self.rows:
                    self._drop_if_thrown_away(key)
                elif self.wants_check(key) and self._weights[key].grad is None:
                    current.sketches[key] = Sketch(self._layer(key))
            current.rows[key] = max(rows, current.rows.get(key, 0))
            current.uses.setdefault(key, []).append(waiting)
        if waiting.layer is None:
            current.again |= self._has_gathered(waiting)
        elif waiting.x is not None and self.armed:
            if not self.paused:
                self.add(waiting.layer, waiting.x, g, 1.0, waiting)
            waiting.differentiated |= torch.is_grad_enabled()
            self._sketch(current, waiting, g)
            if _keeps_its_graph() and not self.paused:  # for the cross terms of two losses
                waiting.latest = g

    def on_accumulated(self, key: str) -> None:
        """Take in what a pass has gathered, now that it has added to the weight's gradient."""
        task = backward_pass()
        current = self._passes.get(task)
        owner, rows = task, None
        if current is not None:
            owner, rows = current.owner, current.rows.get(key)
        if rows is None:
            rows = self._first.get(key) or self._last.get(key)
            forwards, before = self._kept.get(key, (-1, -1))
            if forwards == self._forwards:  # another loss of the same forward pass
                owner = before
        if _keeps_its_graph():
            self._kept[key] = (self._forwards, owner)
            self._varied.add(key)
        if rows:
            counted = self.rows.setdefault(key, {})
            counted[owner] = max(rows, counted.get(owner, 0))
        grad = self._weights[key].grad
        if grad is not None:
            self._versions[key] = grad._version
        if current is None:
            return
        sketch = current.sketches.pop(key, None)
        if sketch is not None and grad is not None:
            self.checked[key] = sketch.agrees(self._layer(key), grad)
        self._take(key, current)

    def wants_check(self, key: str) -> bool:
        """Return whether to compare a layer's uses with its gradient: once a time it is armed."""
        return self.armed and key not in self.checked and self._weights[key].requires_grad

    def check(
        self, key: str, seen: Sequence[tuple[Use, Tensor | None]], gradient: Tensor | None
    ) -> None:
        """Compare the uses in one evaluation of a field with the gradient of the weight in it.

        Uses that the field differentiates are known in part: those of the derivative are none.
        """
        if gradient is None:
            return
        if any(use.differentiated is not None and use.differentiated.yes for use, _ in seen):
            if all(g is None for _, g in seen):
                self.only_differentiated.add(key)
            return
        sketch = Sketch(self._layer(key))
        for use, g in seen:
            if g is not None:
                sketch.add(use.layer, use.x, g)  # type: ignore[arg-type]
        self.checked[key] = sketch.agrees(self._layer(key), gradient)

    def _sketch(self, current: _Pass, waiting: _Waiting, g: Tensor) -> None:
        key = self.layers[waiting.layer]  # type: ignore[index]
        sketch = current.sketches.get(key)
        if waiting.differentiated:
            current.sketches[key] = None
        elif sketch is not None:
            with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
                sketch.add(waiting.layer, waiting.x, g)  # type: ignore[arg-type]

    def _layer(self, key: str) -> Any:
        return next(layer for layer, own in self.layers.items() if own == key)

    def take_in(self) -> None:
        """Take in what passes of vectors have gathered, which add to no gradient."""
        for current in self._passes.values():
            for key in list(current.sums):
                self._take(key, current, vectors=True)
        self._passes = {}

    def _take(self, key: str, current: _Pass, *, vectors: bool = False) -> None:
        sums, uses = current.sums.pop(key, None), current.uses.pop(key, ())
        for waiting in uses:
            waiting.owner = current.owner
        if sums is None:
            return
        sums.belong(current.owner, apart=vectors)
        merge_into(self.sums, key, sums)
        for waiting in uses:
            waiting.gathered = self.sums[key]
            if waiting.latest is not None and not vectors:
                was, g = waiting.before, waiting.latest.detach()
                waiting.before = g if was is None else was + g
            waiting.latest = None

    def pass_of(self, task: int) -> _Pass:
        """Return what a backward pass has gathered."""
        if task not in self._passes:
            self._passes[task] = _Pass(task, task)
        return self._passes[task]

    def _has_gathered(self, waiting: _Waiting) -> bool:
        """Return whether what waits has given data that is still there."""
        gathered = waiting.gathered
        return gathered is not None and any(self.sums.get(k) is gathered for k in waiting.rows)

    def settle(self) -> None:
        """Forget what belongs to gradients that were thrown away since."""
        for key in list(self.rows):
            self._drop_if_thrown_away(key)

    def _drop_if_thrown_away(self, key: str) -> None:
        """Forget a weight's passes if its gradient is gone, as ``model.zero_grad()`` leaves it."""
        grad = self._weights[key].grad
        same = grad is not None and grad._version == self._versions.get(key)
        if grad is None or not (same or bool(grad.any())):
            self.rows.pop(key, None)
            self.sums.pop(key, None)


def _remove(handles: dict[Any, torch.utils.hooks.RemovableHandle], key: Any = None) -> None:
    """Remove one hook, if it is there, or all."""
    for one in list(handles) if key is None else [key]:
        if one in handles:
            handles.pop(one).remove()


def _keeps_its_graph() -> bool:
    """Return whether another pass may follow the present one through the same graph."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
