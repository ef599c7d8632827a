"""Which weight matrices of a model are preconditioned: one block for each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from snopt.curvature.layers import SUPPORTED, Layer, from_matrix, to_matrix, weight_columns

State = TypeVar("State")


@dataclass
class Block(Generic[State]):
    """One weight matrix, the layer that owns it, and an optimizer's state for it.

    Attributes:
        name: the layer's name in the model.
        layer: the first layer that holds the weight.
        weight: the weight.
        own_bias: whether the layer's bias is among the parameters that are trained.
        state_of: gives what the optimizer keeps for a weight.
        warned: whether the user has been told that it received no data.
    """

    name: str
    layer: Layer
    weight: Tensor
    own_bias: bool
    state_of: Callable[[Tensor], State]
    warned: bool = False

    @property
    def state(self) -> State:
        """What the optimizer keeps for the weight."""
        return self.state_of(self.weight)

    @property
    def members(self) -> list[Tensor]:
        """The weight, and the bias if it is the optimizer's to change."""
        bias = self.layer.bias if self.own_bias else None
        return [self.weight] if bias is None else [self.weight, bias]

    def matrix(
        self,
        values: Callable[[Tensor], Tensor | None],
        columns: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return tensors like weight and bias as (groups, out / groups, columns).

        Args:
            values: returns a tensor like a parameter; None stands for zeros.
            columns: one more than the weight's if the matrix has the bias's.
            out: where to write it, or None.
        """

        def present(p: Tensor) -> Tensor:
            value = values(p)
            return torch.zeros_like(p) if value is None else value

        bias = self._bias(columns)
        of_bias = None if bias is None else present(bias)
        return to_matrix(self.layer, present(self.weight), of_bias, out)

    def gradient(self, columns: int, out: Tensor | None = None) -> Tensor:
        """Return the gradient as :meth:`matrix`.

        The bias may have been frozen or left out since the factors were made: its column is zero.
        """
        return self.matrix(
            lambda p: p.grad if p is self.weight or self.own_bias else None, columns, out
        )

    def set_gradient(self, matrix: Tensor) -> None:
        """Write a matrix like :meth:`gradient`'s into ``.grad``."""
        for grad, part in self._parts(matrix):
            grad.copy_(part)

    def inner(self, matrix: Tensor) -> Tensor:
        """Return the inner product of ``.grad`` with a matrix like it, a scalar tensor."""
        return torch.stack([(grad * part).sum() for grad, part in self._parts(matrix)]).sum()

    def scale_gradient(self, factor: Tensor, columns: int) -> None:
        """Multiply ``.grad`` with a scalar tensor."""
        for parameter in self.members[: 1 + (columns > weight_columns(self.layer))]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _bias(self, columns: int) -> Tensor | None:
        return self.layer.bias if columns > weight_columns(self.layer) else None

    def _parts(self, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the gradients that there are, each with its part of the matrix."""
        parts = zip(self.members, from_matrix(self.layer, matrix), strict=False)
        return [(p.grad, part) for p, part in parts if p.grad is not None and part is not None]


def check_model(model: object) -> None:
    """Raise TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            "the first argument must be the model (an nn.Module), not its parameters: the layers"
            f" are what carries the curvature; got {type(model).__name__}"
        )


def layers_of(model: nn.Module) -> list[tuple[str, Layer]]:
    """Return the layers of the kinds that are preconditioned, with their names."""
    modules = model.named_modules()
    return [(name or type(m).__name__, m) for name, m in modules if isinstance(m, SUPPORTED)]


def trained_weight(layer: Layer) -> Tensor | None:
    """Return the layer's weight; None if it is frozen.

    So is one that is computed (parametrized, pruned): it is no parameter, and has no gradient. A
    complex one has no factors here and is updated as it is.
    """
    weight = layer._parameters.get("weight")
    treated = weight is not None and weight.requires_grad and not weight.dtype.is_complex
    return weight if treated else None


def find_blocks(
    layers: Iterable[tuple[str, Layer]],
    params: Iterable[Tensor],
    state_of: Callable[[Tensor], State],
) -> tuple[dict[str, Block[State]], dict[nn.Module, str]]:
    """Return blocks by name, and the block's name for each layer; layers may share a weight.

    Only weights among ``params`` have a block.

    Raises:
        ValueError: if a layer is lazy.
    """
    allowed = {id(p) for p in params}
    blocks: dict[str, Block[State]] = {}
    owner: dict[int, str] = {}
    keys: dict[nn.Module, str] = {}
    for name, layer in layers:
        weight = trained_weight(layer)
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"layer {name!r} is lazy: run one forward pass before making the optimizer"
            )
        if weight is None or id(weight) not in allowed:
            continue
        first = owner.setdefault(id(weight), name)
        if first == name:
            own_bias = layer.bias is not None and id(layer.bias) in allowed
            blocks[name] = Block(name, layer, weight, own_bias, state_of)
        elif blocks[first].layer.bias is not layer.bias:
            warnings.warn(
                f"layers {first} and {name} share a weight but not a bias; only {first} gives"
                " curvature",
                RuntimeWarning,
                stacklevel=6,
            )
            continue
        keys[layer] = first
    return blocks, keys


def untreated(
    model: nn.Module, params: Iterable[Tensor], blocks: Iterable[Block[State]]
) -> list[str]:
    """Return the names of parameters that are trained but belong to no block.

    Scalars, embeddings, normalisations, recurrent cells, weights that are computed or frozen while
    their bias is not.
    """
    allowed = {id(p) for p in params}
    treated = {id(p) for block in blocks for p in block.members}
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) in allowed and id(p) not in treated
    ]


_NO_DATA = (
    "no curvature data for {}: updated without (new) preconditioning. A layer gets data when"
    " loss.backward() passes through it; inside an ODE that needs snopt.odeint_adjoint,"
    " snopt.odeint or snopt.ODEBlock in place of torchdiffeq's functions."
)

_COMPILED = (
    " torch.compile keeps the code of calls before the optimizer was made, which has none of its"
    " hooks: make the optimizer before the first call, or call torch.compiler.reset() after it."
)

_FAILED = (
    "the first factors of {} are not finite or could not be decomposed: the plain update for it,"
    " and another attempt with each step until there are some. The loss may be too large, or its"
    " gradient overflow."
)

_DIFFERENTIATED = (
    "no curvature data for {}: the value of the field does not depend on its output, only a"
    " gradient taken inside the field does (torch.autograd.grad, as in a Hamiltonian network)."
    " The use of a layer in a derivative is not collected: the plain update for it, and the"
    " factors of the layers before it are those of their part in the value."
)

_UNLIKE = (
    "what {} is seen to do does not make the gradient of its weight: the plain update for it. Its"
    " forward() computes something else than x Wᵀ + b, or its weight is also used where no hook"
    " sees it (F.linear, torch.func.vmap, another layer with a bias of its own). Call the module"
    " itself, or leave the weight out of params=… if the plain update is what you want."
)


def warn_of_missing(
    blocks: Iterable[Block[State]],
    present: Container[str],
    unlike: Container[str] = (),
    differentiated: Container[str] = (),
) -> None:
    """Warn, once each, of the blocks that are not preconditioned, with the reason.

    Args:
        blocks: all blocks.
        present: names of those with data.
        unlike: names of those whose data do not make the gradient.
        differentiated: names of those that a field uses in a derivative alone.
    """
    missing = [block for block in blocks if block.name not in present and not block.warned]
    kinds: dict[str, list[str]] = {}
    for block in missing:
        block.warned = True
        text = _UNLIKE if block.name in unlike else _NO_DATA + _COMPILED * _has_compiled()
        if text is not _UNLIKE and block.name in differentiated:
            text = _DIFFERENTIATED
        kinds.setdefault(text, []).append(block.name)
    for text, names in kinds.items():
        warnings.warn(text.format(", ".join(names)), RuntimeWarning, stacklevel=6)


def _has_compiled() -> bool:
    """Return whether torch.compile has compiled something in this process."""
    module = sys.modules.get("torch._dynamo.utils")
    return module is not None and bool(module.counters.get("frames"))


def warn_of_failed(blocks: Iterable[Block[State]]) -> None:
    """Warn, once each, of blocks whose first factors came to nothing."""
    failed = [block for block in blocks if not block.warned]
    for block in failed:
        block.warned = True
    if failed:
        names = ", ".join(block.name for block in failed)
        warnings.warn(_FAILED.format(names), RuntimeWarning, stacklevel=5)


INCOMPLETE = (
    "the state is incomplete: torch.distributed.checkpoint fills in what an optimizer has already,"
    " and a new one has no factors yet; turn the checkpoint into a file with"
    " torch.distributed.checkpoint.format_utils.dcp_to_torch_save and load that"
)


def members(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Return all parameters of parameter groups, which may come with names."""
    entries = (p for group in groups for p in group["params"])
    return [p[1] if isinstance(p, tuple) else p for p in entries]
