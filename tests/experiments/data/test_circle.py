"""Circle: the density is the one that the docstring states."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.base.errors import ConfigError
from experiments.data import circle


def test_sizes_and_description() -> None:
    data = circle.load()
    assert data.sizes() == {"train": 20_000, "val": 2_000, "test": 2_000}
    assert data.info.input_shape == (2,)
    assert (data.info.task, data.info.num_classes) == ("cnf", None)
    assert data.train[0].dtype == torch.float32


def test_without_noise_every_point_is_on_a_ring_and_rings_are_equally_likely() -> None:
    (x,) = circle.load(noise=0.0).train
    radius = x.norm(dim=1)
    outer = (radius - 1.0).abs() < 1e-6
    assert bool((outer | ((radius - 0.5).abs() < 1e-6)).all())
    # Binomial: four standard deviations of a fair coin thrown 20000 times.
    assert abs(float(outer.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_moments() -> None:
    """E[x] = 0 and Cov[x] = (E[r^2] / 2 + noise^2) I, from the density's definition."""
    noise, n = 0.3, 200_000
    (x,) = circle.load(noise=noise, train_size=n).train
    variance = (1.0**2 + 0.5**2) / 4 + noise**2
    covariance = torch.cov(x.double().T)
    assert float(x.double().mean(dim=0).abs().max()) < 4 * math.sqrt(variance / n)
    torch.testing.assert_close(
        covariance, variance * torch.eye(2, dtype=torch.float64), atol=5e-3, rtol=0
    )


def test_splits_are_independent_of_each_others_size_and_different() -> None:
    small, large = circle.load(train_size=10), circle.load(train_size=100)
    assert torch.equal(small.test[0], large.test[0])
    assert torch.equal(small.val[0], circle.load(train_size=10).val[0])
    assert not torch.equal(small.val[0], small.test[0])
    assert not torch.equal(small.val[0], circle.load(split_seed=1).val[0])


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
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        circle.load(**options)
