"""The update of one block against dense matrices, in whole bases and in those of few rows."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import assert_close

from snopt.curvature.factors import Factors, ThinFactors, bases_of
from snopt.precondition.kronecker import KroneckerPair, Workspace

OUT, FEATURES, ROWS = 12, 5, 7


def matrix(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def thin_factors(out=OUT, columns=4, rank=None, seed=0):
    """Random factors with B of the given rank, as columns."""
    C = matrix(1, out, columns, seed=seed)
    if rank is not None:
        C = C[..., :rank] @ matrix(1, rank, columns, seed=seed + 100)
    X = matrix(1, 9, FEATURES, seed=seed + 50)
    return ThinFactors(X.mT @ X, C, 1.0, ROWS)


def factors_of(kind, seed=0):
    """Factors whose B has no null space, one of 8 directions, or nothing else."""
    thin = thin_factors(columns=4 if seed == 0 else 3, seed=seed)
    if kind == "null":
        return ThinFactors(thin.A, torch.zeros_like(thin.columns), 1.0, ROWS)
    if kind == "whole":
        C = matrix(1, 30, OUT, seed=seed)
        return Factors(thin.A, C.mT @ C, 1.0, ROWS)
    return thin


def refreshed(factors, workspace=None):
    pair = KroneckerPair(workspace)
    assert pair.refresh(factors)
    return pair


def full_bases(pair):
    """Return U_B, completed by any basis of the null space, and U_A of a pair without groups."""
    U_B, U_A = (pair.state_dict()[name][0] for name in ("U_B", "U_A"))
    Q, _ = torch.linalg.qr(U_B, mode="complete")
    return torch.cat([Q[:, U_B.shape[-1] :], U_B], dim=1), U_A.contiguous()


def dense(pair):
    """Return Q as one matrix: S in the eigenbases."""
    U = torch.kron(*full_bases(pair))
    return U @ torch.diag(pair.S.reshape(-1)) @ U.T


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

    def step(self, G, eps, alpha, exponent=1.0, relative=False, momentum=0.0):
        R = self.U_B.T @ G @ self.U_A
        self.S = alpha * self.S + (1 - alpha) * self.batch * R**2
        if self.null:
            self.S[: self.null] = self.S[: self.null].mean(0)
        self.M = momentum * self.M + G
        eps = eps * self.S.mean() if relative else eps
        R = self.U_B.T @ self.M @ self.U_A
        D, large = R / (self.S + eps) ** exponent, eps < self.S
        norms = R.norm(), D.norm()
        energy = R[large].norm() ** 2 / norms[0] ** 2
        cosine = (R * D).sum() / (norms[0] * norms[1])
        parts = [large.double().mean(), energy, cosine, norms[1] * eps**exponent / norms[0]]
        self.parts = torch.stack(parts)
        return self.U_B @ D @ self.U_A.T


@pytest.mark.parametrize("kind", ["whole", "thin"])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_steps_with_every_option(kind, exponent, relative, momentum):
    factors = factors_of(kind)
    pair, reference = refreshed(factors), Reference(factors, OUT if kind == "whole" else 4)
    options = {"alpha": 0.75, "exponent": exponent, "relative": relative, "momentum": momentum}
    for k in range(3):
        G = matrix(OUT, FEATURES, seed=k + 1)
        step = pair.precondition(G[None], eps=0.1, report=k > 0, **options)[0]
        assert_close(step, reference.step(G, 0.1, **options), rtol=1e-9)
        assert_close(pair.S, reference.S, rtol=1e-9)
        if k > 0:
            assert_close(pair.parts, reference.parts, rtol=1e-9)
        else:
            assert pair.parts is None


@pytest.mark.parametrize("groups", [1, 3])
def test_alpha_one_applies_the_damped_kronecker_inverse(groups):
    """With S fixed at λ_B λ_Aᵀ the step solves (B ⊗ A + ε I) vec(step) = vec(G)."""
    X, Y = matrix(groups, 9, 4), matrix(groups, 9, 3, seed=1)
    factors = Factors(X.mT @ X, Y.mT @ Y, 1.0, ROWS)
    G = matrix(groups, 3, 4, seed=2)
    step = refreshed(factors).precondition(G, eps=0.3, alpha=1.0)
    for k in range(groups):
        Q = torch.kron(factors.B[k], factors.A[k]) + 0.3 * torch.eye(12, dtype=torch.float64)
        expected = torch.linalg.solve(Q, G[k].reshape(-1)).reshape(G[k].shape)
        assert_close(step[k], expected, rtol=1e-10)


def test_moments_that_never_move_give_the_dense_step_of_few_rows_too():
    thin, G = factors_of("thin"), matrix(1, OUT, FEATURES)
    whole = Factors(thin.A, thin.B, thin.weight, thin.batch)
    one, two = (refreshed(f).precondition(G, eps=0.1, alpha=1.0) for f in (thin, whole))
    assert_close(one, two, rtol=1e-9)


@pytest.mark.parametrize("out", [2, 9, 40])
@pytest.mark.parametrize("columns", [1, 2, 6])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_any_size_and_rank(out, columns, lost):
    rank = max(0, min(columns - lost, out - 1))
    factors = thin_factors(out, columns, rank, seed=out)
    pair, reference = refreshed(factors), Reference(factors, rank)
    assert pair.state_dict()["U_B"].shape == (1, out, rank)
    assert pair.state_dict()["S"].shape == (1, 1 + rank, FEATURES)
    for k in range(2):
        G = matrix(out, FEATURES, seed=k + 1)
        step = pair.precondition(G[None], eps=0.3, alpha=0.6)[0]
        assert_close(step, reference.step(G, 0.3, 0.6), rtol=1e-8)
    assert_close(pair.S, reference.S, rtol=1e-8)
    assert_close(pair.B, factors.B[0], rtol=1e-12, atol=1e-14)


def test_no_gradient_at_any_output_leaves_the_damping_alone():
    factors = ThinFactors(torch.eye(FEATURES).double()[None], torch.zeros(1, OUT, 3).double(), 1, 7)
    pair, G = refreshed(factors), matrix(1, OUT, FEATURES)
    assert pair.state_dict()["U_B"].shape == (1, OUT, 0)
    assert_close(pair.precondition(G, eps=0.5, alpha=1.0), G / 0.5, rtol=1e-12)
    step = pair.precondition(G, eps=0.5, alpha=0.75, momentum=0.5, relative=True)
    moment = 0.25 * 7 * G[0].square().mean(0)
    assert_close(step[0], G[0] / (moment + 0.5 * moment.mean()), rtol=1e-12)
    assert_close(pair.B, torch.zeros(OUT, OUT).double(), rtol=0.0)


@pytest.mark.parametrize("before", ["thin", "whole", "null"])
@pytest.mark.parametrize("after", ["thin", "whole", "null"])
def test_a_carried_moment_is_the_dense_one_averaged_over_the_null_space(before, after):
    pair = refreshed(factors_of(before))
    pair.precondition(matrix(1, OUT, FEATURES), eps=0.1, alpha=0.5)
    old, total = dense(pair), pair.S.sum()
    pair.refresh(factors_of(after, seed=1), carry=True)
    V = torch.kron(*full_bases(pair))
    expected = (V.T @ old @ V).diagonal().reshape(OUT, FEATURES).clone()
    null = OUT - pair.state_dict()["U_B"].shape[-1]
    if null:
        expected[:null] = expected[:null].mean(0)
    assert_close(pair.S, expected, rtol=1e-9)
    assert_close(pair.S.sum(), total, rtol=1e-9)  # a trace


@pytest.mark.parametrize("kind", ["whole", "thin"])
def test_the_quadratic_form_is_that_of_s(kind):
    pair = refreshed(factors_of(kind))
    pair.precondition(matrix(1, OUT, FEATURES), eps=0.1, alpha=0.5)
    D = matrix(OUT, FEATURES, seed=4)
    expected = D.reshape(-1) @ dense(pair) @ D.reshape(-1)
    assert_close(pair.quadratic(D[None]), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["whole", "thin"])
def test_the_gradient_may_lie_in_the_pairs_own_buffer(kind):
    pair, other = (refreshed(factors_of(kind)) for _ in range(2))
    for momentum in (0.0, 0.9, 0.9):
        G = matrix(1, OUT, FEATURES)
        options = {"eps": 0.1, "alpha": 0.5, "momentum": momentum}
        expected = other.precondition(G, **options).clone()
        assert torch.equal(pair.precondition(pair.buffer().copy_(G), **options), expected)


def test_pairs_may_take_turns_in_one_workspace():
    factors, workspace = [thin_factors(out) for out in (6, 16)], Workspace()
    pairs, alone = [refreshed(f, workspace) for f in factors], [refreshed(f) for f in factors]
    for k in range(2):
        for pair, other, out in zip(pairs, alone, (6, 16), strict=True):
            G = matrix(1, out, FEATURES, seed=k)
            expected = other.precondition(G, eps=0.1, alpha=0.5)
            assert torch.equal(pair.precondition(G, eps=0.1, alpha=0.5), expected)


def test_a_workspace_keeps_two_matrices_of_the_largest_size_for_each_dtype():
    workspace, single = Workspace(), torch.empty(0)
    large = workspace.like(single, (1, 30, 40))
    assert [m.shape for m in large] == [(1, 30, 40)] * 2
    large[0].fill_(1.0)
    large[1].fill_(2.0)
    assert bool((large[0] == 1).all())
    held = large[0].untyped_storage().data_ptr()
    small = workspace.like(single, (2, 3, 4))
    assert [m.shape for m in small] == [(2, 3, 4)] * 2
    assert small[0].untyped_storage().data_ptr() == held
    assert workspace.like(single, (1, 30, 40))[0].data_ptr() == large[0].data_ptr()
    double = workspace.like(single.double(), (2, 3, 4))
    double[0].fill_(3.0)
    assert double[0].dtype == torch.float64
    assert bool((large[0] == 1).all())
    larger = workspace.like(single, (1, 60, 40))
    assert larger[0].untyped_storage().data_ptr() != held
    again = workspace.like(single, (2, 3, 4))  # no view of the buffer that was given up
    assert again[0].untyped_storage().data_ptr() == larger[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("kind", ["whole", "thin"])
def test_state_round_trip_continues_to_the_last_bit(kind):
    pair, again = refreshed(factors_of(kind)), KroneckerPair()
    options = {"eps": 0.1, "alpha": 0.5, "momentum": 0.9}
    pair.precondition(matrix(1, OUT, FEATURES), **options)
    again.load_state_dict(pair.state_dict(), torch.device("cpu"))
    assert again.shape == pair.shape == (1, OUT, FEATURES)
    assert (again.weight, again.batch) == (pair.weight, pair.batch)
    for k in range(2):
        G = matrix(1, OUT, FEATURES, seed=k)
        assert torch.equal(pair.precondition(G, **options), again.precondition(G, **options))
        for one in (pair, again):  # to few rows, whatever it was
            one.refresh(thin_factors(seed=3), carry=True)
        assert torch.equal(pair.S, again.S)
    fresh = KroneckerPair()
    fresh.load_state_dict(KroneckerPair().state_dict(), torch.device("cpu"))
    assert not fresh.ready


def test_an_average_with_thin_factors_is_dense():
    old, new = factors_of("thin"), factors_of("thin", seed=1)
    pair = refreshed(old)
    blended = pair.blend(new, 0.8)
    assert not isinstance(blended, ThinFactors)
    assert_close(blended.B, 0.8 * old.B + 0.2 * new.B, rtol=1e-12)
    assert pair.blend(new, 0.0) is new


def test_factors_are_shown_without_the_group_axis_unless_grouped():
    pair = KroneckerPair()
    assert not pair.ready
    with pytest.raises(ValueError, match="no factors yet"):
        _ = pair.A
    X, Y = matrix(2, 9, 4), matrix(2, 9, 3, seed=1)
    A, B = X.mT @ X, Y.mT @ Y
    pair.refresh(Factors(A, B, 1.0, ROWS))
    assert_close(pair.A, A, rtol=1e-12)
    assert_close(pair.B, B, rtol=1e-12)
    pair.refresh(Factors(A[:1], B[:1], 1.0, ROWS))
    assert (pair.A.shape, pair.B.shape, pair.S.shape) == ((4, 4), (3, 3), (3, 4))


@pytest.mark.parametrize("kind", ["whole", "thin"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite_keeps_the_previous_basis(kind, bad):
    pair, broken = refreshed(factors_of(kind)), factors_of(kind, seed=1)
    before = pair.state_dict()["U_B"]
    (broken.columns if kind == "thin" else broken.B)[0, 3, 1] = bad
    assert not pair.refresh(broken)
    assert pair.failures == 1
    assert pair.state_dict()["U_B"] is before


def test_eigh_that_always_fails_counts_and_keeps(monkeypatch):
    pair = refreshed(factors_of("whole"))
    basis = pair.state_dict()["U_A"]

    def failing(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    assert bases_of([factors_of("thin")]) == [(None, None)]
    assert not pair.refresh(factors_of("whole", seed=1))
    assert pair.failures == 1
    assert pair.state_dict()["U_A"] is basis
