"""Eigendecompositions of factors: batched by size, and not given up at the first failure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snopt.layers import at_least_float32

Basis = tuple[Tensor, Tensor]


@torch.no_grad()
def eigenbases(matrices: Sequence[Tensor]) -> list[Basis | None]:
    """Return eigenvalues and eigenvectors of many symmetric matrices, those of one size at once.

    Args:
        matrices: each (groups, d, d).

    Returns:
        For each matrix (groups, d) ascending eigenvalues and (groups, d, d) eigenvectors; None
        where it is not finite or every attempt failed.
    """
    by_size: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for i, M in enumerate(matrices):
        by_size.setdefault((M.shape[-1], M.dtype, M.device), []).append(i)
    found: list[Basis | None] = [None] * len(matrices)
    for members in by_size.values():
        counts = [matrices[i].shape[0] for i in members]
        try:
            values, vectors = eigenbasis(torch.cat([matrices[i] for i in members]))
        except ArithmeticError:
            if len(members) > 1:  # one of them is to blame: each for itself
                for i in members:
                    found[i] = eigenbases([matrices[i]])[0]
            continue
        pieces = zip(torch.split(values, counts), torch.split(vectors, counts), strict=True)
        for i, basis in zip(members, pieces, strict=True):
            found[i] = basis
    return found


@torch.no_grad()
def eigenbasis(M: Tensor) -> Basis:
    """Return eigenvalues (…, d), ascending, and eigenvectors (…, d, d) of symmetric matrices.

    Near-singular factors make ``eigh`` fail on some devices, so it is tried as it is, with a small
    multiple of the identity added, in float64, and in float64 on the CPU.

    Args:
        M: matrices of shape (…, d, d), symmetric up to rounding.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails.
    """
    M = symmetric(at_least_float32(M))
    if not bool(torch.isfinite(M).all()):
        raise ArithmeticError("the matrix has entries that are not finite")
    scale = M.diagonal(dim1=-2, dim2=-1).abs().mean().clamp_min(torch.finfo(M.dtype).tiny)
    jitter = scale * 10 * torch.finfo(M.dtype).eps
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    attempts = (
        lambda: torch.linalg.eigh(M),
        lambda: torch.linalg.eigh(M + jitter * identity),
        lambda: torch.linalg.eigh(M.double()),
        lambda: torch.linalg.eigh(M.double().cpu()),
    )
    for attempt in attempts:
        try:
            values, vectors = attempt()  # type: ignore[no-untyped-call]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if bool(torch.isfinite(values).all()) and bool(torch.isfinite(vectors).all()):
            return values.to(M), vectors.to(M)
    raise ArithmeticError("no eigendecomposition succeeded")


def symmetric(M: Tensor) -> Tensor:
    """Return (M + Mᵀ) / 2."""
    return (M + M.mT) / 2
