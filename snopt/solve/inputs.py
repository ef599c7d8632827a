"""What a field depends on beside (t, z), and that it is the same field in both passes.

A solve without a graph has gradients for the tensors that it knows of. The field's parameters are
not all: replicas of DataParallel have none, a context may be stored as an attribute, a weight may
stand in a list or outside the module. The graph of one evaluation, the forward solve's first, shows
them. In the backward pass the field is evaluated again: with the weights that it had then, the
random numbers that it drew then, and an error if it answers otherwise all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snopt.curvature.recording import inside_solve
from snopt.solve.field import Field, leaves_no_trace
from snopt.solve.solver import Problem

_R = TypeVar("_R")


def inputs_of(
    problem: Problem,
    t: Tensor,
    parts: Sequence[Tensor],
    given: Iterable[Tensor] | None,
    *,
    on_engine: bool,
) -> list[Tensor]:
    """Return the tensors to differentiate with respect to, beside state and times.

    They are those ``given``; otherwise the field's parameters and, on the engine, what else the
    graph of F(t0, y0) leads to. The forward solve finds that evaluation done.
    """
    field, func = problem.field, problem.field.func
    field.weights = dict(func.named_parameters()) if isinstance(func, nn.Module) else {}
    if given is not None:
        given = (given,) if isinstance(given, Tensor) else given
        return [p for p in given if p.requires_grad]
    if not isinstance(func, nn.Module):
        raise ValueError(
            "func is no nn.Module, so its parameters are unknown: pass adjoint_params=… (an empty"
            " tuple if there are none)"
        )
    params = [p for p in field.weights.values() if p.requires_grad]
    if not (on_engine and torch.is_grad_enabled() and t.numel() > 1):
        # As torchdiffeq has it: a replica of DataParallel has its weights as attributes.
        replicas = _attributes(func).values() if getattr(func, "_is_replica", False) else ()
        return [*params, *replicas]
    # The nodes of a graph are numbered in the order of their making; torch has no public name for
    # the number to come.
    mark = int(torch._C._autograd._get_sequence_nr())
    with inside_solve():
        outputs = field.at(float(t[0].detach()), [part.detach() for part in parts])
    field.ahead = [o.detach() for o in outputs]
    return [*params, *_others(outputs, params, func, mark)]


def _others(
    outputs: Sequence[Tensor], params: Sequence[Tensor], func: nn.Module, mark: int
) -> list[Tensor]:
    """Return what outputs depend on beside the parameters: leaves, or attributes made of them.

    An attribute spares the way back from it to its leaves at every evaluation. It must have been
    made before the node ``mark``, and of no parameter, whose gradient would count twice.
    """
    known = {(p.grad_fn, p.output_nr) if p.grad_fn else id(p) for p in params}
    attributes: dict[Any, Tensor] | None = None
    found: dict[int, Tensor] = {}

    def walk(edges: list[Any], found: dict[int, Tensor]) -> bool:
        """Add what the edges lead to; return whether they lead to a parameter."""
        nonlocal attributes
        seen, reaches = set(), False
        while edges:
            edge = edges.pop()
            node = edge[0]
            if node is None or edge in seen:
                continue
            seen.add(edge)
            leaf = getattr(node, "variable", None)
            if edge in known or id(leaf) in known:
                reaches = True
            elif leaf is not None:
                found[id(leaf)] = leaf
            else:
                if node._sequence_nr() < mark:
                    if attributes is None:
                        attributes = _attributes(func)
                    own = attributes.get(edge)
                    if own is not None and not walk(list(node.next_functions), {}):
                        found[id(own)] = own
                        continue
                if (node, None) not in seen:
                    seen.add((node, None))
                    edges.extend(node.next_functions)
        return reaches

    for o in outputs:
        if o.requires_grad and o.grad_fn is None and id(o) not in known:
            found[id(o)] = o
    walk([(o.grad_fn, o.output_nr) for o in outputs], found)
    return list(found.values())


def _attributes(func: nn.Module) -> dict[Any, Tensor]:
    """Return computed tensors that modules have as attributes, by edge of the graph."""
    values = [v for module in func.modules() for v in vars(module).values()]
    values += [x for v in values if isinstance(v, (list, tuple)) for x in v]
    values += [x for v in values if isinstance(v, dict) for x in v.values()]
    return {
        (v.grad_fn, v.output_nr): v
        for v in values
        if isinstance(v, Tensor) and v.grad_fn is not None
    }


class _Around(nn.Module):
    """Runs something while its module has other weights."""

    def __init__(self, func: nn.Module) -> None:
        super().__init__()
        self.func = func

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def with_weights(field: Field, run: Callable[[], _R]) -> _R:
    """Return ``run()`` while the field has the parameters that it had in the forward solve.

    Under functional_call, or with a parameter replaced since, it has others now.
    """
    func, weights = field.func, field.weights
    if not (weights and isinstance(func, nn.Module)):
        return run()
    now = dict(func.named_parameters())
    if all(now.get(name) is weight for name, weight in weights.items()):
        return run()
    swapped = {f"func.{name}": weight for name, weight in weights.items()}
    result: _R = torch.func.functional_call(_Around(func), swapped, (run,))
    return result


class RandomStates:
    """States of the random generators before evaluations of a field.

    A state that did not change is the object that it was: a field that draws nothing costs no
    memory.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the present state for the first evaluation's."""
        self._device = device if device.type == "cuda" else None
        self._first = self._latest = self._now()
        self._due = True

    def _now(self) -> tuple[Tensor, ...]:
        own = () if self._device is None else (torch.cuda.get_rng_state(self._device),)
        return (torch.get_rng_state(), *own)

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the state before the evaluation that comes next."""
        if not self._due:
            now = self._now()
            if not all(map(torch.equal, now, self._latest)):
                self._latest = now
        self._due = False
        return self._latest

    def drew(self) -> bool:
        """Return whether the evaluations so far drew random numbers."""
        return self() is not self._first

    def set(self, state: tuple[Tensor, ...]) -> None:
        """Bring a state back."""
        torch.set_rng_state(state[0])
        if self._device is not None:
            torch.cuda.set_rng_state(state[1], self._device)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the generators as they are."""
        with torch.random.fork_rng(devices=[] if self._device is None else [self._device]):
            yield


def check_same(
    field: Field,
    found: Tensor,
    expected: Tensor,
    scale: Callable[[], Tensor],
    again: Callable[[], Tensor],
) -> None:
    """Raise RuntimeError if a field answers otherwise in the backward pass, beyond rounding.

    Args:
        field: the field.
        found: what it answers.
        expected: what it answered in the forward solve.
        scale: returns the size of state and answer.
        again: evaluates it once more; a field that differs then too is random.
    """
    gap = float((found - expected).abs().max())
    if gap == 0:
        return
    dtypes = {expected.dtype}
    if isinstance(field.func, nn.Module):
        dtypes |= {p.dtype for p in field.func.parameters() if p.is_floating_point()}
    device = expected.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    # Other kernels, as without a graph, round otherwise; errors of a sum grow with its terms.
    allowed = 10 * math.sqrt(max(torch.finfo(d).eps for d in dtypes)) * float(scale())
    if not gap > allowed:
        return
    with leaves_no_trace(field.func, expected.device), torch.no_grad():
        # Less than that also moves with every evaluation where a norm is iterated on.
        if not float((again() - found).abs().max()) <= allowed / 100:
            return
    raise RuntimeError(
        f"the vector field is another one in the backward pass: it answers by {gap:.3g} otherwise"
        " than in the forward solve at the same time and state. Something that it reads changed in"
        " between (an attribute, a buffer, the training mode). Call backward() before changing it,"
        ' give each solve a field of its own, or use snopt.odeint (gradient="direct"), which does'
        " not evaluate it again"
    )
