"""Working with some of a symmetric matrix's eigenvectors, those of its range.

U, (groups, d, k), has the eigenvectors whose eigenvalue is not zero. Those of the null space are
not determined, so nothing should depend on their choice: what is known of them is one number for
all, its mean over the d - k directions. A moment S, one row for each eigenvector, then has 1 + k
rows: the mean of the null space first, as its eigenvalue is the smallest, then those of U.

A *whole* basis has k = d and no row for a null space. All functions take both kinds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def null_directions(U: Tensor) -> int:
    """Return d - k, 0 for a whole basis."""
    return U.shape[-2] - U.shape[-1]


def split(U: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """Return Uᵀ M and (I - U Uᵀ) M, the part of the columns that is outside; overwrites ``M``.

    Args:
        U: a part of a basis, (groups, d, k).
        M: (groups, d, n), contiguous.
    """
    inside = U.mT @ M
    return inside, M.baddbmm_(U, inside, alpha=-1)


def add_squares(S: Tensor, U: Tensor, inside: Tensor, outside: Tensor, weight: float) -> None:
    """Add weight × the squares of a matrix in the basis to S, in place.

    Args:
        S: (groups, 1 + k, n).
        U: (groups, d, k).
        inside: (groups, k, n), see :func:`split`.
        outside: (groups, d, n), likewise.
        weight: factor on the squares.
    """
    S[..., 1:, :].addcmul_(inside, inside, value=weight)
    # The norm does not depend on the basis: the mean over any one of the null space.
    squares = torch.linalg.vector_norm(outside, dim=-2, keepdim=True).square_()
    S[..., :1, :].add_(squares, alpha=weight / null_directions(U))


def whole(S: Tensor, U: Tensor) -> Tensor:
    """Return S with one row for each of d directions, (groups, d, n), the null space first."""
    null = null_directions(U)
    if null == 0:
        return S
    return torch.cat([S[..., :1, :].expand(*S.shape[:-2], null, -1), S[..., 1:, :]], dim=-2)


def averaged(S: Tensor, U: Tensor) -> Tensor:
    """Return the inverse of :func:`whole`: the mean of the null space's rows, then the others."""
    null = null_directions(U)
    if null == 0:
        return S
    return torch.cat([S[..., :null, :].mean(-2, keepdim=True), S[..., null:, :]], dim=-2)


def total(S: Tensor, U: Tensor) -> Tensor:
    """Return the sum of :func:`whole`, a scalar tensor."""
    null = null_directions(U)
    return S.sum() if null == 0 else S[..., :1, :].sum() * null + S[..., 1:, :].sum()


def mean(S: Tensor, U: Tensor) -> Tensor:
    """Return the mean of :func:`whole`, a scalar tensor."""
    if null_directions(U) == 0:
        return S.mean()
    return total(S, U).div_(U.shape[0] * U.shape[-2] * S.shape[-1])


def completed(U: Tensor) -> Tensor:
    """Return a whole basis, (groups, d, d), that ends with U and starts with any null space's."""
    if null_directions(U) == 0:
        return U
    Q, _ = torch.linalg.qr(U, mode="complete")
    return torch.cat([Q[..., U.shape[-1] :], U], dim=-1)


def overlaps(new: Tensor, old: Tensor) -> Tensor:
    """Return the squares of the inner products of two bases' vectors, (…, rows of S, rows of S).

    Times an S in the old basis it is the diagonal, in the new one, of the matrix that is diagonal
    in the old one. Where the null space has one row, it is a multiple of the identity in the old
    null space, and the mean over the new one.

    Args:
        new: (groups, d, k').
        old: (groups, d, k).
    """
    squares = (new.mT @ old).square_()
    null_new, null_old = null_directions(new), null_directions(old)
    if null_old > 0:  # what of a vector is not in the old range is in the old null space
        rest = (1 - squares.sum(-1, keepdim=True)).clamp_min_(0)
        squares = torch.cat([rest, squares], dim=-1)
    if null_new > 0:
        # Over a whole basis a unit vector's squares sum to 1, those of the null space to d - k.
        sums = squares.new_ones(squares.shape[-1])
        if null_old > 0:
            sums[0] = null_old
        rest = (sums - squares.sum(-2)).clamp_min_(0).div_(null_new)
        squares = torch.cat([rest.unsqueeze(-2), squares], dim=-2)
    return squares
