"""The factored inverse against dense matrices; robustness of the eigenbasis."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import assert_close

from snopt.curvature.factors import Factors
from snopt.linalg import eigenbases, eigenbasis
from snopt.precondition.kronecker import KroneckerPair, Workspace


def random_factors(groups=1, features=4, out=3, weight=1.0, batch=5):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(groups, 9, features, generator=generator, dtype=torch.float64)
    Y = torch.randn(groups, 9, out, generator=generator, dtype=torch.float64)
    return Factors(A=X.mT @ X, B=Y.mT @ Y, weight=weight, batch=batch)


def random_gradient(factors):
    generator = torch.Generator().manual_seed(1)
    shape = (factors.A.shape[0], factors.B.shape[-1], factors.A.shape[-1])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 3])
def test_alpha_one_applies_the_damped_kronecker_inverse(groups):
    """With S fixed at λ_B λ_Aᵀ the step solves (B ⊗ A + ε I) vec(step) = vec(G)."""
    factors = random_factors(groups)
    pair = KroneckerPair()
    assert pair.refresh(factors)
    G = random_gradient(factors)
    step = pair.precondition(G, eps=0.3, alpha=1.0)
    for k in range(groups):
        dense = torch.kron(factors.B[k], factors.A[k])
        dense += 0.3 * torch.eye(len(dense), dtype=torch.float64)
        expected = torch.linalg.solve(dense, G[k].reshape(-1)).reshape(G[k].shape)
        assert_close(step[k], expected, rtol=1e-10)


def test_running_second_moment_over_three_steps():
    """The dense formula of the method, step by step, with the basis as a dense matrix."""
    factors = random_factors(batch=5)
    pair = KroneckerPair()
    pair.refresh(factors)
    lam_A, U_A = torch.linalg.eigh(factors.A[0])
    lam_B, U_B = torch.linalg.eigh(factors.B[0])
    Q = torch.kron(U_B, U_A)
    S = torch.kron(lam_B, lam_A)
    G = random_gradient(factors)
    for k in range(1, 4):
        gradient = (k * G)[0].reshape(-1)
        rotated = Q.T @ gradient
        S = 0.75 * S + 0.25 * 5 * rotated**2
        expected = Q @ (rotated / (S + 0.05))
        step = pair.precondition(k * G, eps=0.05, alpha=0.75)
        assert_close(step[0].reshape(-1), expected, rtol=1e-10)
    assert_close(pair.S.reshape(-1), S, rtol=1e-10)


def test_time_correlation_divides_by_the_total_time():
    full, none = KroneckerPair(), KroneckerPair()
    full.refresh(random_factors(weight=4.0), "full")
    none.refresh(random_factors(weight=4.0), "none")
    assert_close(none.S, full.S / 4.0, rtol=1e-12)
    assert_close(none.A, full.A, rtol=0.0)


def test_factors_are_shown_without_the_group_axis_unless_grouped():
    pair = KroneckerPair()
    assert not pair.ready
    with pytest.raises(ValueError, match="no factors yet"):
        _ = pair.A
    pair.refresh(random_factors())
    assert pair.ready
    assert (pair.A.shape, pair.B.shape, pair.S.shape) == ((4, 4), (3, 3), (3, 4))
    pair.refresh(random_factors(groups=2))
    assert (pair.A.shape, pair.B.shape) == ((2, 4, 4), (2, 3, 3))


def test_a_factor_that_is_not_finite_keeps_the_previous_basis():
    pair = KroneckerPair()
    good = random_factors()
    pair.refresh(good)
    before = pair.precondition(random_gradient(good), eps=0.1, alpha=1.0).clone()
    bad = Factors(A=good.A * float("nan"), B=good.B, weight=1.0, batch=5)
    assert not pair.refresh(bad)
    assert pair.failures == 1
    after = pair.precondition(random_gradient(good), eps=0.1, alpha=1.0)
    assert torch.equal(before, after)


def test_eigh_that_fails_is_tried_with_jitter_and_in_float64(monkeypatch):
    true_eigh, calls = torch.linalg.eigh, []

    def failing(matrix):
        calls.append(matrix.dtype)
        if len(calls) < 3:
            raise torch.linalg.LinAlgError("did not converge")
        return true_eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    M = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    values, vectors = eigenbasis(M)
    assert calls == [torch.float32, torch.float32, torch.float64]
    assert values.dtype == vectors.dtype == torch.float32
    assert_close(vectors @ torch.diag(values) @ vectors.T, M, rtol=1e-6)


def test_eigh_that_always_fails_counts_and_keeps(monkeypatch):
    pair = KroneckerPair()
    pair.refresh(random_factors())
    basis = pair.state_dict()["U_A"]

    def failing(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    assert not pair.refresh(random_factors(features=4))
    assert pair.failures == 1
    assert pair.state_dict()["U_A"] is basis


def test_matrices_of_one_size_are_decomposed_together(monkeypatch):
    true_eigh, shapes = torch.linalg.eigh, []

    def watched(matrix):
        shapes.append(tuple(matrix.shape))
        return true_eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    first, second = random_factors(groups=2, features=4), random_factors(features=4, out=4)
    matrices = [first.A, first.B, second.A, second.B]
    bases = eigenbases(matrices)
    assert shapes == [(4, 4, 4), (2, 3, 3)]
    for M, (values, vectors) in zip(matrices, bases, strict=True):
        assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, M, rtol=1e-12)


def test_one_bad_matrix_does_not_spoil_the_others_of_its_size():
    good = random_factors(features=4, out=4)
    bases = eigenbases([good.A, good.B * float("inf")])
    assert bases[0] is not None
    assert bases[1] is None


def test_the_gradient_may_lie_in_the_pairs_own_buffer():
    factors = random_factors()
    pair, other = KroneckerPair(), KroneckerPair()
    pair.refresh(factors)
    other.refresh(factors)
    G = random_gradient(factors)
    for _ in range(2):
        expected = other.precondition(G, eps=0.1, alpha=0.5)
        assert torch.equal(pair.precondition(pair.buffer().copy_(G), eps=0.1, alpha=0.5), expected)


def test_state_round_trip_continues_exactly():
    factors = random_factors()
    pair, again = KroneckerPair(), KroneckerPair()
    pair.refresh(factors)
    pair.precondition(random_gradient(factors), eps=0.1, alpha=0.5)
    again.load_state_dict(pair.state_dict(), torch.device("cpu"))
    G = random_gradient(factors)
    assert torch.equal(
        pair.precondition(G, eps=0.1, alpha=0.5), again.precondition(G, eps=0.1, alpha=0.5)
    )
    assert again.weight == pair.weight
    assert again.batch == pair.batch


def test_the_factors_follow_from_their_bases():
    factors = random_factors(groups=2)
    pair = KroneckerPair()
    pair.refresh(factors)
    assert_close(pair.A, factors.A, rtol=1e-12)
    assert_close(pair.B, factors.B, rtol=1e-12)


def test_large_matrices_are_decomposed_alone(monkeypatch):
    true_eigh, shapes = torch.linalg.eigh, []

    def watched(matrix):
        shapes.append(tuple(matrix.shape))
        return true_eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    monkeypatch.setattr("snopt.linalg.LARGE", 4)
    first, second = random_factors(features=4), random_factors(features=4)
    bases = eigenbases([first.A, first.B, second.A, second.B])
    assert sorted(shapes) == [(1, 4, 4), (1, 4, 4), (2, 3, 3)]
    assert all(basis is not None for basis in bases)


def test_pairs_may_take_turns_in_one_workspace():
    factors, larger = random_factors(), random_factors(features=6, out=5)
    workspace = Workspace()
    pairs = [KroneckerPair(workspace), KroneckerPair(workspace)]
    alone = [KroneckerPair(), KroneckerPair()]
    for pair, other, f in zip(pairs, alone, (factors, larger), strict=True):
        pair.refresh(f)
        other.refresh(f)
    for _ in range(2):
        for pair, other, f in zip(pairs, alone, (factors, larger), strict=True):
            G = random_gradient(f)
            expected = other.precondition(G, eps=0.1, alpha=0.5)
            assert torch.equal(pair.precondition(G, eps=0.1, alpha=0.5), expected)


def test_a_state_with_factors_in_place_of_eigenvalues_is_understood():
    factors = random_factors()
    pair, again = KroneckerPair(), KroneckerPair()
    pair.refresh(factors)
    old = {k: v for k, v in pair.state_dict().items() if not k.startswith("lam_")}
    again.load_state_dict({**old, "A": factors.A, "B": factors.B}, torch.device("cpu"))
    assert_close(again.A, pair.A, rtol=1e-12)
    assert_close(again.B, pair.B, rtol=1e-12)
