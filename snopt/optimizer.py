"""SNOpt as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.kronecker import KroneckerPair
from snopt.preconditioner import Preconditioner, check_model, check_range
from snopt.quadrature import Quadrature


class SNOpt(Optimizer):
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

    Args:
        model: the model whose parameters are trained.
        lr: learning rate.
        momentum: momentum of SGD on the preconditioned gradient.
        weight_decay: the base optimizer's weight decay; with SGD it is added to the preconditioned
            gradient, as in the paper's experiments.
        eps: damping ε > 0 (paper: 0.03 to 0.1).
        update_freq: steps between two refreshes of factors and bases (paper: 100 to 250).
        alpha: decay of the second moment in the eigenbasis, in [0, 1] (paper: 0.75).
        quadrature: nodes on each smooth piece of a solve; None means ``gauss_legendre(4)``; the
            paper's is ``uniform(0.01)``.
        scope: ``"all"``, or ``"ode"`` to precondition only layers inside an ODE.
        time_correlation: see :class:`snopt.Preconditioner`.
        curvature_batch: rows of the batch used for the factors; None means all.
        base: optimizer class for the step itself; None means SGD.
        params: parameters or parameter groups to train; None means all of the model.
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
        eps: float = 0.05,
        update_freq: int = 100,
        alpha: float = 0.75,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        time_correlation: str = "full",
        curvature_batch: int | None = None,
        base: Callable[..., Optimizer] | None = None,
        params: Iterable[Any] | None = None,
        **base_options: Any,
    ) -> None:
        """Set up the base optimizer and the preconditioner on shared parameter groups."""
        check_model(model)
        groups = _as_groups(model.parameters() if params is None else params)
        self.preconditioner = Preconditioner(
            model,
            eps=eps,
            update_freq=update_freq,
            alpha=alpha,
            quadrature=quadrature,
            scope=scope,
            time_correlation=time_correlation,
            curvature_batch=curvature_batch,
            params=[p for group in groups for p in group["params"]],
        )
        if base is None:
            base, base_options["momentum"] = torch.optim.SGD, momentum
        elif momentum:
            raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
        if weight_decay:
            base_options["weight_decay"] = weight_decay
        self.base = base(groups, lr=lr, **base_options)
        closure = inspect.signature(self.base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(self.base).__name__} evaluates the loss more than once in a step and"
                " cannot be the base optimizer"
            )
        self.loss_scale: float | None = None
        super().__init__(
            self.base.param_groups, {**self.base.defaults, "damping": eps, "alpha": alpha}
        )
        for group in self.param_groups:
            check_range(eps=group["damping"], alpha=group["alpha"])
        # One list and one state for both: schedulers and checkpoints see what the base uses.
        self.base.param_groups = self.param_groups
        self.state = self.base.state

    @property
    def curvature(self) -> Mapping[nn.Module, KroneckerPair]:
        """Layer → factors (``.A``, ``.B``, ``.weight``), for the layers that have some."""
        return self.preconditioner.curvature

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition the gradients and take the base optimizer's step.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = 1.0
        if hasattr(self, "found_inf"):  # torch.amp.GradScaler is stepping us
            if bool(self.found_inf):
                self.preconditioner.clear()
                return loss
            scale = self._unscale()
        self.preconditioner.step(self.param_groups, loss_scale=scale)
        self.base.step()
        return loss

    def _unscale(self) -> Any:
        """Return the scaler's scale; divide the gradients by it unless that has been done."""
        scale = getattr(self, "grad_scale", None)
        if scale is None:
            if self.loss_scale is None and self.preconditioner.due:
                raise RuntimeError(
                    "the gradients were unscaled before step(), so the scale of the curvature is"
                    " unknown: set optimizer.loss_scale = scaler.get_scale() before scaler.step()"
                )
            return 1.0 if self.loss_scale is None else self.loss_scale
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        torch._foreach_div_(grads, scale)
        return scale

    # Tells GradScaler to hand us the scale instead of unscaling: the curvature needs it too.
    _step_supports_amp_scaling = True

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "SNOpt cannot be copied or pickled: it holds hooks on its model; make a new one for the"
            " copied model and use state_dict() and load_state_dict()"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and the curvature gathered with them."""
        super().zero_grad(set_to_none)
        self.preconditioner.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state with one more entry, ``"preconditioner"``."""
        return {**super().state_dict(), "preconditioner": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if the state is another optimizer's or another model's.
        """
        if "preconditioner" not in state_dict:
            raise ValueError("the state is not SNOpt's: it has no entry 'preconditioner'")
        own = {k: v for k, v in state_dict.items() if k != "preconditioner"}
        self.preconditioner.load_state_dict(state_dict["preconditioner"])
        self.base.load_state_dict(own)
        self.param_groups = self.base.param_groups
        self.state = self.base.state


def _as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Return parameters or parameter groups as groups, iterators made into lists."""
    entries = list(params)
    groups = [e for e in entries if isinstance(e, dict)]
    if not groups:
        return [{"params": entries}]
    if len(groups) < len(entries):
        raise TypeError("params must hold either parameters or parameter groups, not both")
    members = [g["params"] for g in groups]
    lists = [[m] if isinstance(m, Tensor) else list(m) for m in members]
    return [{**g, "params": m} for g, m in zip(groups, lists, strict=True)]
