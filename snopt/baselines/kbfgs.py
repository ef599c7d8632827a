"""K-BFGS: Kronecker-factored block-diagonal BFGS (Goldfarb, Ren, Bahamou 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from snopt.baselines.bfgs import DenseInverse
from snopt.baselines.kronecker_bfgs import KroneckerBFGS
from snopt.curvature.quadrature import Quadrature


class KBFGS(KroneckerBFGS):
    """K-BFGS: a BFGS inverse for each Kronecker factor of each layer (Goldfarb et al. 2020).

    The Hessian of a layer is taken for A ⊗ G, A = E[x xᵀ] of its inputs and G the Hessian with
    respect to its pre-activations h = W x, and the direction for the averaged gradient is
    H_g Ĝ H_a. One step::

        loss and gradients on the batch               → mean x, h and g = ∂loss/∂h of each layer
        A ← β A + (1 - β) E[x xᵀ],  Ĝ ← β Ĝ + (1 - β) G
        W ← W - lr H_g Ĝ H_a
        loss and gradients again on the same batch    → s = Δ mean h, y = Δ mean g
        (s, y) averaged with β; double damping; BFGS update of H_g with (s̃, ỹ)
        BFGS update of H_a with s = H_a x̄, y = (A + √λ I) s     (Hessian action)

    with Powell's μ₁ = 0.2 and μ₂ = √λ (:mod:`snopt.baselines.double_damping`), H_g = I and
    H_a = (A + √λ I)⁻¹ at first. The authors start A with a pass over all data, which an optimizer
    does not have: here A starts with the first batch's. Convolutions as in Ren, Bahamou, Goldfarb
    (2021): patches are inputs, h is averaged over locations. A layer that is used many times, along
    a solve or at many locations: means of x and h, sum of g; :mod:`snopt.baselines.means` says why.

    Since a step evaluates the loss twice, it needs a closure::

        def closure():
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    The loss must be the mean over the batch, and the same function both times: draw no new random
    numbers in the second evaluation. Parameters of other kinds and layers without data move along
    their averaged gradient. ``param_groups`` hold ``lr``, ``weight_decay`` and ``damping``.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate (authors' code: 0.3).
        damping: λ in (0, 1) (authors' code: 0.3).
        decay: β in [0, 1) of all averages (authors' code: 0.9).
        weight_decay: L2 penalty, added to the gradient before the average (authors' code: 1e-5).
        update_freq: steps between two updates of A and the inverses; the steps in between evaluate
            the loss once (authors' code: 1).
        quadrature: nodes on each smooth piece of a solve; None means ``gauss_legendre(4)``. With
            ``gradient="direct"`` nodes cost one more solve in each pass; ``evaluations()`` costs
            none, but moves with the solver's steps.
        scope: ``"all"``, or ``"ode"`` to precondition only layers inside an ODE.
        curvature_batch: rows of the batch used for means and A; None means all.
        params: parameters or parameter groups to train; None means all of the model.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.3,
        damping: float = 0.3,
        decay: float = 0.9,
        weight_decay: float = 0.0,
        update_freq: int = 1,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Any] | None = None,
    ) -> None:
        """Keep each H_g as a matrix."""
        super().__init__(
            model,
            DenseInverse,
            lr=lr,
            damping=damping,
            decay=decay,
            weight_decay=weight_decay,
            update_freq=update_freq,
            quadrature=quadrature,
            scope=scope,
            curvature_batch=curvature_batch,
            params=params,
        )
