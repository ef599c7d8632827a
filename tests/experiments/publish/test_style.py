"""Figures stay readable in print, in greyscale and with a colour-vision deficiency."""

from __future__ import annotations

from itertools import combinations

import pytest

from experiments.base.errors import ConfigError
from experiments.publish.style import LOOKS, RC, lightness, look


def test_lightness_of_black_white_and_middle_grey() -> None:
    assert lightness("#000000") == pytest.approx(0.0)
    assert lightness("#FFFFFF") == pytest.approx(100.0)
    assert lightness("#777777") == pytest.approx(50.0, abs=0.5)


def test_looks_differ_in_lightness_line_style_and_marker() -> None:
    for one, other in combinations(LOOKS.values(), 2):
        assert abs(lightness(one.color) - lightness(other.color)) > 14.0
        assert one.linestyle != other.linestyle
        assert one.marker != other.marker


def test_every_look_stands_out_from_white_paper() -> None:
    assert all(lightness(style.color) < 75.0 for style in LOOKS.values())


def test_fonts_are_at_least_eight_points() -> None:
    sizes = {key: size for key, size in RC.items() if key.endswith(("size", "fontsize"))}
    sizes.pop("lines.markersize")
    assert len(sizes) >= 6
    assert min(sizes.values()) >= 8.0


def test_unknown_optimizer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'lbfgs'; known: adam, sgd, snopt"):
        look("lbfgs")
