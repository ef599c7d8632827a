"""The 2-d densities: points lie where their definitions say, with the moments that follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from experiments.base.errors import ConfigError
from experiments.data import densities
from experiments.data.densities import ARMS, checkerboard, eight_gaussians, moons, pinwheel

N = 40_000
# Four standard deviations of a fraction of 1/2 over N points.
FAIR = 4 * 0.5 / math.sqrt(N)


def draw(sampler: densities.Sampler, noise: float) -> np.ndarray:
    return sampler(np.random.default_rng(0), N, noise)


def test_without_noise_every_point_is_on_a_ring_and_rings_are_equally_likely():
    (x,) = densities.load(noise=0.0).train
    radius = x.norm(dim=1)
    outer = (radius - 1.0).abs() < 1e-6
    assert bool((outer | ((radius - 0.5).abs() < 1e-6)).all())
    # Binomial: four standard deviations of a fair coin thrown 20000 times.
    assert abs(float(outer.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_moments():
    """E[x] = 0 and Cov[x] = (E[r^2] / 2 + noise^2) I, from the density's definition."""
    noise, n = 0.3, 200_000
    (x,) = densities.load(noise=noise, train_size=n).train
    variance = (1.0**2 + 0.5**2) / 4 + noise**2
    covariance = torch.cov(x.double().T)
    assert float(x.double().mean(dim=0).abs().max()) < 4 * math.sqrt(variance / n)
    torch.testing.assert_close(
        covariance, variance * torch.eye(2, dtype=torch.float64), atol=5e-3, rtol=0
    )


def test_splits_are_independent_of_each_others_size_and_different():
    small, large = densities.load(train_size=10), densities.load(train_size=100)
    assert torch.equal(small.test[0], large.test[0])
    assert torch.equal(small.val[0], densities.load(train_size=10).val[0])
    assert not torch.equal(small.val[0], small.test[0])
    assert not torch.equal(small.val[0], densities.load(split_seed=1).val[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "square"}, "unknown density 'square', one of rings"),
        ({"noise": -0.1}, "must not be negative"),
        ({"noise": float("nan")}, "must not be negative"),
        ({"split_seed": -1}, "must not be negative"),
        ({"val_size": 0}, "val_size is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        densities.load(**options)


@pytest.mark.parametrize("name", densities.SAMPLERS)
def test_loads_as_a_data_set_that_is_centred(name):
    data = densities.load(density=name, name=name, train_size=N, val_size=10, test_size=10)
    assert data.sizes() == {"train": N, "val": 10, "test": 10}
    assert (data.info.task, data.info.input_shape, data.info.num_classes) == ("cnf", (2,), None)
    assert not np.allclose(data.val[0], data.test[0])
    (x,) = data.train
    assert x.dtype == torch.float32
    assert x.mean(dim=0).abs().max() < 5 * x.std() / math.sqrt(N)


def test_checkerboard_has_only_black_fields_equally_likely():
    x = draw(checkerboard, 0.0)
    assert np.abs(x).max() <= 2.0
    field = np.floor(x).astype(int) + 2
    assert (field.sum(axis=1) % 2 == 0).all()
    counts = np.bincount(4 * field[:, 0] + field[:, 1])
    assert (counts > 0).sum() == 8
    assert np.abs(counts[counts > 0] / N - 1 / 8).max() < FAIR
    # Within a field the points are uniform: variance 1/12.
    assert (x - np.floor(x)).var(axis=0) == pytest.approx([1 / 12] * 2, rel=0.03)


def test_eight_gaussians():
    noise = 0.1
    x = draw(eight_gaussians, noise)
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi / 8)) * (2 * np.pi / 8)
    centre = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert (x - centre).std(axis=0) == pytest.approx([noise] * 2, rel=0.03)
    counts = np.unique(np.round(angle / (np.pi / 4)).astype(int) % 8, return_counts=True)[1]
    assert len(counts) == 8
    assert np.abs(counts / N - 1 / 8).max() < FAIR


def test_moons_are_half_circles():
    x = draw(moons, 0.0)
    upper = np.hypot(x[:, 0] + 0.5, x[:, 1] + 0.25)
    lower = np.hypot(x[:, 0] - 0.5, x[:, 1] - 0.25)
    on_upper, on_lower = np.abs(upper - 1) < 1e-9, np.abs(lower - 1) < 1e-9
    assert (on_upper | on_lower).all()
    assert (x[on_upper & ~on_lower, 1] >= -0.25 - 1e-9).all()
    assert (x[on_lower & ~on_upper, 1] <= 0.25 + 1e-9).all()
    assert abs(on_upper.mean() - 0.5) < FAIR + 0.001


def test_pinwheel_arms():
    """Turned back by its radius, a point lies on one of five rays; without noise exactly."""
    x = draw(pinwheel, 0.0)
    radius = np.hypot(*x.T)
    ray = (np.arctan2(x[:, 1], x[:, 0]) - 0.25 * np.exp(radius)) / (2 * np.pi / ARMS)
    # A radius below 0, 3.3 standard deviations away, lies on the opposite ray of another curve.
    near = np.abs(ray - np.round(ray)) < 1e-9
    assert near.mean() > 0.998
    counts = np.unique(np.round(ray[near]).astype(int) % ARMS, return_counts=True)[1]
    assert len(counts) == ARMS
    assert np.abs(counts / N - 1 / ARMS).max() < FAIR
    assert radius.mean() == pytest.approx(1.0, abs=0.01)
    assert radius.std() == pytest.approx(0.3, rel=0.03)
