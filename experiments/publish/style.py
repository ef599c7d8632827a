"""One look for every figure: fonts at print size, and one fixed look an optimizer.

The looks differ in hue (safe for the common colour-vision deficiencies), in luminance, in line
style and in marker, so a picture stays readable in greyscale and in print.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.base.errors import ConfigError
from experiments.base.files import write_whole
from experiments.publish.names import optimizer_name

WIDTH_IN = 6.75
"""Width of a full-width figure in inches; fonts below are in points at this width."""

RC: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
}
"""Matplotlib settings, for ``matplotlib.rc_context(RC)``."""

styled = mpl.rc_context(RC)
"""Decorator of a function that draws: it runs with the settings :data:`RC`."""


@dataclass(frozen=True)
class Look:
    """How one optimizer is drawn in every figure; ``color`` is ``#RRGGBB``."""

    label: str
    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for ``Axes.plot``, without the marker."""
        return {"color": self.color, "linestyle": self.linestyle}


LOOKS: dict[str, Look] = {
    "adam": Look(optimizer_name("adam"), "#1F78B4", (0, (5.0, 1.5)), "o"),
    "sgd": Look(optimizer_name("sgd"), "#E09F2B", (0, (1.5, 1.2)), "s"),
    "snopt": Look(optimizer_name("snopt"), "#8C1C4A", "solid", "^"),
}
"""Looks by optimizer name, in the order of legends."""


def look(optimizer: str) -> Look:
    """Return the look of an optimizer."""
    if optimizer not in LOOKS:
        known = ", ".join(LOOKS)
        raise ConfigError(
            f"no look for optimizer {optimizer!r}; known: {known} (experiments/publish/style.py)"
        )
    return LOOKS[optimizer]


def handles(looks: Iterable[Look], *, markers: bool = True) -> list[Line2D]:
    """Return the entries of a legend, for ``Figure.legend(handles=…)``."""
    return [
        Line2D([], [], label=one.label, marker=one.marker if markers else None, **one.line)
        for one in looks
    ]


def draw_spread(axes: Axes, wide: pd.DataFrame, alpha: float = 0.2, **line: Any) -> None:
    """Draw median and range over the columns of a table, one a seed, against its index."""
    low, high = wide.min(axis=1), wide.max(axis=1)
    axes.fill_between(wide.index, low, high, color=line["color"], alpha=alpha, linewidth=0)
    axes.plot(wide.index, wide.median(axis=1), **line)


def wrapped(caption: str, width: float = WIDTH_IN) -> list[str]:
    """Return the lines of a caption below a figure of a width in inches."""
    return textwrap.wrap(caption, width=int(15.5 * width))


def put_caption(figure: Figure, lines: Sequence[str], bottom: float) -> None:
    """Write the lines of a caption at the foot of a figure; ``bottom`` is a fraction of it."""
    figure.text(0.5, bottom, "\n".join(lines), ha="center", va="bottom", fontsize=8)


def finish(
    figure: Figure,
    caption: str,
    path: Path,
    *,
    top: float = 1.0,
    rc: dict[str, Any] = RC,
) -> None:
    """Put the caption below the panels, whose upper edge is ``top``, and write the picture."""
    width, height = figure.get_size_inches()
    lines = wrapped(caption, width)
    with mpl.rc_context(rc):
        put_caption(figure, lines, 0.03 / height)
        figure.tight_layout(rect=(0.0, (0.155 * len(lines) + 0.05) / height, 1.0, top))
    save(figure, path, rc)


def save(figure: Figure, path: Path, rc: dict[str, Any] = RC) -> None:
    """Write the picture, whole or not at all."""
    buffer = io.BytesIO()
    with mpl.rc_context(rc):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
