"""Averages of factors, for K-FAC and EKFAC."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snopt.curvature.factors import Factors
from snopt.linalg import symmetric


class FactorAverage:
    """Averages of one layer's A and B.

    The k-th update keeps the old value with weight min(1 - 1/k, decay): a plain mean at first, an
    exponential one later (Martens and Grosse 2015, section 5). ``batch``: rows of the last update.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.A: Tensor | None = None
        self.B: Tensor | None = None
        self.updates = 0
        self.batch = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the layer's matrix, (groups, out / groups, features)."""
        A, B = self.both()
        return A.shape[0], B.shape[-1], A.shape[-1]

    def both(self) -> tuple[Tensor, Tensor]:
        """Return A and B; raise ValueError if there are none yet."""
        if self.A is None or self.B is None:
            raise ValueError("this layer has no factors yet: they are computed in step()")
        return self.A, self.B

    @property
    def factors(self) -> Factors:
        """The averages as factors."""
        return Factors(*self.both(), 1.0, self.batch)

    def update(self, factors: Factors, decay: float) -> bool:
        """Take in factors, sums over as many uses as their weight; ``decay`` lies in [0, 1).

        Returns:
            Whether they were taken: factors that are not finite are left out.
        """
        A, B = symmetric(factors.A / factors.weight), symmetric(factors.B)
        if not bool(torch.isfinite(A).all() & torch.isfinite(B).all()):
            return False
        if self.A is None or self.B is None or self.A.shape != A.shape:
            # Another shape: the bias has been frozen or freed in between.
            self.A, self.B, self.updates = A, B, 0
        self.updates += 1
        rate = min(1 - 1 / self.updates, decay)
        self.A, self.B = torch.lerp(A, self.A, rate), torch.lerp(B, self.B, rate)
        self.batch = factors.batch
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        return {"A": self.A, "B": self.B, "updates": self.updates, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        self.A, self.B = (moved(state.get(name), device) for name in ("A", "B"))
        self.updates, self.batch = int(state["updates"]), int(state["batch"])


def moved(value: Tensor | None, device: torch.device) -> Tensor | None:
    """Return a copy of a tensor on ``device``; None stays None."""
    return None if value is None else value.to(device, copy=True)
