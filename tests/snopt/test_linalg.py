"""Inverses of factors: batched by size, and what happens where a decomposition fails."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import assert_close

from snopt.linalg import inverse, inverses


def positive(d, groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed + d)
    M = torch.randn(groups, d, d, generator=generator, dtype=torch.float64)
    return M @ M.mT + 0.1 * torch.eye(d, dtype=torch.float64)


def test_matrices_of_one_size_are_inverted_together(monkeypatch):
    true, shapes = torch.linalg.cholesky, []

    def seen(M):
        shapes.append(tuple(M.shape))
        return true(M)

    monkeypatch.setattr(torch.linalg, "cholesky", seen)
    matrices = [positive(3, groups=2), positive(4), positive(3, seed=1)]
    for M, found in zip(matrices, inverses(matrices), strict=True):
        identity = torch.eye(M.shape[-1], dtype=M.dtype).expand_as(M)
        assert_close(found @ M, identity, rtol=1e-11)
    assert shapes == [(3, 3, 3), (1, 4, 4)]


def test_failures_are_tried_with_jitter_in_float64_and_on_the_cpu(monkeypatch):
    true, calls = torch.linalg.cholesky, []

    def failing(M):
        calls.append((M.dtype, float(M[0, 0, 0])))
        if len(calls) < 4:
            raise torch.linalg.LinAlgError("not positive definite")
        return true(M)

    monkeypatch.setattr(torch.linalg, "cholesky", failing)
    M = positive(3).float()
    found = inverse(M)
    assert [dtype for dtype, _ in calls] == [torch.float32] * 2 + [torch.float64] * 2
    assert calls[1][1] > calls[0][1] == pytest.approx(calls[2][1])
    assert found.dtype == torch.float32
    assert_close(found @ M, torch.eye(3)[None], rtol=1e-4)


def test_singular_to_rounding_is_inverted_with_jitter():
    ones = torch.ones(1, 40, 40)
    assert bool(torch.isfinite(inverse(ones)).all())


def test_one_bad_matrix_does_not_spoil_the_others_of_its_size():
    good = positive(3)
    found = inverses([good, good * float("nan"), -good, 2 * good])
    assert found[1] is None
    assert found[2] is None
    assert_close(found[0], 2 * found[3], rtol=1e-12)
    with pytest.raises(ArithmeticError, match="not finite"):
        inverse(good * float("inf"))
    with pytest.raises(ArithmeticError, match="no attempt"):
        inverse(-good)
