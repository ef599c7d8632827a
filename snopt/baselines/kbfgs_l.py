"""K-BFGS(L): K-BFGS with the output factors' inverses in limited-memory form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from snopt.baselines.kronecker_bfgs import KroneckerBFGS
from snopt.baselines.limited_memory import LimitedInverse
from snopt.curvature.quadrature import Quadrature
from snopt.validate import check_count


class KBFGSL(KroneckerBFGS):
    """K-BFGS(L): K-BFGS that keeps the last pairs of each H_g instead of a matrix.

    The method, its use and all arguments but one are those of
    :class:`snopt.baselines.KBFGS`; until a pair has been
    forgotten the two take the same steps. It pays where a layer has more outputs than ``memory``.

    Args:
        model: the model whose parameters are trained.
        lr: learning rate (authors' code: 0.3).
        damping: λ in (0, 1) (authors' code: 0.3).
        decay: β in [0, 1) of all averages (authors' code: 0.9).
        memory: pairs (s, y) kept for each layer, at least 1 (authors' code: 100).
        weight_decay: L2 penalty, added to the gradient before the average (authors' code: 1e-5).
        update_freq: steps between two updates of A and the inverses (authors' code: 1).
        quadrature: nodes on each smooth piece of a solve; None means ``gauss_legendre(4)``.
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
        memory: int = 100,
        weight_decay: float = 0.0,
        update_freq: int = 1,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Any] | None = None,
    ) -> None:
        """Keep each H_g as its last pairs."""
        check_count("memory", memory)
        super().__init__(
            model,
            partial(LimitedInverse, memory=memory),
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
