"""SNOpt: the preconditioner, and the ``torch.optim.Optimizer`` that puts it before another one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.factors import Accumulator, Bases, Factors, ThinSums, bases_of
from snopt.linalg import eigenbases
from snopt.precondition.base import Layerwise, count, split_options
from snopt.precondition.kronecker import PARTS, KroneckerPair, Workspace
from snopt.precondition.optimizer import (
    PreconditionedOptimizer,
    as_groups,
    base_step,
)
from snopt.precondition.schedules import Comparison, DenseThenSparse, TrustRegion
from snopt.precondition.weights import Block, members
from snopt.validate import check_choice, check_flag, check_number

MOMENTUM_ON = ("step", "gradient")

STEEP = 100.0
"""Mean of S in units of ε from which on, if it is so in every layer, the damping is far too small.

In training that works it is below 1 in some layer.
"""


class Preconditioner(Layerwise[KroneckerPair]):
    """Replaces the gradient of every Linear and Conv2d layer by B⁻¹ G A⁻¹, in place.

    Call :meth:`step` between ``backward()`` and the base optimizer's step; :class:`snopt.SNOpt`
    does both. Parameters of other kinds, layers whose weight is frozen or computed by a
    parametrization, and layers that never received data keep their gradient.

    Factors are gathered in the backward passes before every ``update_freq``-th step, the first one
    included. Gradient accumulation: microbatches of equal size, whatever their number.

    The options from ``factor_decay`` on go beyond the paper; their defaults are the paper's method.

    Args:
        model: the model; its layers may be inside or outside ODE solves, used once or many times.
        eps: damping ε > 0, in units of the squared per-sample gradient.
        update_freq: steps between two refreshes of the factors and their bases, at least 1; or a
            rule, :class:`snopt.DenseThenSparse`.
        alpha: decay of the running second moment, in [0, 1].
        factor_decay: weight in [0, 1) of the old factors in the new ones at a refresh.
        carry_moment: whether S is turned into the new bases at a refresh instead of starting anew.
        exponent: p in (0, 1] of the step R / (S + ε)ᵖ.
        relative_damping: whether ε is in units of the mean of each layer's S.
        momentum: μ in [0, 1) of momentum on the gradient, before it is preconditioned.
        report_steps: whether to keep what each layer's step is made of (:attr:`parts`).
        layerwise: ``quadrature``, nodes on each smooth piece of a solve (default
            ``gauss_legendre(4)``; the paper's is ``uniform(0.01)``); ``scope``, ``"all"``, or
            ``"ode"`` for layers inside an ODE solve only; ``curvature_batch``, rows of the batch
            from which the factors are made, evenly spaced (default all); ``params``, the parameters
            that may be preconditioned (default all of the model).

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    counts_rows = True
    COUNTS: ClassVar[Mapping[str, Any]] = {
        "steps": 0,
        "since": 0,
        "refreshes": 0,
        "requested": False,
        "rejected": 0,
    }

    since_refresh, refreshes, _requested = count("since"), count("refreshes"), count("requested")
    rejected = count("rejected")  # steps that a trust region took back

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.05,
        update_freq: int | DenseThenSparse = 100,
        alpha: float = 0.75,
        factor_decay: float = 0.0,
        carry_moment: bool = False,
        exponent: float = 1.0,
        relative_damping: bool = False,
        momentum: float = 0.0,
        report_steps: bool = False,
        **layerwise: Any,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_number("factor_decay", factor_decay, "[0, 1)")
        check_flag("carry_moment", carry_moment)
        check_flag("report_steps", report_steps)
        self.rule = update_freq if isinstance(update_freq, DenseThenSparse) else None
        self.factor_decay, self.carry_moment = factor_decay, carry_moment
        self.momentum, self.report_steps = momentum, report_steps
        settings = {
            "damping": eps,
            "alpha": alpha,
            "exponent": exponent,
            "relative_damping": relative_damping,
        }
        self._steep = 0  # looks in a row at which S was far above the damping
        super().__init__(
            model,
            partial(KroneckerPair, Workspace()),
            settings,
            update_freq=1 if isinstance(update_freq, DenseThenSparse) else update_freq,
            # An average of old and new factors has no few columns.
            accumulator=ThinSums if factor_decay == 0 else Accumulator,
            **layerwise,
        )

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Refresh factors and bases if it is time, then precondition the gradients in place.

        Args:
            param_groups: groups whose ``damping`` (ε), ``alpha``, ``exponent`` and
                ``relative_damping`` override the defaults for the layers whose weight they hold.
            loss_scale: what the loss was multiplied with for the backward pass (loss scaling in
                half precision) and the gradients have been divided by since.
        """
        rows = self.rows()
        refreshed = self.takes_in
        if refreshed:
            self._refresh(loss_scale)
        found = self.with_gradient(param_groups)
        for block, settings in found:
            block.state.batch = rows.get(block.name, block.state.batch)
            buffer = block.state.buffer()
            step = block.state.precondition(
                block.gradient(buffer.shape[-1], buffer),
                eps=settings["damping"],
                alpha=settings["alpha"],
                exponent=settings["exponent"],
                relative=settings["relative_damping"],
                momentum=self._momentum(settings),
                report=self.report_steps,
            )
            block.set_gradient(step)
        if refreshed or self.steps < 10:
            self._check_scale(found)
        self.since_refresh += 1
        self.advance()

    def _check_scale(self, found: Sequence[tuple[Block[KroneckerPair], Mapping[str, Any]]]) -> None:
        """Warn, once, where S ≫ ε in every layer at five such looks in a row.

        The step is then R / S, which goes as 1 / the loss's scale.
        """
        absolute = all(s["exponent"] == 1 and not s["relative_damping"] for _, s in found)
        if "(scale)" in self._told or not (found and absolute):
            return
        least = min(float(block.state.mean) / s["damping"] for block, s in found)
        self._steep = self._steep + 1 if math.isfinite(least) and least > STEEP else 0
        if self._steep == 5:
            self._told.add("(scale)")
            warnings.warn(
                f"S is {least:.0e} times the damping eps or more in every layer, and the step goes"
                " as 1 / the loss's scale: training may hardly move. Divide the loss by about"
                f" {math.sqrt(least):.0e}, as means in place of sums over times or outputs do",
                RuntimeWarning,
                stacklevel=6,
            )

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if a setting of a parameter group is out of range."""
        check_number("eps (damping)", settings["damping"], "(0, inf)")
        check_number("alpha (decay of the second moment)", settings["alpha"], "[0, 1]")
        check_number("exponent", settings["exponent"], "(0, 1]")
        check_flag("relative_damping", settings["relative_damping"])
        check_number("momentum", self._momentum(settings), "[0, 1)")

    def _momentum(self, settings: Mapping[str, Any]) -> float:
        # By hand, a group's momentum is that of the optimizer that comes after.
        own = "momentum" in getattr(self, "settings", ())
        return float(settings["momentum"]) if own else self.momentum

    def _refresh(self, loss_scale: float | Tensor) -> None:
        gathered = self.gathered(loss_scale)
        states = [self.blocks[name].state for name in gathered]
        factors = [
            state.blend(new, self.factor_decay)
            for state, new in zip(states, gathered.values(), strict=True)
        ]
        bases = self.bases(factors)
        for state, own, found in zip(states, factors, bases, strict=True):
            state.refresh(own, found, self.carry_moment)
        self.since_refresh, self._requested = 0, False
        self.refreshes += 1

    def bases(self, factors: Sequence[Factors]) -> list[Bases]:
        """Return the bases in which S is kept: those of A and of B."""
        return bases_of(factors, eigenbases if self.ranks is None else self.ranks.eigenbases)

    def _wants_curvature(self) -> bool:
        if self._requested:
            return True
        if self.rule is None:
            return super()._wants_curvature()
        return self.rule.due(self.steps, self.since_refresh)

    def refresh_soon(self) -> None:
        """Take in new factors with the next step, whatever the rule says."""
        self._requested = True
        self.resume()

    @property
    def parts(self) -> dict[str, dict[str, float]]:
        """Layer → what its last step was made of, with ``report_steps``; see ``parts_of_step``."""
        found = {name: block.state.parts for name, block in self.blocks.items()}
        lists = {name: own.tolist() for name, own in found.items() if own is not None}
        return {n: dict(zip(PARTS, own, strict=True)) for n, own in lists.items()}

    def forget_momentum(self) -> None:
        """Set the momentum of the gradients to zero."""
        for block in self.blocks.values():
            block.state.forget_momentum()

    @property
    def treated(self) -> set[Tensor]:
        """The parameters that are being preconditioned: those of layers that have factors."""
        ready = [b for b in self.blocks.values() if b.state.ready and b.name not in self.plain]
        return {p for block in ready for p in block.members}

    @torch.no_grad()
    def quadratic(self, changes: Mapping[Tensor, Tensor]) -> Tensor:
        """Return δᵀ Q δ, a scalar tensor, over all layers that have factors.

        Args:
            changes: parameter → change, for all parameters of those layers.
        """
        total = torch.zeros(())
        for block in self.blocks.values():
            if block.state.ready:
                D = block.matrix(changes.get, block.state.shape[-1])
                total = total + block.state.quadratic(D)
        return total


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

    With loss scaling call ``scaler.step(optimizer)`` as usual. If you call ``unscale_`` yourself
    (for clipping), the scale is no longer known: set ``optimizer.loss_scale = scaler.get_scale()``
    before ``scaler.step``. A copy works on a copy of the model:
    ``copy.deepcopy((model, optimizer))``.

    ``param_groups`` hold the base optimizer's settings and, per group, ``damping`` (the argument
    ``eps``; another name because Adam's groups have an ``eps``), ``alpha``, ``exponent``,
    ``relative_damping``, and ``momentum`` if it is that of the gradient. Where the base has a
    setting of the same name (RMSprop's ``alpha``), its own is called ``alpha_of_base``.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate.
        momentum: momentum of SGD on the preconditioned gradient.
        weight_decay: the base optimizer's weight decay; with SGD it is added to the preconditioned
            gradient, as in the paper's experiments.
        eps: damping ε > 0 (paper: 0.03 to 0.1), or a function of the number of steps taken, for
            groups without a ``damping`` of their own.
        update_freq: steps between two refreshes of factors and bases (paper: 100 to 250), or a rule
            (:class:`snopt.DenseThenSparse`).
        alpha: decay of the second moment in the eigenbasis, in [0, 1] (paper: 0.75).
        base: optimizer class for the step itself; None means SGD.
        params: parameters or parameter groups to train; None means all of the model.
        curvature: ``"empirical"``; ``"mc"`` (labels drawn from the model) or ``"ggn"`` (exact loss
            Hessian, one backward pass for each output) go beyond the paper and need
            :meth:`backward`.
        samples: labels drawn for each row, with ``mc``.
        momentum_on: ``"step"``, or ``"gradient"`` to average before preconditioning.
        trust_region: adapts the damping; needs ``step(evaluate=...)``.
        options: ``quadrature``, ``scope``, ``curvature_batch``, ``factor_decay``, ``carry_moment``,
            ``exponent``, ``relative_damping``, ``report_steps`` as for
            :class:`snopt.Preconditioner`; all others are the base optimizer's, such as ``nesterov``
            or ``betas``.

    Raises:
        TypeError: if ``model`` is no module, or the base optimizer does not know an option.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    method: type[Preconditioner] = Preconditioner
    """What subclasses may replace."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.02,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float | Callable[[int], float] = 0.05,
        update_freq: int | DenseThenSparse = 100,
        alpha: float = 0.75,
        base: Callable[..., Optimizer] | None = None,
        params: Iterable[Any] | None = None,
        curvature: str = "empirical",
        samples: int = 1,
        momentum_on: str = "step",
        trust_region: TrustRegion | None = None,
        **options: Any,
    ) -> None:
        """Set up the base optimizer and the preconditioner on shared parameter groups."""
        check_choice("momentum_on", momentum_on, MOMENTUM_ON)
        if callable(eps) and trust_region is not None:
            raise ValueError("eps is a schedule or follows the trust region, not both")
        self.eps_schedule = eps if callable(eps) else None
        first = eps(0) if callable(eps) else eps
        before = momentum if momentum_on == "gradient" else 0.0
        groups = as_groups(model, params)
        own, rest = split_options(Preconditioner, options)
        preconditioner = self.method(
            model,
            eps=first,
            update_freq=update_freq,
            alpha=alpha,
            momentum=before,
            params=members(groups),
            **own,
        )
        if momentum_on == "gradient":
            preconditioner.settings["momentum"] = momentum
        if self.eps_schedule is not None:
            preconditioner.settings["damping_scheduled"] = True
        make_base = base_step(base, lr, momentum - before, weight_decay, rest)
        super().__init__(preconditioner, groups, make_base, curvature=curvature, samples=samples)
        self.trust_region = trust_region
        self.ratio: float | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; a schedule of ε leaves a ``damping`` of its own alone."""
        if self.eps_schedule is not None:
            param_group.setdefault("damping_scheduled", "damping" not in param_group)
        super().add_param_group(param_group)

    @property
    def rejected(self) -> int:
        """Steps that the trust region took back."""
        return int(self.preconditioner.rejected)

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
        compare = self.wants_evaluation
        if compare and evaluate is None:
            raise ValueError(
                "the trust region compares losses: call step(evaluate=...) with a function that"
                " returns the loss on this step's batch"
            )
        loss, scale = self._evaluated(closure)
        if scale is None:
            return loss
        if self.eps_schedule is not None:
            for group in self.param_groups:
                if group["damping_scheduled"]:
                    group["damping"] = self.eps_schedule(self.preconditioner.steps)
        comparison = None
        if compare and evaluate is not None:
            comparison = Comparison(members(self.param_groups), evaluate)
        self._precondition(scale)
        if "momentum" in self.preconditioner.settings:
            self._average_the_rest()
        self._step_base()
        if comparison is not None and self.trust_region is not None:
            self._follow(self.trust_region, comparison)
        return loss

    def _average_the_rest(self) -> None:
        """Give parameters that are not preconditioned the same momentum as the others."""
        treated = self.preconditioner.treated
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else ():
                if p.grad is not None and p not in treated:
                    buffer = self.state[p].setdefault("gradient_momentum", torch.zeros_like(p))
                    p.grad.copy_(buffer.mul_(group["momentum"]).add_(p.grad))

    def _follow(self, region: TrustRegion, comparison: Comparison) -> None:
        """Adapt the damping to how well the model predicted; take a bad step back."""
        self.ratio = comparison.ratio(self.preconditioner.quadratic)
        for group in self.param_groups:
            group["damping"] = region.adapted(group["damping"], self.ratio)
        if region.is_stale(self.ratio):
            self.preconditioner.refresh_soon()
        if region.accepts(comparison.loss_before, comparison.loss_after):
            return
        comparison.undo()
        self.preconditioner.rejected += 1
        # The momentum led to the step that was taken back: the next one starts from rest.
        for state in self.state.values():
            for name in ("momentum_buffer", "gradient_momentum"):
                if isinstance(state.get(name), Tensor):
                    state[name].zero_()
        self.preconditioner.forget_momentum()

    def metrics(self) -> dict[str, float]:
        """Return what a log may want to show: refreshes, failures, steps taken back, damping.

        With ``report_steps`` also what each layer's step was made of, where its gradient is not 0.
        """
        found = {"refreshes": float(self.preconditioner.refreshes), **super().metrics()}
        if self.eps_schedule is not None or self.trust_region is not None:
            found["damping"] = float(self.param_groups[0]["damping"])
        if self.trust_region is not None:
            found["rejected"] = float(self.rejected)
            # No ratio where the model predicts no decrease or the loss cannot be evaluated.
            if self.ratio is not None and math.isfinite(self.ratio):
                found["ratio"] = self.ratio
        for name, parts in self.preconditioner.parts.items():
            found |= {f"{name}/{k}": value for k, value in parts.items() if math.isfinite(value)}
        return found
