"""The update in part of an eigenbasis against the whole one with the null space averaged."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import assert_close

from snopt.curvature.factors import Factors
from snopt.curvature.few_rows import ThinFactors, bases_of
from snopt.precondition import partial_basis
from snopt.precondition.kronecker import KroneckerPair

FEATURES = 5


def matrix(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def thin_factors(out=12, columns=4, rank=None, seed=0, batch=7):
    """Random factors with B of the given rank, as columns."""
    C = matrix(1, out, columns, seed=seed)
    if rank is not None:
        C = C[..., :rank] @ matrix(1, rank, columns, seed=seed + 100)
    X = matrix(1, 9, FEATURES, seed=seed + 50)
    return ThinFactors(X.mT @ X, C, 1.0, batch)


def dense_factors(thin):
    return Factors(thin.A, thin.B, thin.weight, thin.batch)


class Reference:
    """Equation (10) in any whole eigenbasis, S averaged over the null space after every change."""

    def __init__(self, factors, rank):
        lam_A, self.U_A = torch.linalg.eigh(factors.A[0])
        lam_B, U_B = torch.linalg.eigh(factors.B[0])
        self.null = len(lam_B) - rank
        # Another basis of the null space than eigh's: nothing may depend on it.
        turn = torch.linalg.qr(matrix(self.null, self.null, seed=9))[0]
        self.U_B = torch.cat([U_B[:, : self.null] @ turn, U_B[:, self.null :]], dim=1)
        lam_B[: self.null] = 0
        self.S = lam_B[:, None].clamp_min(0) * lam_A.clamp_min(0)
        self.M, self.batch = torch.zeros_like(self.S), factors.batch

    def average(self):
        self.S[: self.null] = self.S[: self.null].mean(0)

    def step(self, G, eps, alpha, exponent, relative, momentum):
        R = self.U_B.T @ G @ self.U_A
        self.S = alpha * self.S + (1 - alpha) * self.batch * R**2
        self.average()
        self.M = momentum * self.M + G
        eps = eps * self.S.mean() if relative else eps
        R = self.U_B.T @ self.M @ self.U_A
        return self.U_B @ (R / (self.S + eps) ** exponent) @ self.U_A.T


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_steps_with_every_option(exponent, relative, momentum):
    factors = thin_factors()
    pair, reference = KroneckerPair(), Reference(factors, 4)
    assert pair.refresh(factors)
    options = {"alpha": 0.75, "exponent": exponent, "relative": relative, "momentum": momentum}
    for k in range(3):
        G = matrix(12, FEATURES, seed=k + 1)
        step = pair.precondition(G[None], eps=0.1, **options)[0]
        assert_close(step, reference.step(G, 0.1, **options), rtol=1e-9)
        assert_close(pair.S, reference.S, rtol=1e-9)


@pytest.mark.parametrize("out", [2, 9, 40])
@pytest.mark.parametrize("columns", [1, 2, 6])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_any_size_and_rank(out, columns, lost):
    rank = max(0, min(columns - lost, out - 1))
    factors = thin_factors(out, columns, rank, seed=out)
    pair, reference = KroneckerPair(), Reference(factors, rank)
    assert pair.refresh(factors)
    assert pair.state_dict()["U_B"].shape == (1, out, rank)
    assert pair.state_dict()["S"].shape == (1, 1 + rank, FEATURES)
    for k in range(2):
        G = matrix(out, FEATURES, seed=k + 1)
        step = pair.precondition(G[None], eps=0.3, alpha=0.6)[0]
        assert_close(step, reference.step(G, 0.3, 0.6, 1.0, False, 0.0), rtol=1e-8)
    assert_close(pair.S, reference.S, rtol=1e-8)
    assert_close(pair.total, pair.S.sum(), rtol=1e-12)
    assert_close(pair.B, factors.B[0], rtol=1e-12, atol=1e-14)


def test_no_gradient_at_any_output_leaves_the_damping_alone():
    factors = ThinFactors(torch.eye(FEATURES).double()[None], torch.zeros(1, 12, 3).double(), 1, 7)
    pair = KroneckerPair()
    assert pair.refresh(factors)
    assert pair.state_dict()["U_B"].shape == (1, 12, 0)
    G = matrix(1, 12, FEATURES)
    assert_close(pair.precondition(G, eps=0.5, alpha=1.0), G / 0.5, rtol=1e-12)
    step = pair.precondition(G, eps=0.5, alpha=0.75, momentum=0.5, relative=True)
    moment = 0.25 * 7 * G[0].square().mean(0)
    assert_close(step[0], G[0] / (moment + 0.5 * moment.mean()), rtol=1e-12)
    assert_close(pair.B, torch.zeros(12, 12).double(), rtol=0.0)
    assert pair.refresh(factors, carry=True)
    assert_close(pair.S[0], moment, rtol=1e-12)


def test_moments_that_never_move_give_the_dense_step():
    factors = thin_factors()
    thin, dense = KroneckerPair(), KroneckerPair()
    thin.refresh(factors, "none")
    dense.refresh(dense_factors(factors), "none")
    G = matrix(1, 12, FEATURES)
    expected = dense.precondition(G, eps=0.1, alpha=1.0)
    assert_close(thin.precondition(G, eps=0.1, alpha=1.0), expected, rtol=1e-9)


def test_the_gradient_may_lie_in_the_pairs_own_buffer():
    pair, other = KroneckerPair(), KroneckerPair()
    for one in (pair, other):
        one.refresh(thin_factors())
    for momentum in (0.0, 0.9, 0.9):
        G = matrix(1, 12, FEATURES)
        options = {"eps": 0.1, "alpha": 0.5, "momentum": momentum}
        expected = other.precondition(G, **options).clone()
        assert torch.equal(pair.precondition(pair.buffer().copy_(G), **options), expected)


@pytest.mark.parametrize("before", ["thin", "dense", "all null"])
@pytest.mark.parametrize("after", ["thin", "dense", "all null"])
def test_a_carried_moment_is_the_dense_one_averaged_over_the_null_space(before, after):
    def factors(kind, seed):
        thin = thin_factors(columns=4 if seed == 0 else 3, seed=seed)
        if kind == "all null":
            return ThinFactors(thin.A, torch.zeros_like(thin.columns), 1.0, 7)
        if kind == "dense":
            C = matrix(1, 30, 12, seed=seed)
            return Factors(thin.A, C.mT @ C, 1.0, 7)
        return thin

    pair = KroneckerPair()
    pair.refresh(factors(before, 0))
    pair.precondition(matrix(1, 12, FEATURES), eps=0.1, alpha=0.5)
    U_B, U_A = partial_basis.completed(pair._U_B)[0], pair._U_A[0]
    U = torch.kron(U_B.contiguous(), U_A.contiguous())
    dense = U @ torch.diag(pair.S.reshape(-1)) @ U.T
    total = pair.total.clone()
    pair.refresh(factors(after, 1), carry=True)
    V_B, V_A = partial_basis.completed(pair._U_B)[0], pair._U_A[0]
    V = torch.kron(V_B.contiguous(), V_A.contiguous())
    expected = (V.T @ dense @ V).diagonal().reshape(12, FEATURES).clone()
    null = 12 - pair._U_B.shape[-1]
    if null:
        expected[:null] = expected[:null].mean(0)
    assert_close(pair.S, expected, rtol=1e-9)
    assert_close(pair.total, total, rtol=1e-9)  # a trace


def test_the_quadratic_form_is_that_of_s_in_any_basis():
    pair = KroneckerPair()
    pair.refresh(thin_factors())
    pair.precondition(matrix(1, 12, FEATURES), eps=0.1, alpha=0.5)
    D = matrix(12, FEATURES, seed=4)
    U = torch.kron(partial_basis.completed(pair._U_B)[0], pair._U_A[0].contiguous())
    dense = U @ torch.diag(pair.S.reshape(-1)) @ U.T
    expected = D.reshape(-1) @ dense @ D.reshape(-1)
    assert_close(pair.quadratic(D[None]), expected, rtol=1e-10)


def test_a_completed_basis_has_the_null_space_first():
    (_, (_, U)) = bases_of([thin_factors(rank=3)])[0]
    whole = partial_basis.completed(U)
    assert_close(whole.mT @ whole, torch.eye(12).double()[None], rtol=1e-12)
    assert torch.equal(whole[..., -3:], U)
    assert partial_basis.completed(whole) is whole


def test_rotate_and_correct_take_whole_matrices():
    pair = KroneckerPair()
    pair.refresh(thin_factors())
    R = pair.rotate(matrix(1, 12, FEATURES))
    assert R.shape == (1, 12, FEATURES)
    assert_close(R.square().sum(), matrix(12, FEATURES).square().sum(), rtol=1e-10)
    pair.correct(R.square(), 0.25)
    fresh = KroneckerPair()
    fresh.refresh(thin_factors())
    expected = 0.25 * fresh.S + 0.75 * R[0].square()
    expected[:8] = expected[:8].mean(0)
    assert_close(pair.S, expected, rtol=1e-10)


def test_state_round_trip_continues_to_the_last_bit():
    pair, again = KroneckerPair(), KroneckerPair()
    pair.refresh(thin_factors(rank=3))
    options = {"eps": 0.1, "alpha": 0.5, "momentum": 0.9}
    pair.precondition(matrix(1, 12, FEATURES), **options)
    again.load_state_dict(pair.state_dict(), torch.device("cpu"))
    assert again.shape == pair.shape == (1, 12, FEATURES)
    for k in range(2):
        G = matrix(1, 12, FEATURES, seed=k)
        assert torch.equal(pair.precondition(G, **options), again.precondition(G, **options))
        for one in (pair, again):
            one.refresh(thin_factors(seed=3), carry=True)
        assert torch.equal(pair.S, again.S)


def test_a_dense_state_is_taken_over_and_made_thin_at_the_next_refresh():
    old, pair = KroneckerPair(), KroneckerPair()
    old.refresh(dense_factors(thin_factors()))
    pair.load_state_dict(old.state_dict(), torch.device("cpu"))
    G = matrix(1, 12, FEATURES)
    options = {"eps": 0.1, "alpha": 0.5, "momentum": 0.9}
    assert torch.equal(pair.precondition(G, **options), old.precondition(G, **options))
    pair.refresh(thin_factors(seed=1), carry=True)
    assert pair.state_dict()["U_B"].shape == (1, 12, 4)
    assert bool(pair.precondition(G, **options).isfinite().all())


def test_an_average_with_thin_factors_is_dense():
    pair, factors = KroneckerPair(), thin_factors(seed=1)
    old = thin_factors()
    pair.refresh(old)
    blended = pair.blend(factors, 0.8)
    assert not isinstance(blended, ThinFactors)
    assert_close(blended.B, 0.8 * old.B + 0.2 * factors.B, rtol=1e-12)
    assert pair.blend(factors, 0.0) is factors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_columns_that_are_not_finite_keep_the_previous_basis(bad):
    pair = KroneckerPair()
    pair.refresh(thin_factors())
    before = pair.state_dict()["U_B"]
    broken = thin_factors(seed=1)
    broken.columns[0, 3, 1] = bad
    assert not pair.refresh(broken)
    assert pair.failures == 1
    assert pair.state_dict()["U_B"] is before
