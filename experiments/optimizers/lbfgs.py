"""L-BFGS (Liu & Nocedal 1989), as in torch, on parameters that may be frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from snopt.validate import check_choice, check_count, check_number


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS; a step evaluates one batch's loss many times, through the closure.

    Its history runs across batches, so the curvature pairs contain the difference between two
    batches' gradients too: it is made for large batches, or one batch.

    After a line search that found no better point the history is forgotten, because torch would try
    the same direction for ever. This happens where gradient and loss disagree, as with a coarse
    adjoint; a smaller tolerance helps more.

    Args:
        params: the parameters, one group; frozen ones are left alone.
        **options: see :class:`torch.optim.LBFGS`.

    Raises:
        ValueError: an argument is out of range; the message names the range.
    """

    def __init__(self, params: Iterable[Tensor], **options: Any) -> None:
        """Check what torch does not."""
        for name in ("max_iter", "max_eval", "history_size"):
            if options.get(name) is not None:
                check_count(name, options[name])
        for name in ("tolerance_grad", "tolerance_change"):
            check_number(name, options.get(name, 0.0), "[0, inf)")
        if options.get("line_search_fn") is not None:
            check_choice("line_search_fn", options["line_search_fn"], ("strong_wolfe", "null"))
        params = list(params)
        frozen = [isinstance(p, Tensor) and not p.requires_grad for p in params]
        super().__init__([p for p, skip in zip(params, frozen, strict=True) if not skip], **options)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations on one batch; return the loss before the step.

        Args:
            closure: computes loss and gradients at the present weights and returns the loss.
        """
        loss = super().step(closure)
        state = self.state[self._params[0]]
        if self.param_groups[0]["line_search_fn"] is not None and float(state.get("t", 1.0)) == 0.0:
            state.clear()
        return loss
