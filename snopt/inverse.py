"""Inverses of positive definite factors: batched by size, not given up at the first failure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snopt.robust import by_size, robustly


def inverses(matrices: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the inverses of many positive definite matrices, those of one size at once.

    Args:
        matrices: each (groups, d, d).

    Returns:
        For each matrix its inverse, (groups, d, d); None where it is not finite, not positive
        definite, or every attempt failed.
    """
    found = by_size(matrices, lambda M: (inverse(M),))
    return [None if parts is None else parts[0] for parts in found]


@torch.no_grad()
def inverse(M: Tensor) -> Tensor:
    """Return the inverse of positive definite matrices by Cholesky decomposition.

    Args:
        M: matrices of shape (…, d, d), symmetric up to rounding.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails (:func:`robustly`).
    """
    return robustly(M, _cholesky_inverse)[0]


def _cholesky_inverse(M: Tensor) -> tuple[Tensor]:
    return (torch.cholesky_inverse(torch.linalg.cholesky(M)),)
