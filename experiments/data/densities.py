"""Densities in the plane that are the usual first tests of a flow, beside the rings of Circle.

Every sampler is ``(generator, number of points, noise) -> points (number, 2)``; points are
independent and of order 1, as the rings are. What ``noise`` scales is each sampler's own.
:mod:`experiments.data.circle` turns them into a data set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

ARMS = 5
"""Arms of the pinwheel."""


def pinwheel(generator: np.random.Generator, count: int, noise: float) -> Points:
    """Five bent arms (Johnson et al. 2016): Gaussians along the arms, turned by their radius.

    Along an arm the standard deviation is 0.3 around the radius 1.

    Args:
        generator: Source of randomness.
        count: Number of points.
        noise: Standard deviation across an arm.

    Returns:
        Points of shape (count, 2).
    """
    arm = generator.integers(ARMS, size=count)
    radius = 1.0 + 0.3 * generator.standard_normal(count)
    across = noise * generator.standard_normal(count)
    # The outer end of an arm runs behind its inner end.
    angle = 2.0 * np.pi * arm / ARMS + 0.25 * np.exp(radius)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    normal = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    return np.asarray(radius[:, None] * along + across[:, None] * normal, dtype=np.float64)


def eight_gaussians(generator: np.random.Generator, count: int, noise: float) -> Points:
    """Eight equally likely Gaussians, evenly on a circle of radius 1.5.

    Args:
        generator: Source of randomness.
        count: Number of points.
        noise: Standard deviation of each Gaussian in each coordinate.

    Returns:
        Points of shape (count, 2).
    """
    angle = 2.0 * np.pi * generator.integers(8, size=count) / 8
    centre = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(centre + noise * generator.standard_normal((count, 2)), dtype=np.float64)


def checkerboard(generator: np.random.Generator, count: int, noise: float) -> Points:
    """Uniform on the eight black fields of a 4 x 4 board over [-2, 2] x [-2, 2].

    A field is black where the sum of its column and its row is even.

    Args:
        generator: Source of randomness.
        count: Number of points.
        noise: Standard deviation of Gaussian noise in each coordinate, on top; 0: sharp edges.

    Returns:
        Points of shape (count, 2).
    """
    column = generator.integers(4, size=count)
    row = 2 * generator.integers(2, size=count) + column % 2
    corner = np.stack([column, row], axis=1) - 2.0
    points = corner + generator.uniform(size=(count, 2))
    return np.asarray(points + noise * generator.standard_normal((count, 2)), dtype=np.float64)


def moons(generator: np.random.Generator, count: int, noise: float) -> Points:
    """Two equally likely half circles of radius 1 that reach into each other, centred.

    Args:
        generator: Source of randomness.
        count: Number of points.
        noise: Standard deviation of the noise in each coordinate.

    Returns:
        Points of shape (count, 2).
    """
    lower = generator.integers(2, size=count)
    angle = generator.uniform(0.0, np.pi, size=count)
    sign = 1.0 - 2.0 * lower
    # The upper one around (-1/2, -1/4), the lower one, upside down, around (1/2, 1/4).
    x = sign * (np.cos(angle) - 0.5)
    y = sign * (np.sin(angle) - 0.25)
    points = np.stack([x, y], axis=1)
    return np.asarray(points + noise * generator.standard_normal((count, 2)), dtype=np.float64)
