"""SNOpt as an ordinary ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from snopt.blocks import check_model
from snopt.preconditioned import PreconditionedOptimizer, as_groups, members
from snopt.preconditioner import Preconditioner, check_range
from snopt.quadrature import Quadrature


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
        groups = as_groups(model, params)
        preconditioner = Preconditioner(
            model,
            eps=eps,
            update_freq=update_freq,
            alpha=alpha,
            quadrature=quadrature,
            scope=scope,
            time_correlation=time_correlation,
            curvature_batch=curvature_batch,
            params=members(groups),
        )
        if base is None:
            base, base_options["momentum"] = torch.optim.SGD, momentum
        elif momentum:
            raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
        if weight_decay:
            base_options["weight_decay"] = weight_decay
        super().__init__(
            preconditioner, base(groups, lr=lr, **base_options), {"damping": eps, "alpha": alpha}
        )
        for group in self.param_groups:
            check_range(eps=group["damping"], alpha=group["alpha"])
