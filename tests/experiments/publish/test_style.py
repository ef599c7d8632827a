"""Figures stay readable in print, in greyscale and with a colour-vision deficiency."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

import pytest

from experiments.base.errors import ConfigError
from experiments.figures import integration_time, sensitivity
from experiments.publish.style import LOOKS, RC, Look, look


def lightness(color: str) -> float:
    """Return CIE L* (0 black to 100 white) of an sRGB colour ``#RRGGBB``: what greyscale keeps."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


@pytest.mark.parametrize(
    ("looks", "apart"),
    [(LOOKS, 14), (sensitivity.OWN_LOOKS, 14), (integration_time.LOOKS, 10)],
    ids=["optimizers", "sensitivity", "integration time"],
)
def test_looks_differ_in_lightness_line_style_and_marker(
    looks: dict[str, Look], apart: float
) -> None:
    every: Collection[Look] = looks.values()
    for one, other in combinations(every, 2):
        assert abs(lightness(one.color) - lightness(other.color)) > apart
        assert one.linestyle != other.linestyle
        assert one.marker != other.marker
    assert all(lightness(one.color) < 75.0 for one in every)


def test_fonts_are_at_least_eight_points() -> None:
    sizes = {key: size for key, size in RC.items() if key.endswith(("size", "fontsize"))}
    sizes.pop("lines.markersize")
    assert len(sizes) >= 6
    assert min(sizes.values()) >= 8.0


def test_unknown_optimizer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'lbfgs'; known: adam, sgd, snopt"):
        look("lbfgs")
