"""Second-order preconditioning of a model's gradients, before any base optimizer's step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snopt.curvature import Collector
from snopt.eigenbasis import eigenbases
from snopt.kronecker import TIME_CORRELATION, KroneckerPair
from snopt.layers import (
    SUPPORTED,
    Layer,
    from_matrix,
    groups_of,
    to_matrix,
    weight_columns,
)
from snopt.quadrature import Quadrature, gauss_legendre

SCOPES = ("all", "ode")


@dataclass
class _Block:
    """One weight matrix, the layer that owns it, and its curvature."""

    name: str
    layer: Layer
    pair: KroneckerPair = field(default_factory=KroneckerPair)
    warned: bool = False


class Preconditioner:
    """Replaces the gradient of every Linear and Conv2d layer by B⁻¹ G A⁻¹, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`snopt.SNOpt`
    does both. Parameters of other kinds, layers whose weight is frozen or computed by a
    parametrization, and layers that never received data keep their gradient.

    Factors are gathered in the backward passes before every ``update_freq``-th step, the first one
    included. Gradient accumulation: microbatches of equal size, whatever their number.

    Args:
        model: the model; its layers may be inside or outside ODE solves, used once or many times.
        eps: damping ε > 0, in units of the squared per-sample gradient.
        update_freq: steps between two refreshes of the factors and their bases, at least 1.
        alpha: decay of the running second moment, in [0, 1].
        quadrature: rule for the nodes on each smooth piece of a solve; None means
            ``gauss_legendre(4)``.
        scope: ``"all"``, or ``"ode"`` for layers inside an ODE solve only.
        time_correlation: ``"full"`` or ``"none"``, see :meth:`KroneckerPair.refresh`.
        curvature_batch: rows of the batch from which the factors are made, evenly spaced; None
            means all of them.
        params: the parameters that may be preconditioned; None means all of the model.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.05,
        update_freq: int = 100,
        alpha: float = 0.75,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        time_correlation: str = "full",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_model(model)
        check_range(eps=eps, alpha=alpha)
        _check_count("update_freq", update_freq)
        if curvature_batch is not None:
            _check_count("curvature_batch", curvature_batch)
        _check_choice("scope", scope, SCOPES)
        _check_choice("time_correlation", time_correlation, TIME_CORRELATION)
        if quadrature is not None and not callable(quadrature):
            raise TypeError(
                f"quadrature must be a rule such as gauss_legendre(4), got {quadrature!r}"
            )
        self.eps, self.alpha = eps, alpha
        self.update_freq = update_freq
        self.time_correlation = time_correlation
        self.scope = scope
        self.steps = 0
        self._blocks, keys = _find_blocks(model, params)
        if not self._blocks:
            kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
            raise ValueError(
                "no layer to precondition: the model has no nn.Linear or nn.Conv2d with a trainable"
                f" weight among the parameters given (it is made of {', '.join(kinds)}); use the"
                " base optimizer alone"
            )
        self._collector = Collector(
            keys,
            gauss_legendre(4) if quadrature is None else quadrature,
            scope,
            max_rows=curvature_batch,
        )
        self._collector.arm()

    @property
    def curvature(self) -> Mapping[nn.Module, KroneckerPair]:
        """The factors of every layer that has some: ``.A``, ``.B``, ``.weight``."""
        return {b.layer: b.pair for b in self._blocks.values() if b.pair.ready}

    @property
    def failures(self) -> int:
        """Eigendecompositions that failed so far; the layer kept its previous basis each time."""
        return sum(b.pair.failures for b in self._blocks.values())

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Refresh the factors if it is time, then precondition the gradients in place.

        Args:
            param_groups: groups whose ``damping`` and ``alpha`` override the defaults for the
                layers whose weight they hold.
            loss_scale: what the loss was multiplied with for the backward pass (loss scaling in
                half precision) and the gradients have been divided by since.
        """
        if self._collector.armed:
            self._refresh(loss_scale)
        own = {id(p): group for group in param_groups for p in group["params"]}
        for block in self._blocks.values():
            weight = block.layer.weight
            if weight.grad is None or not block.pair.ready:
                continue
            group = own.get(id(weight), {})
            eps, alpha = group.get("damping", self.eps), group.get("alpha", self.alpha)
            check_range(eps=eps, alpha=alpha)
            # The factors say whether the bias has a column; it may have been frozen or freed since.
            matrix = block.pair.buffer()
            bias = block.layer.bias if matrix.shape[-1] > weight_columns(block.layer) else None
            bias_grad = None
            if bias is not None:
                bias_grad = torch.zeros_like(bias) if bias.grad is None else bias.grad
            G = to_matrix(block.layer, weight.grad, bias_grad, matrix)
            weight_part, bias_part = from_matrix(
                block.layer, block.pair.precondition(G, eps=eps, alpha=alpha)
            )
            weight.grad.copy_(weight_part)
            if bias is not None and bias.grad is not None and bias_part is not None:
                bias.grad.copy_(bias_part)
        self.steps += 1
        self._arm_if_due()

    def clear(self) -> None:
        """Forget curvature gathered from backward passes whose gradients were thrown away."""
        self._collector.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return steps, factors, bases and second moments: tensors and numbers only."""
        layers = {n: b.pair.state_dict() for n, b in self._blocks.items()}
        return {"steps": self.steps, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a model with other layers.
        """
        missing = sorted(self._blocks.keys() ^ state["layers"].keys())
        if missing:
            raise ValueError(
                f"the state is another model's; layers that only one has: {', '.join(missing)}"
            )
        for name, block in self._blocks.items():
            saved, weight = state["layers"][name], block.layer.weight
            if saved["S"] is not None:
                groups, out, columns = saved["S"].shape
                fits = (groups * out, columns) in _matrix_shapes(block.layer)
                if not fits or groups != groups_of(block.layer):
                    raise ValueError(
                        f"the state's layer {name} is of another size: its matrix has"
                        f" {groups * out} × {columns} entries, this model's"
                        f" {weight.shape[0]} × {weight_columns(block.layer)} and a bias"
                    )
            block.pair.load_state_dict(saved, weight.device)
        self.steps = int(state["steps"])
        self._arm_if_due()

    def _arm_if_due(self) -> None:
        if self.steps % self.update_freq == 0:
            self._collector.arm()
        else:
            self._collector.disarm()

    @property
    def due(self) -> bool:
        """Whether the coming step refreshes the factors."""
        return self._collector.armed

    def _refresh(self, loss_scale: float | Tensor) -> None:
        sums = self._collector.sums
        due = [(b.pair, sums[n].factors()) for n, b in self._blocks.items() if n in sums]
        for _, factors in due:
            factors.B.div_(loss_scale**2)
        bases = eigenbases([M for _, factors in due for M in (factors.A, factors.B)])
        for i, (pair, factors) in enumerate(due):
            pair.refresh(factors, self.time_correlation, (bases[2 * i], bases[2 * i + 1]))
        self._warn_of_missing(sums.keys())
        self._collector.clear()

    def _warn_of_missing(self, present: Iterable[str]) -> None:
        """Name the layers without data, once each; with ``scope="ode"`` only if there is none."""
        missing = [b for n, b in self._blocks.items() if n not in set(present) and not b.warned]
        if not missing or (self.scope == "ode" and len(missing) < len(self._blocks)):
            return
        for block in missing:
            block.warned = True
        warnings.warn(
            f"no curvature data for {', '.join(b.name for b in missing)}: updated without (new)"
            " preconditioning. A layer gets data when loss.backward() passes through it; inside an"
            " ODE that needs snopt.odeint_adjoint, snopt.odeint or snopt.ODEBlock in place of"
            " torchdiffeq's functions.",
            RuntimeWarning,
            stacklevel=5,
        )


def _matrix_shapes(layer: Layer) -> list[tuple[int, int]]:
    """Return the shapes that the layer's matrix may have, without and with a bias."""
    rows, columns = layer.weight.shape[0], weight_columns(layer)
    return [(rows, columns), (rows, columns + 1)] if layer.bias is not None else [(rows, columns)]


def check_model(model: object) -> None:
    """Raise TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            "the first argument must be the model (an nn.Module), not its parameters: the layers"
            f" are what carries the curvature; got {type(model).__name__}"
        )


def check_range(*, eps: float, alpha: float) -> None:
    """Raise ValueError unless ε > 0 and 0 <= α <= 1."""
    if not eps > 0:
        raise ValueError(f"eps (damping) must be greater than 0, got {eps!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha (decay of the second moment) must lie in [0, 1], got {alpha!r}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _find_blocks(
    model: nn.Module, params: Iterable[Tensor] | None
) -> tuple[dict[str, _Block], dict[nn.Module, str]]:
    """Return blocks by name, and the block's name for each layer; layers may share a weight."""
    allowed = None if params is None else {id(p) for p in params}
    blocks: dict[str, _Block] = {}
    owner: dict[int, str] = {}
    keys: dict[nn.Module, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, SUPPORTED):
            continue
        weight = layer.weight
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(f"layer {name!r} is lazy: run one forward pass before SNOpt(model)")
        # A parametrized weight is computed, no parameter: it has no gradient of its own to replace.
        if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
            continue
        if allowed is not None and id(weight) not in allowed:
            continue
        name = name or type(layer).__name__
        first = owner.setdefault(id(weight), name)
        if first == name:
            blocks[name] = _Block(name, layer)
        elif blocks[first].layer.bias is not layer.bias:
            warnings.warn(
                f"layers {first} and {name} share a weight but not a bias; only {first} gives"
                " curvature",
                RuntimeWarning,
                stacklevel=4,
            )
            continue
        keys[layer] = first
    return blocks, keys
