"""Eigenbases and inverses of factors: small ones together, none given up at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]

Basis: TypeAlias = tuple[Tensor, Tensor]
"""Eigenvalues, ascending, and eigenvectors."""

LARGE = 128
"""Size of a matrix from which on it is decomposed alone."""


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is of half precision; products of halves overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def symmetric(M: Tensor) -> Tensor:
    """Return (M + Mᵀ) / 2."""
    return torch.add(M, M.mT).div_(2)


@torch.no_grad()
def eigenbasis(M: Tensor) -> Basis:
    """Return eigenvalues (…, d), ascending, and eigenvectors (…, d, d) of symmetric matrices.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails (:func:`_robustly`).
    """
    values, vectors = _robustly(M, lambda M: tuple(torch.linalg.eigh(M)))
    return values, vectors


@torch.no_grad()
def inverse(M: Tensor) -> Tensor:
    """Return the inverse of positive definite matrices (…, d, d) by Cholesky decomposition.

    Raises:
        ArithmeticError: if an entry is not finite or every attempt fails (:func:`_robustly`).
    """
    return _robustly(M, lambda M: (torch.cholesky_inverse(torch.linalg.cholesky(M)),))[0]


def eigenbases(matrices: Sequence[Tensor]) -> list[Basis | None]:
    """Return :func:`eigenbasis` of many (groups, d, d), those of one size at once; None: failed."""
    return cast("list[Basis | None]", _by_size(matrices, eigenbasis))


def inverses(matrices: Sequence[Tensor]) -> list[Tensor | None]:
    """Return :func:`inverse` of many (groups, d, d), those of one size at once; None: failed."""
    found = _by_size(matrices, lambda M: (inverse(M),))
    return [None if parts is None else parts[0] for parts in found]


def _robustly(M: Tensor, decompose: Callable[[Tensor], Tensors]) -> Tensors:
    """Return ``decompose(M)`` by the first attempt that succeeds, like ``M``.

    Near-singular factors make decompositions fail, on some devices more than on others, so it is
    tried as it is, with a small multiple of the identity added, in float64, and in float64 on the
    CPU. ``decompose`` reads lower triangles and fails with ``torch.linalg.LinAlgError``.
    """
    M = at_least_float32(M)
    if not bool(torch.isfinite(M).all()):
        raise ArithmeticError("the matrix has entries that are not finite")
    scale = M.diagonal(dim1=-2, dim2=-1).abs().mean().clamp_min(torch.finfo(M.dtype).tiny)
    jitter = scale * 10 * torch.finfo(M.dtype).eps
    attempts: tuple[Callable[[], Tensor], ...] = (
        lambda: M,
        lambda: M + jitter * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device),
        lambda: M.double(),
        lambda: M.double().cpu(),
    )
    for attempt in attempts:
        try:
            found = decompose(attempt())
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if all(bool(torch.isfinite(part).all()) for part in found):
            return tuple(part.to(M) for part in found)
    raise ArithmeticError("no attempt at the decomposition succeeded")


@torch.no_grad()
def _by_size(
    matrices: Sequence[Tensor], compute: Callable[[Tensor], Tensors]
) -> list[Tensors | None]:
    """Return ``compute`` of many matrices, small ones of one size in one call.

    Large ones (:data:`LARGE`) gain nothing from company, and would need room for all at once.
    ``compute`` maps (n, d, d) to tensors of leading axis n, or raises ArithmeticError: None then.
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
                    found[i] = _by_size([matrices[i]], compute)[0]
            continue
        pieces = zip(*(torch.split(part, counts) for part in joint), strict=True)
        for i, piece in zip(members, pieces, strict=True):
            found[i] = piece
    return found
