"""Quadrature rules: exactness, order, positivity, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snopt import gauss_legendre, uniform


@pytest.mark.parametrize("n", [1, 2, 4, 7, 20])
def test_gauss_legendre_equals_numpys(n):
    nodes, weights = gauss_legendre(n)(-1.0, 1.0)
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(n)
    assert np.allclose(nodes, expected_nodes, atol=1e-13)
    assert np.allclose(weights, expected_weights, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_gauss_legendre_is_exact_to_degree_2n_minus_1(n):
    nodes, weights = gauss_legendre(n)(0.5, 2.0)
    for degree in range(2 * n):
        exact = (2.0 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1)
        assert float((weights * nodes**degree).sum()) == pytest.approx(exact, rel=1e-12)
    degree = 2 * n
    exact = (2.0 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1)
    assert float((weights * nodes**degree).sum()) != pytest.approx(exact, rel=1e-9)


def test_uniform_converges_at_order_two():
    exact = math.e - 1.0
    errors = []
    for step in (0.1, 0.05, 0.025):
        nodes, weights = uniform(step)(0.0, 1.0)
        errors.append(abs(float((weights * nodes.exp()).sum()) - exact))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates == pytest.approx([2.0, 2.0], abs=0.01)


def test_uniform_counts_of_samples():
    assert len(uniform(0.01)(0.0, 1.0)[0]) == 100  # the paper's Δt on [0, 1]
    assert len(uniform(1.0)(3.0, 4.0)[0]) == 1
    assert len(uniform(1.0)(0.0, 0.3)[0]) == 1
    assert len(uniform(0.4)(0.0, 1.0)[0]) == 3


@given(
    rule=st.one_of(st.integers(1, 12).map(gauss_legendre), st.floats(0.01, 3.0).map(uniform)),
    a=st.floats(-5, 5),
    length=st.floats(1e-3, 4.0),
    backwards=st.booleans(),
)
def test_nodes_inside_ordered_and_weights_positive(rule, a, length, backwards):
    start, end = (a + length, a) if backwards else (a, a + length)
    nodes, weights = rule(start, end)
    assert nodes.dtype == weights.dtype == torch.float64
    assert bool((weights > 0).all())
    assert float(weights.sum()) == pytest.approx(abs(end - start), rel=1e-9)
    sign = math.copysign(1.0, end - start)
    path = torch.cat([torch.tensor([start]).double(), nodes, torch.tensor([end]).double()])
    assert bool((path.diff() * sign > 0).all())


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_gauss_legendre_refuses(n):
    with pytest.raises(ValueError, match="positive number of nodes"):
        gauss_legendre(n)


@pytest.mark.parametrize("step", [0, -0.1, math.inf, math.nan, "small"])
def test_uniform_refuses(step):
    with pytest.raises(ValueError, match="positive step"):
        uniform(step)


def test_more_nodes_than_anyone_can_evaluate_are_refused():
    with pytest.raises(ValueError, match=r"at most 1000 nodes, .* got n=100000"):
        gauss_legendre(100_000)
