"""Eigendecompositions of factors: batched by size, and not given up at the first failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from snopt.robust import by_size, robustly

Basis = tuple[Tensor, Tensor]


def eigenbases(matrices: Sequence[Tensor]) -> list[Basis | None]:
    """Return eigenvalues and eigenvectors of many symmetric matrices, those of one size at once.

    Args:
        matrices: each (groups, d, d).

    Returns:
        For each matrix (groups, d) ascending eigenvalues and (groups, d, d) eigenvectors; None
        where it is not finite or every attempt failed.
    """
    return cast("list[Basis | None]", by_size(matrices, eigenbasis))


@torch.no_grad()
def eigenbasis(M: Tensor) -> Basis:
    """Return eigenvalues (…, d), ascending, and eigenvectors (…, d, d) of symmetric matrices.

    Args:
        M: matrices of shape (…, d, d), symmetric up to rounding.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails (:func:`robustly`).
    """
    values, vectors = robustly(M, _eigh)
    return values, vectors


def _eigh(M: Tensor) -> Basis:
    values, vectors = torch.linalg.eigh(M)
    return values, vectors
