"""A vector field on states of fixed shapes, and the norms of such states.

Solvers see a state as one flat vector of its parts; a user sees a tensor or a tuple of tensors.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Tensor | tuple[Tensor, ...]

NormOfParts = Callable[[tuple[Tensor, ...]], Any]

_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def parts_of(state: State) -> tuple[Tensor, ...]:
    """Return a state as a tuple of tensors."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


@dataclass(frozen=True)
class Layout:
    """Parts of a state within one flat vector."""

    shapes: tuple[torch.Size, ...]
    sizes: list[int] = field(init=False)
    _common: torch.Size | None = field(init=False)  # the leading axis of parts of one shape

    def __post_init__(self) -> None:
        """Count the entries of each part."""
        object.__setattr__(self, "sizes", [shape.numel() for shape in self.shapes])
        alike = len(self.shapes) > 1 and len(set(self.shapes)) == 1
        common = torch.Size((len(self.shapes), *self.shapes[0])) if alike else None
        object.__setattr__(self, "_common", common)

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the parts as one vector, a copy."""
        return torch.cat([part.reshape(-1) for part in parts])

    def split(self, y: Tensor) -> list[Tensor]:
        """Return views of a vector, (n,) or (T, n), as parts: (…) or (T, …)."""
        if y.dim() == 1:  # at every evaluation
            if self._common is not None:
                return list(y.view(self._common).unbind())
            pieces = y.split_with_sizes(self.sizes) if len(self.sizes) > 1 else (y,)
            return [p.view(shape) for p, shape in zip(pieces, self.shapes, strict=True)]
        # One by one: autograd refuses to write into one of several views made at once.
        ends = itertools.accumulate(self.sizes)
        parts = [y.narrow(-1, end - n, n) for end, n in zip(ends, self.sizes, strict=True)]
        return [p.view(len(y), *shape) for p, shape in zip(parts, self.shapes, strict=True)]

    def twice(self) -> Layout:
        """Return the layout of two such states, one after the other."""
        return Layout(self.shapes * 2)


class Field:
    """A vector field F(t, z) with the shapes of its state.

    Attributes:
        func: F as the user gave it.
        is_tuple: whether its state is a tuple.
        layout: parts of the state within a flat vector.
        dtype: of the state; None where its parts differ.
        ahead: F(t0, y0) where it was evaluated before the solve, whose first evaluation takes it.
        weights: its parameters by name in the forward solve.
        end: entries of F(t1, z1) as the forward solve had it; None if it did not evaluate it.
    """

    def __init__(self, func: Callable[..., Any], y0: State) -> None:
        """Look up shapes and type of the state ``y0``.

        Raises:
            TypeError: if it is neither real nor complex, or of a wrong container type.
            ValueError: if it has no part.
        """
        parts = (y0,) if isinstance(y0, Tensor) else y0
        _check_state(y0, parts)
        self.func = func
        self.is_tuple = isinstance(y0, tuple)
        self.layout = Layout(tuple(part.shape for part in parts))
        self._like = parts[0].new_empty(0)
        self.ahead: list[Tensor] | None = None
        self.weights: dict[str, Tensor] = {}
        self.end: Tensor | None = None
        dtype = parts[0].dtype
        self.dtype = dtype if all(part.dtype == dtype for part in parts) else None

    def pack(self, parts: Sequence[Tensor]) -> State:
        """Return the state as ``func`` wants it."""
        return tuple(parts) if self.is_tuple else parts[0]

    def time(self, t: float) -> Tensor:
        """Return a time as the tensor that ``func`` gets."""
        return torch.full((), t, dtype=self._like.dtype, device=self._like.device)

    def at(self, t: float | Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return F(t, z) by parts; raise ValueError if it is not of the state's shape."""
        if self.ahead is not None:
            out, self.ahead = self.ahead, None
            return out
        first = parts[0]
        time = t if isinstance(t, Tensor) else self.time(t)
        out = self.func(time, tuple(parts) if self.is_tuple else first)
        if len(parts) == 1 and isinstance(out, Tensor) and out.shape == first.shape:  # usual case
            return [out if out.dtype == first.dtype else out.to(first.dtype)]
        # Under autocast a field may answer in half precision.
        return [part.to(first.dtype) for part in self.answer(out)]

    def answer(self, out: State) -> tuple[Tensor, ...]:
        """Return the parts of what F answered; raise ValueError if it is not of the state's shape.

        Parts of other sizes with the same sum would be taken for one another in a flat state.
        """
        answer, shapes = parts_of(out), self.layout.shapes
        fits = len(answer) == len(shapes)
        if not fits or any(a.shape != s for a, s in zip(answer, shapes, strict=True)):
            raise ValueError(
                "the vector field must answer with the shape of the state: expected"
                f" {_shown(shapes)}, got {_shown([part.shape for part in answer])}"
            )
        return answer

    def callbacks(self, *, adjoint: bool = False) -> dict[str, Callable[..., Any]]:
        """Return the step callbacks that ``func`` defines, under the names a solver looks up."""
        suffix = "_adjoint" if adjoint else ""
        found = {name: getattr(self.func, name + suffix, None) for name in _CALLBACKS}
        return {name: callback for name, callback in found.items() if callback is not None}


def _check_state(y0: object, parts: Any) -> None:
    if not isinstance(parts, tuple) or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(f"y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}")
    if not parts:
        raise ValueError("y0 is an empty tuple: there is no state to integrate")
    for i, part in enumerate(parts):
        if not (part.is_floating_point() or part.is_complex()):
            name = "y0" if isinstance(y0, Tensor) else f"y0[{i}]"
            raise TypeError(
                f"{name} has dtype {part.dtype}: an ODE state must be of floating point; convert"
                " it, for example with .float()"
            )


def _shown(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def check_times(t: Tensor) -> None:
    """Raise TypeError unless ``t`` is a vector of floating point, ValueError unless monotonic."""
    if not isinstance(t, Tensor) or t.dim() != 1 or not t.is_floating_point() or t.numel() == 0:
        what = f"{t.dtype} tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise TypeError(f"t must be a 1-d floating point tensor of times, got {what}")
    check_monotonic(t.detach().tolist())


def check_monotonic(times: Sequence[float]) -> None:
    """Raise ValueError unless ``times`` are finite and strictly monotonic."""
    for i, time in enumerate(times):
        if not math.isfinite(time):
            raise ValueError(f"t[{i}] = {time} is not a finite time")
    sign = 1.0 if len(times) < 2 or times[1] > times[0] else -1.0
    for i in range(1, len(times)):
        if not sign * (times[i] - times[i - 1]) > 0:
            raise ValueError(
                f"t must be strictly increasing or strictly decreasing, but t[{i - 1}] ="
                f" {times[i - 1]:.6g} is followed by t[{i}] = {times[i]:.6g}"
            )


def products(
    outputs: Sequence[Tensor], inputs: Sequence[Any], adjoints: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return Jᵀ a by input, None where the outputs F do not depend on it."""
    if not all(o.requires_grad for o in outputs):  # a constant part of the field has no graph
        live = [i for i, o in enumerate(outputs) if o.requires_grad]
        outputs, adjoints = [outputs[i] for i in live], [adjoints[i] for i in live]
    if not outputs:
        return [None] * len(inputs)
    # retain_graph: a field may hold a graph made before the solve.
    return torch.autograd.grad(outputs, inputs, adjoints, allow_unused=True, retain_graph=True)


@contextmanager
def leaves_no_trace(func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Undo what one more evaluation of a field changes: random generators, running statistics."""
    buffers = list(func.buffers()) if isinstance(func, nn.Module) else []
    before = [(buffer, buffer.clone()) for buffer in buffers]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for buffer, value in before:
            # Past autograd, which may have saved the buffer: it gets the value that it had then.
            buffer.data.copy_(value)


def thinned(y: Tensor) -> Tensor:
    """Return some 1000 entries of a vector, a view."""
    return y.detach()[:: 1 + y.numel() // 1024]


def autocast_state(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context for the backward pass that brings back the present autocast state."""
    return functools.partial(
        torch.autocast,
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
    )


def rms_norm(layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return torchdiffeq's norm of a flat state: the largest root mean square of its parts."""
    sizes = layout.sizes
    count, size = len(sizes), max(sizes[0], 1)  # the norm of nothing is 0

    def of_one(e: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(e)
        return length / math.sqrt(size)

    def of_equals(e: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(e.view(count, sizes[0]), dim=1)
        return lengths.max() / math.sqrt(size)

    def of_parts(e: Tensor) -> Tensor:
        return torch.stack([rms(p) for p in e.split_with_sizes(sizes)]).max()

    if count == 1:
        return of_one
    return of_equals if len(set(sizes)) == 1 else of_parts


def adjoint_norm(field: Field, state_norm: Any, *, seminorm: bool) -> NormOfParts:
    """Return torchdiffeq's norm of a backward state: the largest of its components' norms.

    Args:
        field: the vector field of the forward solve.
        state_norm: the user's norm of a state, applied to z and to a; None means the largest root
            mean square of the parts.
        seminorm: whether to leave the parameter adjoints out.

    Returns:
        A function of (vjp_t, *z, *a, *parameter adjoints).
    """
    n = len(field.layout.shapes)

    def of_state(parts: tuple[Tensor, ...]) -> Any:
        return max(rms(p) for p in parts) if state_norm is None else state_norm(field.pack(parts))

    def of_backward(state: tuple[Tensor, ...]) -> Any:
        z, a, params = state[1 : 1 + n], state[1 + n : 1 + 2 * n], state[1 + 2 * n :]
        norms = [state[0].abs(), of_state(z), of_state(a)]
        if not seminorm:
            norms.extend(rms(p) for p in params)
        return max(norms)

    return of_backward


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of the entries, 0 without any."""
    length: Tensor = torch.linalg.vector_norm(x)
    return length / math.sqrt(max(x.numel(), 1))


Backward = Callable[..., tuple[Tensor | None, ...]]


def differentiable_once(backward: Backward) -> Backward:
    """Decorate an autograd function's ``backward`` whose results have no graph.

    Under ``create_graph=True`` the results say so when they are differentiated, also where the
    incoming gradients are constant: without a graph they would count as constants themselves.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        # What was saved leads back to all inputs: the solution is this function's own result.
        inputs = [x for x in ctx.saved_tensors if x.requires_grad]
        given = [g for g in found if g is not None]
        marked = iter(_Refused.apply(len(inputs), *inputs, *given))
        return tuple(None if g is None else next(marked) for g in found)

    return wrapped


class _Refused(torch.autograd.Function):
    """The identity on its last tensors, a function of the first; differentiating it raises."""

    @staticmethod
    def forward(ctx: Any, inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return all but the first ``inputs`` tensors."""
        return tuple(x.view_as(x) for x in tensors[inputs:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Raise RuntimeError."""
        raise RuntimeError(
            "a gradient of odeint_adjoint, odeint_checkpoint or odeint_event cannot be"
            ' differentiated again: use snopt.odeint (gradient="direct"), which backpropagates'
            " through the solver"
        )
