"""Points in the plane drawn from known densities: two noisy rings ("Circle") and a few more.

Every sampler is ``(generator, count, noise) -> points (count, 2)``. Points are independent and of
order 1. ``noise`` is the standard deviation of Gaussian noise in each coordinate unless the sampler
says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.base.errors import ConfigError
from experiments.data.splits import SPLIT_NAMES, DataInfo, FloatArray, Splits, validate

Sampler = Callable[[np.random.Generator, int, float], FloatArray]

ARMS = 5  # of the pinwheel


def rings(generator: np.random.Generator, count: int, noise: float) -> FloatArray:
    """Two concentric rings of radius 1 and 1/2, equally likely, as in Chen et al. 2018.

    Angles are drawn, not spread evenly, so that the points are independent.
    """
    radius = generator.choice(np.asarray([1.0, 0.5]), size=count)
    angle = generator.uniform(0.0, 2.0 * np.pi, size=count)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _blurred(points, generator, noise)


def pinwheel(generator: np.random.Generator, count: int, noise: float) -> FloatArray:
    """Five bent arms (Johnson et al. 2016): Gaussians along the arms, turned by their radius.

    Along an arm the standard deviation is 0.3 around the radius 1, across it ``noise``.
    """
    arm = generator.integers(ARMS, size=count)
    radius = 1.0 + 0.3 * generator.standard_normal(count)
    across = noise * generator.standard_normal(count)
    # The outer end of an arm runs behind its inner end.
    angle = 2.0 * np.pi * arm / ARMS + 0.25 * np.exp(radius)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    normal = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    return np.asarray(radius[:, None] * along + across[:, None] * normal, dtype=np.float64)


def eight_gaussians(generator: np.random.Generator, count: int, noise: float) -> FloatArray:
    """Eight equally likely Gaussians, evenly on a circle of radius 1.5."""
    angle = 2.0 * np.pi * generator.integers(8, size=count) / 8
    centre = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _blurred(centre, generator, noise)


def checkerboard(generator: np.random.Generator, count: int, noise: float) -> FloatArray:
    """Uniform on the eight black fields of a 4 x 4 board over [-2, 2] x [-2, 2].

    A field is black where the sum of its column and its row is even.
    """
    column = generator.integers(4, size=count)
    row = 2 * generator.integers(2, size=count) + column % 2
    corner = np.stack([column, row], axis=1) - 2.0
    return _blurred(corner + generator.uniform(size=(count, 2)), generator, noise)


def moons(generator: np.random.Generator, count: int, noise: float) -> FloatArray:
    """Two equally likely half circles of radius 1 that reach into each other, centred."""
    lower = generator.integers(2, size=count)
    angle = generator.uniform(0.0, np.pi, size=count)
    sign = 1.0 - 2.0 * lower
    # The upper one around (-1/2, -1/4), the lower one, upside down, around (1/2, 1/4).
    x = sign * (np.cos(angle) - 0.5)
    y = sign * (np.sin(angle) - 0.25)
    return _blurred(np.stack([x, y], axis=1), generator, noise)


def _blurred(points: FloatArray, generator: np.random.Generator, noise: float) -> FloatArray:
    return np.asarray(points + noise * generator.standard_normal(points.shape), dtype=np.float64)


SAMPLERS: dict[str, Sampler] = {
    sampler.__name__: sampler for sampler in (rings, pinwheel, eight_gaussians, checkerboard, moons)
}


def load(
    *,
    data_dir: str | Path | None = None,
    name: str = "circle",
    density: str = "rings",
    noise: float = 0.06,
    train_size: int = 20_000,
    val_size: int = 2_000,
    test_size: int = 2_000,
    split_seed: int = 0,
) -> Splits:
    """Draw three sets of points; ``data_dir`` is not used.

    Each split has its own stream of random numbers: its points do not change when the size of
    another split does. ``density`` is a name from :data:`SAMPLERS`.

    Raises:
        ConfigError: Unknown density, a negative noise or seed, or an empty split.
    """
    if density not in SAMPLERS:
        raise ConfigError(f"{name}: unknown density '{density}', one of {', '.join(SAMPLERS)}")
    if not noise >= 0 or split_seed < 0:
        raise ConfigError(
            f"{name}: noise and split_seed must not be negative, but are {noise} and {split_seed}"
        )
    sizes = (train_size, val_size, test_size)
    for split, size in zip(SPLIT_NAMES, sizes, strict=True):
        if size < 1:
            raise ConfigError(f"{name}: {split}_size is {size}, but has to be at least 1")

    def part(stream: int, size: int) -> tuple[Tensor]:
        generator = np.random.default_rng([split_seed, stream])
        points = SAMPLERS[density](generator, size, noise)
        return (torch.from_numpy(points.astype(np.float32)),)

    info = DataInfo(
        name=name,
        task="cnf",
        input_shape=(2,),
        num_classes=None,
        source=f"generated: {density}, noise {noise}, split_seed {split_seed}",
    )
    return validate(Splits(info, *(part(stream, size) for stream, size in enumerate(sizes))))
