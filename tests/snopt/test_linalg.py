"""Eigenbases and inverses: batched by size, and what happens where a decomposition fails."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import assert_close

from snopt.linalg import eigenbases, eigenbasis, inverse, inverses


def positive(d, groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed + d)
    M = torch.randn(groups, d, d, generator=generator, dtype=torch.float64)
    return M @ M.mT + 0.1 * torch.eye(d, dtype=torch.float64)


def composed(basis):
    values, vectors = basis
    return vectors @ torch.diag_embed(values) @ vectors.mT


# torch's name, the one and the many, and what gives the matrix back.
KINDS = {
    "eigh": (eigenbasis, eigenbases, composed),
    "cholesky": (inverse, inverses, torch.linalg.inv),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def watch(monkeypatch, kind, failures=0):
    """Return a list that gets every matrix that torch decomposes; the first few fail."""
    true, seen = getattr(torch.linalg, kind), []

    def watched(M):
        seen.append(M)
        if len(seen) <= failures:
            raise torch.linalg.LinAlgError("did not converge")
        return true(M)

    monkeypatch.setattr(torch.linalg, kind, watched)
    return seen


@kinds
@pytest.mark.parametrize("large", [128, 4])
def test_small_matrices_of_one_size_are_decomposed_together(kind, large, monkeypatch):
    _, many, back = KINDS[kind]
    seen = watch(monkeypatch, kind)
    monkeypatch.setattr("snopt.linalg.LARGE", large)
    matrices = [positive(4, groups=2), positive(3, groups=2), positive(4, seed=1)]
    for M, found in zip(matrices, many(matrices), strict=True):
        assert_close(back(found), M, rtol=1e-10)
    shapes = [tuple(M.shape) for M in seen]
    assert shapes == ([(3, 4, 4), (2, 3, 3)] if large == 128 else [(2, 4, 4), (2, 3, 3), (1, 4, 4)])


@kinds
def test_failures_are_tried_with_jitter_in_float64_and_on_the_cpu(kind, monkeypatch):
    one, _, back = KINDS[kind]
    seen = watch(monkeypatch, kind, failures=3)
    M = positive(3).float()
    found = one(M)
    assert [m.dtype for m in seen] == [torch.float32] * 2 + [torch.float64] * 2
    first = [float(m[0, 0, 0]) for m in seen]
    assert first[1] > first[0] == pytest.approx(first[2])
    assert_close(back(found), M, rtol=1e-5)  # float32 again


def test_singular_to_rounding_is_inverted_with_jitter():
    ones = torch.ones(1, 40, 40)
    assert bool(torch.isfinite(inverse(ones)).all())


@kinds
def test_one_bad_matrix_does_not_spoil_the_others_of_its_size(kind):
    one, many, back = KINDS[kind]
    good = positive(3)
    found = many([good, good * float("nan"), 2 * good])
    assert found[1] is None
    assert_close(back(found[0]), good, rtol=1e-10)
    assert_close(back(found[2]), 2 * good, rtol=1e-10)
    with pytest.raises(ArithmeticError, match="not finite"):
        one(good * float("inf"))


def test_what_is_not_positive_definite_has_no_inverse():
    assert inverses([-positive(3)]) == [None]
    with pytest.raises(ArithmeticError, match="no attempt"):
        inverse(-positive(3))
