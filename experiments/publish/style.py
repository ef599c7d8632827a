"""One look for every figure: fonts at print size, and one fixed look an optimizer.

The looks differ in hue (safe for the common colour-vision deficiencies), in luminance, in line
style and in marker, so a picture stays readable in greyscale and in print.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base.errors import ConfigError
from experiments.base.files import write_whole

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


@dataclass(frozen=True)
class Look:
    """How one optimizer is drawn in every figure.

    Attributes:
        label: name in legends.
        color: ``#RRGGBB``.
        linestyle: a matplotlib line style.
        marker: a matplotlib marker.
    """

    label: str
    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for ``Axes.plot``, without the marker."""
        return {"color": self.color, "linestyle": self.linestyle}


LOOKS: dict[str, Look] = {
    "adam": Look("Adam", "#1F78B4", (0, (5.0, 1.5)), "o"),
    "sgd": Look("SGD", "#E09F2B", (0, (1.5, 1.2)), "s"),
    "snopt": Look("SNOpt", "#8C1C4A", "solid", "^"),
}
"""Looks by optimizer name, in the order of legends."""


def look(optimizer: str) -> Look:
    """Return the look of an optimizer.

    Raises:
        ConfigError: the optimizer has none yet.
    """
    try:
        return LOOKS[optimizer]
    except KeyError:
        known = ", ".join(LOOKS)
        raise ConfigError(
            f"no look for optimizer {optimizer!r}; known: {known} (experiments/publish/style.py)"
        ) from None


def lightness(color: str) -> float:
    """Return CIE L* (0 black to 100 white) of an sRGB colour ``#RRGGBB``: what greyscale keeps."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    if luminance <= (6 / 29) ** 3:
        return luminance * (29 / 3) ** 3
    return float(116 * luminance ** (1 / 3) - 16)


def finish(figure: Figure, caption: str, path: Path, *, top: float = 1.0) -> None:
    """Put the caption below the panels and write the picture, whole or not at all.

    Args:
        figure: the figure.
        caption: one paragraph.
        path: where to write.
        top: upper edge of the panels, below a legend.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, width=int(15.5 * width))
    figure.text(0.5, 0.03 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, (0.155 * len(lines) + 0.05) / height, 1.0, top))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
