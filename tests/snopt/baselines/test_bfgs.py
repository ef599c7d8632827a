"""BFGS updates of an inverse against their definition, dense against limited memory, damping."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snopt.baselines.bfgs import (
    DenseInverse,
    LimitedInverse,
    bfgs_update,
    double_damping,
    hessian_action_update,
)

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def spd(size, seed=0, least=-2.0):
    """Return a positive definite matrix with eigenvalues from 10**least to 1."""
    Q, _ = torch.linalg.qr(randn(size, size, seed=seed))
    M = Q @ torch.diag(torch.logspace(least, 0, size, dtype=torch.float64)) @ Q.T
    return (M + M.T) / 2


def product_form(H, s, y):
    """Return (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ as it stands in the textbook."""
    rho = 1 / (s @ y)
    V = torch.eye(len(s), dtype=s.dtype) - rho * torch.outer(s, y)
    return V @ H @ V.T + rho * torch.outer(s, s)


def test_update_is_the_textbooks_and_satisfies_the_secant_condition():
    H = torch.stack([spd(5, 1), spd(5, 2)])
    s = randn(2, 5, seed=3)
    y = (spd(5, 4) @ s.unsqueeze(-1)).squeeze(-1)
    new = bfgs_update(H, s, y)
    for i in range(2):
        torch.testing.assert_close(new[i], product_form(H[i], s[i], y[i]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(new[i] @ y[i], s[i], rtol=1e-10, atol=1e-12)
    assert torch.equal(new, new.mT)


def test_update_does_not_depend_on_the_pairs_scale():
    H, s = spd(4, 1), randn(4, seed=2)
    y = spd(4, 3) @ s
    expected = bfgs_update(H, s, y)
    torch.testing.assert_close(bfgs_update(H, 1e-30 * s, 1e-30 * y), expected)
    # In float32 the products of such a pair underflow.
    small = bfgs_update(H.float(), (1e-30 * s).float(), (1e-30 * y).float())
    torch.testing.assert_close(small.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "negative curvature", "nan", "infinite"])
def test_pair_without_curvature_changes_nothing(kind):
    s = randn(2, 3, seed=1)
    y = s.clone()
    s[0], y[0] = {
        "zero": (0 * s[0], y[0]),
        "negative curvature": (s[0], -y[0]),
        "nan": (s[0], y[0] * math.nan),
        "infinite": (s[0] * math.inf, y[0]),
    }[kind]
    H = torch.stack([spd(3, 2), spd(3, 3)])
    new = bfgs_update(H, s, y)
    assert torch.equal(new[0], H[0])
    assert not torch.equal(new[1], H[1])  # the other problem of the batch is updated
    limited = LimitedInverse(2, 3, CPU, memory=4)
    limited.update(*(randn(2, 3, seed=5),) * 2)
    before = limited.dense()
    limited.update(s, y)
    torch.testing.assert_close(limited.dense()[0], before[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("updates", "memory"), [(1, 1), (7, 7), (12, 20)])
def test_limited_memory_equals_dense_while_nothing_is_forgotten(updates, memory):
    groups, size = 2, 5
    dense, limited = DenseInverse(groups, size, CPU), LimitedInverse(groups, size, CPU, memory)
    C = spd(size, 1)
    for k in range(updates):
        s = randn(groups, size, seed=10 + k) * 10.0**-k
        y = s @ C + 0.1 * s
        dense.update(s, y)
        limited.update(s, y)
    torch.testing.assert_close(limited.dense(), dense.dense(), rtol=1e-9, atol=1e-11)
    M = randn(groups, size, 3, seed=99)
    torch.testing.assert_close(limited.apply(M), dense.apply(M), rtol=1e-9, atol=1e-11)


def test_limited_memory_forgets_the_oldest_pair():
    """With memory 3 it is the dense form of the last 3 pairs, from the identity."""
    size = 4
    pairs = [(randn(1, size, seed=k), randn(1, size, seed=k) @ spd(size, 7)) for k in range(8)]
    limited, dense = LimitedInverse(1, size, CPU, 3), DenseInverse(1, size, CPU)
    for pair in pairs:
        limited.update(*pair)
    for pair in pairs[-3:]:
        dense.update(*pair)
    torch.testing.assert_close(limited.dense(), dense.dense(), rtol=1e-9, atol=1e-11)


def test_hessian_action_converges_to_the_inverse():
    """On a fixed A, with mean inputs that come from many batches."""
    A = spd(6, 1) + 0.1 * torch.eye(6, dtype=torch.float64)
    H = torch.eye(6, dtype=torch.float64)
    errors = []
    for k in range(400):
        H = hessian_action_update(H, A, randn(6, seed=k))
        errors.append(float(torch.linalg.norm(H @ A - torch.eye(6, dtype=torch.float64))))
    assert errors[-1] < 1e-8 * errors[0]


def test_hessian_action_leaves_the_inverse_alone():
    A = spd(5, 1)
    H = torch.linalg.inv(A)
    torch.testing.assert_close(hessian_action_update(H, A, randn(5, seed=2)), H, rtol=1e-9, atol=0)


vectors = st.lists(st.floats(-1.0, 1.0, allow_subnormal=False), min_size=4, max_size=4).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)
exponents = st.integers(-6, 3)


@given(
    pairs=st.lists(st.tuples(vectors, vectors, exponents, exponents), min_size=1, max_size=25),
    damping=st.sampled_from([1e-4, 1e-2, 0.3]),
    memory=st.sampled_from([0, 3]),
)
@settings(max_examples=200, deadline=None)
def test_damped_updates_stay_positive_definite(pairs, damping, memory):
    """Whatever the pairs: any sign of curvature, any length, one after the other."""
    inverse = LimitedInverse(1, 4, CPU, memory) if memory else DenseInverse(1, 4, CPU)
    for s, y, scale_s, scale_y in pairs:
        s, y = 10.0**scale_s * s.unsqueeze(0), 10.0**scale_y * y.unsqueeze(0)
        Hy = inverse.apply(y.unsqueeze(-1)).squeeze(-1)
        damped = double_damping(s, y, Hy, mu_1=0.2, mu_2=math.sqrt(damping))
        # The bounds are on products: they hold where these do not underflow.
        bounded = all(not v.any() or v.norm() > 1e-120 for v in (s, y, damped.s, damped.y))
        if bounded:
            inner, square = (damped.s * damped.y).sum(), (damped.s**2).sum()
            assert inner >= (1 - 1e-6) * math.sqrt(damping) * square
            assert (damped.s * y).sum() >= (1 - 1e-6) * 0.2 * (y * Hy).sum()
            assert ((damped.theta_1 > 0) & (damped.theta_1 <= 1)).all()
            assert ((damped.theta_2 > 0) & (damped.theta_2 <= 1)).all()
        inverse.update(damped.s, damped.y)
        H = inverse.dense()[0]
        eigenvalues = torch.linalg.eigvalsh((H + H.T) / 2)
        # Down to the rounding of the largest: eigenvalues below that have no digits.
        assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
        assert (y[0] @ H @ y[0]) > 0 or not y.any() or not bounded


def test_damping_leaves_a_good_pair_alone():
    C = spd(3, 1, least=-0.3)
    s = randn(1, 3, seed=2)
    y = s @ C
    damped = double_damping(s, y, y, mu_1=0.2, mu_2=0.1)
    assert torch.equal(damped.s, s)
    assert torch.equal(damped.y, y)
    assert damped.theta_1 == damped.theta_2 == 1


def test_damping_reaches_its_bounds_exactly():
    """Negative curvature: first sᵀy = μ₁ yᵀHy, then sᵀy = μ₂ sᵀs."""
    s = randn(1, 3, seed=1)
    y = -s
    Hy = 10 * y
    damped = double_damping(s, y, Hy, mu_1=0.2, mu_2=0.9)
    torch.testing.assert_close((damped.s * y).sum(), 0.2 * (y * Hy).sum())
    torch.testing.assert_close((damped.s * damped.y).sum(), 0.9 * (damped.s**2).sum())


@pytest.mark.parametrize("name", ["mu_1", "mu_2"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1])
def test_damping_out_of_range_is_refused(name, value):
    s = torch.ones(1, 2)
    with pytest.raises(ValueError, match=rf"{name} must lie in \(0, 1\)"):
        double_damping(s, s, s, **{"mu_1": 0.2, "mu_2": 0.5, name: value})
