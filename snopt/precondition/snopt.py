"""SNOpt as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.quadrature import Quadrature
from snopt.precondition.base import PreconditionedOptimizer, as_groups, members
from snopt.precondition.preconditioner import Preconditioner
from snopt.precondition.schedules import Refresh, Schedule
from snopt.precondition.trust_region import Comparison, TrustRegion
from snopt.precondition.weights import check_model
from snopt.validate import check_choice, check_range

MOMENTUM_ON = ("step", "gradient")


class SNOpt(PreconditionedOptimizer[Preconditioner]):
    """Second-order Neural ODE optimizer (Liu, Chen, Theodorou, NeurIPS 2021).

    Preconditions the gradient of every Linear and Conv2d layer with Kronecker factors that are
    integrated along the ODE's backward pass (Gauss-Newton curvature, ``empirical`` in the sense
    that the labels are the data's), then lets a base optimizer take the step::

        optimizer = SNOpt(model, lr=0.02, eps=0.05, update_freq=100)
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)   # solved with snopt.odeint_adjoint, odeint or ODEBlock
            loss.backward()
            optimizer.step()

    The loss must be the mean over the batch: per-sample gradients are recovered by multiplying with
    the batch size. After :meth:`step`, ``.grad`` holds the preconditioned gradient.

    With loss scaling call ``scaler.step(optimizer)`` as usual; after an ``unscale_`` of your own
    (for clipping) the scale is no longer known, so set ``optimizer.loss_scale =
    scaler.get_scale()`` before ``scaler.step``. An SNOpt cannot be copied or pickled, since it
    holds hooks on its model: make a new one and load its ``state_dict``.

    ``param_groups`` hold the base optimizer's settings and, per group, ``damping`` (the argument
    ``eps``; another name because Adam's groups have an ``eps`` of their own) and ``alpha``.

    The options from ``curvature`` on go beyond the paper; their defaults are the paper's method.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate.
        momentum: momentum of SGD on the preconditioned gradient.
        weight_decay: the base optimizer's weight decay; with SGD it is added to the preconditioned
            gradient, as in the paper's experiments.
        eps: damping ε > 0 (paper: 0.03 to 0.1), or a function of the number of steps taken, such as
            :class:`snopt.Exponential`.
        update_freq: steps between two refreshes of factors and bases (paper: 100 to 250), or a rule
            (:class:`snopt.DenseThenSparse`, :class:`snopt.WhenStale`).
        alpha: decay of the second moment in the eigenbasis, in [0, 1] (paper: 0.75).
        quadrature: nodes on each smooth piece of a solve; None means ``gauss_legendre(4)``; the
            paper's is ``uniform(0.01)``.
        scope: ``"all"``, or ``"ode"`` to precondition only layers inside an ODE.
        time_correlation: see :class:`snopt.Preconditioner`.
        curvature_batch: rows of the batch used for the factors; None means all.
        base: optimizer class for the step itself; None means SGD.
        params: parameters or parameter groups to train; None means all of the model.
        curvature: ``"empirical"``; ``"mc"`` (labels drawn from the model) or ``"ggn"`` (exact loss
            Hessian, one backward pass for each output) need :meth:`backward`.
        samples: labels drawn for each row, with ``mc``.
        momentum_on: ``"step"``, or ``"gradient"`` to average before preconditioning.
        trust_region: adapts the damping; needs ``step(evaluate=...)``.
        factor_decay: see :class:`snopt.Preconditioner`, as for the next four.
        carry_moment: whether S is turned into the new bases at a refresh.
        exponent: p of the step R / (S + ε)ᵖ.
        relative_damping: whether ε is in units of the mean of each layer's S.
        kl_clip: bound on the estimated change in Kullback-Leibler divergence.
        base_options: further arguments of the base optimizer, such as ``nesterov`` or ``betas``.

    Raises:
        TypeError: if ``model`` is no module, or the base optimizer does not know an option.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.02,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float | Schedule = 0.05,
        update_freq: int | Refresh = 100,
        alpha: float = 0.75,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        time_correlation: str = "full",
        curvature_batch: int | None = None,
        base: Callable[..., Optimizer] | None = None,
        params: Iterable[Any] | None = None,
        curvature: str = "empirical",
        samples: int = 1,
        momentum_on: str = "step",
        trust_region: TrustRegion | None = None,
        factor_decay: float = 0.0,
        carry_moment: bool = False,
        exponent: float = 1.0,
        relative_damping: bool = False,
        kl_clip: float | None = None,
        **base_options: Any,
    ) -> None:
        """Set up the base optimizer and the preconditioner on shared parameter groups."""
        check_model(model)
        check_choice("momentum_on", momentum_on, MOMENTUM_ON)
        if base is not None and momentum and momentum_on == "step":
            raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
        self.eps_schedule = eps if callable(eps) else None
        if self.eps_schedule is not None and trust_region is not None:
            raise ValueError("eps is a schedule or follows the trust region, not both")
        damping = eps(0) if callable(eps) else eps
        before = momentum if momentum_on == "gradient" else 0.0
        groups = as_groups(model, params)
        preconditioner = Preconditioner(
            model,
            eps=damping,
            update_freq=update_freq,
            alpha=alpha,
            quadrature=quadrature,
            scope=scope,
            time_correlation=time_correlation,
            curvature_batch=curvature_batch,
            params=members(groups),
            factor_decay=factor_decay,
            carry_moment=carry_moment,
            exponent=exponent,
            relative_damping=relative_damping,
            momentum=before,
            kl_clip=kl_clip,
        )
        if base is None:
            base, base_options["momentum"] = torch.optim.SGD, momentum - before
        if weight_decay:
            base_options["weight_decay"] = weight_decay
        super().__init__(
            preconditioner,
            base(groups, lr=lr, **base_options),
            {"damping": damping, "alpha": alpha},
            curvature=curvature,
            samples=samples,
        )
        for group in self.param_groups:
            check_range(eps=group["damping"], alpha=group["alpha"])
        self.trust_region = trust_region
        self.rejected = 0
        self.ratio: float | None = None
        self._momentum = before
        self._evaluate: Callable[[], Tensor] | None = None

    @property
    def wants_evaluation(self) -> bool:
        """Whether the coming step needs ``step(evaluate=...)``."""
        region = self.trust_region
        return region is not None and self.preconditioner.steps % region.every == 0

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        evaluate: Callable[[], Tensor] | None = None,
    ) -> Any:
        """Precondition the gradients and take the base optimizer's step.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.
            evaluate: returns the loss on this step's batch, without gradients; the trust region
                needs it on the steps where ``wants_evaluation`` is true.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: if the trust region needs ``evaluate`` and there is none.
        """
        if self.wants_evaluation and evaluate is None:
            raise ValueError(
                "the trust region compares losses: call step(evaluate=...) with a function that"
                " returns the loss on this step's batch"
            )
        self._evaluate = evaluate if self.wants_evaluation else None
        return super().step(closure)

    def _take_step(self, loss_scale: float | Tensor) -> None:
        preconditioner = self.preconditioner
        if self.eps_schedule is not None:
            for group in self.param_groups:
                group["damping"] = self.eps_schedule(preconditioner.steps)
        comparison = None
        if self._evaluate is not None:
            comparison = Comparison(members(self.param_groups), self._evaluate)
        preconditioner.step(self.param_groups, loss_scale=loss_scale)
        if self._momentum:
            self._average_the_rest()
        self.base.step()
        if comparison is not None:
            self._follow(comparison)

    def _average_the_rest(self) -> None:
        """Give parameters that are not preconditioned the same momentum as the others."""
        treated = self.preconditioner.treated
        for p in members(self.param_groups):
            if p.grad is not None and p not in treated:
                buffer = self.state[p].setdefault("gradient_momentum", torch.zeros_like(p))
                p.grad.copy_(buffer.mul_(self._momentum).add_(p.grad))

    def _follow(self, comparison: Comparison) -> None:
        """Adapt the damping to how well the model predicted; take a bad step back."""
        region = self.trust_region
        assert region is not None  # noqa: S101 - a comparison is made for it alone
        self.ratio = comparison.ratio(self.preconditioner.quadratic)
        for group in self.param_groups:
            group["damping"] = region.adapted(group["damping"], self.ratio)
        if region.is_stale(self.ratio):
            self.preconditioner.refresh_soon()
        if not region.accepts(comparison.loss_before, comparison.loss_after):
            comparison.undo()
            self._forget_momentum()
            self.rejected += 1

    def _forget_momentum(self) -> None:
        """Let the next step start from rest: the momentum led to a step that was taken back."""
        for state in self.state.values():
            for name in ("momentum_buffer", "gradient_momentum"):
                if isinstance(state.get(name), Tensor):
                    state[name].zero_()
        self.preconditioner.forget_momentum()

    def metrics(self) -> dict[str, float]:
        """Return what a log may want to show: refreshes, failures, steps taken back, damping."""
        found = {
            "refreshes": float(self.preconditioner.refreshes),
            "failures": float(self.preconditioner.failures),
        }
        if self.eps_schedule is not None or self.trust_region is not None:
            found["damping"] = float(self.param_groups[0]["damping"])
        if self.trust_region is not None:
            found["rejected"] = float(self.rejected)
            # No ratio where the model predicts no decrease or the loss cannot be evaluated.
            if self.ratio is not None and math.isfinite(self.ratio):
                found["ratio"] = self.ratio
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state with one more entry, ``"preconditioner"``."""
        return {**super().state_dict(), "rejected": self.rejected}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if the state is another optimizer's or another model's.
        """
        own = {k: v for k, v in state_dict.items() if k != "rejected"}
        super().load_state_dict(own)
        self.rejected = int(state_dict.get("rejected", 0))
