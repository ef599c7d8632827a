"""SINGD (Lin et al. 2023) on Neural ODEs: the library's update, curvature from the path integrals.

The library's hooks see a layer at every evaluation of the solver. Through the adjoint these are the
attempted stages of the backward solve, each with the full adjoint a(t); through backpropagation the
stages of the forward solve, each with the gradient of one stage. Sums over them depend on the
solver's steps and differ between the gradient modes by the square of a step. So the statistics come
from SNOpt's collector: A = ∫ E[x xᵀ] dt, B = ∫ E[g gᵀ] dt inside an ODE, one use outside, where
they are the library's to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import singd.optim.optimizer
import torch
from singd.structures.base import StructuredMatrix
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.optimizers.parameters import tell_of_plain_updates, trainable_groups
from snopt import gauss_legendre
from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator
from snopt.curvature.layers import groups_of
from snopt.curvature.quadrature import Quadrature
from snopt.validate import check_count, check_number

_MATRICES = ("Ks", "Cs", "m_Ks", "m_Cs")


class SINGD(singd.optim.optimizer.SINGD):  # type: ignore[misc]
    """Structured inverse-free natural gradient descent for Linear and Conv2d layers.

    Other parameters (a GRU cell, a scalar, a normalisation), grouped convolutions and partly frozen
    layers get SGD with the same learning rate, momentum and weight decay.

    Args:
        model: the model.
        lr: learning rate (β₂ in the paper).
        momentum: momentum of the update (α₂).
        damping: λ > 0.
        alpha1: momentum of the preconditioner's update, in [0, 1) (α₁).
        weight_decay: γ.
        T: steps between two updates of the preconditioner.
        lr_cov: learning rate of the preconditioner (β₁).
        structures: of K and C: dense, diagonal, block30diagonal, hierarchical15_15, triltoeplitz
            or triutoeplitz.
        kfac_like: the update close to KFAC's (IKFAC); ``alpha1`` is then 0.
        normalize_lr_cov: bound the length of the preconditioner's step by ``lr_cov``.
        quadrature: rule for the nodes inside an ODE; None means ``gauss_legendre(4)``.
        params: parameters or parameter groups to train; None means all of the model.

    Raises:
        ValueError: an argument is out of range, or the model has no layer to precondition.
    """

    module_names: dict[nn.Module, str]

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.9,
        damping: float = 1e-3,
        alpha1: float = 0.5,
        weight_decay: float = 0.0,
        T: int = 10,
        lr_cov: float = 1e-2,
        structures: Sequence[str] = ("dense", "dense"),
        kfac_like: bool = False,
        normalize_lr_cov: bool = False,
        quadrature: Quadrature | None = None,
        params: Iterable[Any] | None = None,
    ) -> None:
        """Sort the parameters and wait for the first backward pass."""
        check_count("T", T)
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            check_number(name, value, "[0, inf)")
        check_number("damping", damping, "(0, inf)")
        check_number("lr_cov", lr_cov, "(0, inf)")
        check_number("alpha1", alpha1, "[0, 1)")
        known = self.SUPPORTED_STRUCTURES
        if len(structures) != 2 or any(name not in known for name in structures):
            raise ValueError(f"structures must be two of {', '.join(known)}, got {structures!r}")
        groups = trainable_groups(model, params)
        self._layers = _layers_among(model, {id(p) for group in groups for p in group.params})
        if not self._layers:
            raise ValueError(
                "no layer to precondition: none of the parameters is the weight of an nn.Linear or"
                " nn.Conv2d that is trained as a whole"
            )
        treated = {id(p) for layer in self._layers for p in layer.parameters()}
        kept: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in groups:
            for chosen, inside in ((kept, True), (rest, False)):
                if members := [p for p in group.params if (id(p) in treated) is inside]:
                    chosen.append({**group.settings, "params": members})
        super().__init__(
            model,
            kept,
            lr=lr,
            momentum=momentum,
            damping=damping,
            alpha1=0.0 if kfac_like else alpha1,
            weight_decay=weight_decay,
            T=T,
            lr_cov=lr_cov,
            structures=(structures[0], structures[1]),
            kfac_like=kfac_like,
            normalize_lr_cov=normalize_lr_cov,
        )
        for settings in rest:
            self.add_param_group(settings)
        self._rest = {id(p) for settings in rest for p in settings["params"]}
        names = [name for g in groups for name, p in g.members if id(p) not in treated]
        tell_of_plain_updates("SINGD", "SGD", names)
        self._period = T
        self._collector = Collector(
            dict(self._layers), quadrature or gauss_legendre(4), Accumulator
        )
        self._collector.arm()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and the curvature gathered with them."""
        super().zero_grad(set_to_none)
        self._collector.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return momenta and preconditioners: tensors and numbers only."""
        own = {
            kind: {
                name: {key: getattr(matrix, key) for key in matrix._tensor_names}
                for name, matrix in getattr(self, kind).items()
            }
            for kind in _MATRICES
        }
        return {**Optimizer.state_dict(self), "steps": self.steps, **own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: the state is another model's.
        """
        for name in _MATRICES:
            _load_tensors(getattr(self, name), state_dict[name])
        own = {key: state_dict[key] for key in ("state", "param_groups")}
        Optimizer.load_state_dict(self, own)
        self.steps = int(state_dict["steps"])
        self._grad_scales = {self.steps - 1: 1.0}
        self._arm_if_due()

    def step(self, closure: None = None) -> None:
        """Update preconditioners where it is time, and all parameters."""
        super().step(closure)
        self._arm_if_due()

    def _arm_if_due(self) -> None:
        if self.steps % self._period == 0:
            self._collector.arm()
        else:
            self._collector.disarm()

    def _install_hooks(self, model: nn.Module) -> tuple[dict[nn.Module, str], list[Any]]:
        """Install none of the library's: the collector has its own."""
        return dict(self._layers), []

    @torch.no_grad()
    def _step(self) -> None:
        for name, sums in self._collector.sums.items():
            factors = sums.factors()
            self.H_Ks[name] = _inner(self.Ks[name], factors.A[0])
            self.H_Cs[name] = _inner(self.Cs[name], factors.B[0])
        self._collector.clear()
        every = self.module_names
        # A layer that the backward pass did not reach has no gradient to precondition.
        self.module_names = {
            module: name
            for module, name in every.items()
            if all(p.grad is not None for p in module.parameters())
        }
        try:
            super()._step()
        finally:
            self.module_names = every
        self._step_plainly()

    def _update_preconditioner(self, module: nn.Module) -> None:
        if self.module_names[module] in self.H_Ks:  # no data, no update
            super()._update_preconditioner(module)

    def _step_plainly(self) -> None:
        """Update what is no part of a layer, by the rule that layers get after preconditioning."""
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self._rest or p.grad is None:
                    continue
                update = p.grad
                if group["weight_decay"]:
                    update = update.add(p, alpha=group["weight_decay"])
                if group["momentum"]:
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    update = buffer.mul_(group["momentum"]).add_(update)
                p.add_(update, alpha=-group["lr"])


def _layers_among(model: nn.Module, trained: set[int]) -> dict[nn.Module, str]:
    """Return the layers, with their names, whose parameters are all trained and their own."""
    layers: dict[nn.Module, str] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or groups_of(module) != 1:
            continue
        own = {id(p) for p in module.parameters()}
        if isinstance(module.weight, nn.Parameter) and own <= trained and not own & seen:
            layers[module] = name or type(module).__name__
            seen |= own
    return layers


def _inner(K: StructuredMatrix, A: Tensor) -> StructuredMatrix:
    """Return Kᵀ A K in the structure of K."""
    dense = K.to_dense()
    return K.from_dense(dense.T @ A.to(dense.dtype) @ dense)


def _load_tensors(
    matrices: Mapping[str, StructuredMatrix], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    if matrices.keys() != state.keys():
        differing = ", ".join(sorted(matrices.keys() ^ state.keys()))
        raise ValueError(f"the state is another model's; layers that only one has: {differing}")
    for name, matrix in matrices.items():
        for key in matrix._tensor_names:
            own, saved = getattr(matrix, key), state[name][key]
            if own.shape != saved.shape:
                raise ValueError(
                    f"the state's layer {name} is of another size: {tuple(saved.shape)}, this"
                    f" model's {tuple(own.shape)}"
                )
            setattr(matrix, key, saved.to(own, copy=True))
