"""Decompositions of symmetric matrices that are not given up at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.layers import at_least_float32

Tensors = tuple[Tensor, ...]
LARGE = 128
"""Size of a matrix from which on it is decomposed alone."""


def robustly(M: Tensor, decompose: Callable[[Tensor], Tensors]) -> Tensors:
    """Return ``decompose(M)`` by the first attempt that succeeds.

    Near-singular factors make decompositions fail, on some devices more than on others, so it is
    tried as it is, with a small multiple of the identity added, in float64, and in float64 on the
    CPU.

    Args:
        M: matrices of shape (…, d, d), symmetric up to rounding.
        decompose: what to compute of their lower triangles; fails with
            ``torch.linalg.LinAlgError``.

    Returns:
        What ``decompose`` returned, in the dtype and on the device of ``M``.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails.
    """
    M = at_least_float32(M)
    if not bool(torch.isfinite(M).all()):
        raise ArithmeticError("the matrix has entries that are not finite")
    scale = M.diagonal(dim1=-2, dim2=-1).abs().mean().clamp_min(torch.finfo(M.dtype).tiny)
    jitter = scale * 10 * torch.finfo(M.dtype).eps
    attempts = (
        lambda: M,
        lambda: M + jitter * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device),
        lambda: M.double(),
        lambda: M.double().cpu(),
    )
    for attempt in attempts:
        try:
            found = decompose(attempt())  # type: ignore[no-untyped-call]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if all(bool(torch.isfinite(part).all()) for part in found):
            return tuple(part.to(M) for part in found)
    raise ArithmeticError("no attempt at the decomposition succeeded")


@torch.no_grad()
def by_size(
    matrices: Sequence[Tensor], compute: Callable[[Tensor], Tensors]
) -> list[Tensors | None]:
    """Return ``compute`` of many matrices, small ones of one size in one call.

    Large ones (:data:`LARGE`) gain nothing from company, and would need room for all at once.

    Args:
        matrices: each (groups, d, d).
        compute: maps (n, d, d) to tensors of leading axis n; raises ArithmeticError if it fails.

    Returns:
        For each matrix the tensors with leading axis ``groups``; None where ``compute`` failed.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, M in enumerate(matrices):
        alone = i if M.shape[-1] >= LARGE else None
        alike.setdefault((M.shape[-1], M.dtype, M.device, alone), []).append(i)
    found: list[Tensors | None] = [None] * len(matrices)
    for members in alike.values():
        counts = [matrices[i].shape[0] for i in members]
        own = [matrices[i] for i in members]
        try:
            joint = compute(own[0] if len(own) == 1 else torch.cat(own))
        except ArithmeticError:
            if len(members) > 1:  # one of them is to blame: each for itself
                for i in members:
                    found[i] = by_size([matrices[i]], compute)[0]
            continue
        pieces = zip(*(torch.split(part, counts) for part in joint), strict=True)
        for i, piece in zip(members, pieces, strict=True):
            found[i] = piece
    return found


def symmetric(M: Tensor) -> Tensor:
    """Return (M + Mᵀ) / 2."""
    return torch.add(M, M.mT).div_(2)
