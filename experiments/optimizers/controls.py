"""Controls: SNOpt's run with one thing taken away, to see what that thing was worth.

Each takes the arguments of :class:`snopt.SNOpt`, so that a control is SNOpt's configuration with
another ``_target_`` (``configs/optimizer/frozen.yaml`` and its neighbours):

- :func:`frozen`: the ODE keeps its first weights; does training it matter?
- :func:`sgd_rate`: SGD at lr/ε, which SNOpt is while S ≪ ε; does S matter?
- :class:`SNOptInBasis`: the same running moment in the identity's or a random basis; does the
  Kronecker basis matter?

All need a model with an ODE: elsewhere they would say nothing about Neural ODEs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from experiments.models.blocks import ode_blocks, ode_parameters
from snopt import Preconditioner, SNOpt
from snopt.curvature.factors import Bases, Factors
from snopt.linalg import Basis, at_least_float32
from snopt.validate import check_choice, check_number

BASES: Final = ("identity", "random")


def frozen(
    model: nn.Module, *, params: Iterable[Tensor] | None = None, **settings: Any
) -> Optimizer:
    """Freeze the ODE at its first weights and return SNOpt for all other parameters.

    The ODE's parameters no longer require a gradient: its backward solve has the state's alone.

    Args:
        model: the model.
        params: parameters to treat; None means all of the model. Where they are the ODE's alone
            (``optimizer=split``), the optimizer that is returned does nothing.
        **settings: those of SNOpt.

    Raises:
        ValueError: the model has no ODE, or nothing outside of one.
    """
    _check_ode("frozen", model)
    inside = {id(p) for p in ode_parameters(model)}
    chosen = list(model.parameters() if params is None else params)
    still, others = ([p for p in chosen if (id(p) in inside) is own] for own in (True, False))
    if params is None and not others:
        raise ValueError("frozen: all parameters of the model are inside an ODE: none would train")
    for p in still:
        p.requires_grad_(False)
    return SNOpt(model, params=others, **settings) if others else _Still(still)


class _Still(Optimizer):
    """Leaves its parameters as they are."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params, {"lr": 0.0})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()


def sgd_rate(
    model: nn.Module,
    lr: float = 0.02,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 0.05,
    params: Iterable[Tensor] | None = None,
    **_curvature: Any,
) -> Optimizer:
    """Return SGD that takes the steps of SNOpt with S = 0, lr G/ε; settings of S have no meaning.

    Raises:
        ValueError: the model has no ODE, or ε is not above 0.
    """
    _check_ode("sgd_rate", model)
    check_number("eps (damping)", eps, "(0, inf)")
    # SNOpt adds the decay after the division by ε, SGD before the multiplication with lr/ε.
    chosen = list(model.parameters() if params is None else params)
    return SGD(chosen, lr=lr / eps, momentum=momentum, weight_decay=weight_decay * eps)


class _InBasis(Preconditioner):
    """Keeps S in a basis of one's own; see :class:`SNOptInBasis`."""

    basis: str

    def bases(self, factors: Sequence[Factors]) -> list[Bases]:
        generator = torch.Generator().manual_seed(self.refreshes)
        return [(self._basis(own.A, generator), self._basis(own.B, generator)) for own in factors]

    def _basis(self, matrix: Tensor, generator: torch.Generator) -> Basis:
        matrix = at_least_float32(matrix)
        groups, d, _ = matrix.shape
        U = torch.eye(d, dtype=torch.float64).expand(groups, d, d)
        if self.basis == "random":
            normal = torch.randn(groups, d, d, generator=generator, dtype=torch.float64)
            U, R = torch.linalg.qr(normal)
            U = U * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes it uniform
        U = U.to(matrix).contiguous()
        return (U * (matrix @ U)).sum(dim=-2), U


class SNOptInBasis(SNOpt):
    """SNOpt with bases of A and B that are not theirs: the identity, or random ones.

    S starts at the diagonal that A ⊗ B has in the basis, then follows the gradient in it as always.

    Args:
        model: the model.
        basis: ``"identity"``, or ``"random"``: orthogonal matrices, uniformly distributed, new ones
            at every refresh, the same in every run.
        **settings: those of SNOpt.

    Raises:
        ValueError: the model has no ODE, or the basis is unknown.
    """

    method = _InBasis
    preconditioner: _InBasis

    def __init__(self, model: nn.Module, *, basis: str, **settings: Any) -> None:
        """Make an SNOpt and say in which basis."""
        check_choice("basis", basis, BASES)
        _check_ode(f"snopt_{basis}", model)
        super().__init__(model, **settings)
        self.preconditioner.basis = basis


def _check_ode(control: str, model: nn.Module) -> None:
    if not ode_blocks(model):
        raise ValueError(
            f"{control} is a control for Neural ODEs, but {type(model).__name__} has no ODE block:"
            " take adam, sgd or snopt"
        )
