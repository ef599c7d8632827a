"""Panels that figures share: one data set, curves of every optimizer against one axis.

Lines are medians over seeds, bands reach from the lowest to the highest seed. A run that diverged
is drawn alone, as a thin line that ends in a cross; it is left out of median and band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from experiments.figures.curves import Array, Curve, band, counts
from experiments.publish.style import LOOKS, look


@dataclass(frozen=True)
class Axis:
    """What curves are drawn against.

    Attributes:
        column: attribute of :class:`~experiments.figures.curves.Curve`.
        label: of the axis.
    """

    column: str
    label: str


AXES: dict[str, Axis] = {
    "time": Axis("time_s", "Wall-clock training time (s)"),
    "steps": Axis("step", "Training steps"),
    "nfe": Axis("nfe", "Evaluations of the vector field"),
}
"""Axes by the name that ``--x`` takes."""


def draw_curves(axes: Axes, curves: Sequence[Curve], series: Sequence[tuple[Array, Array]]) -> None:
    """Draw the runs of one optimizer.

    Args:
        axes: where to draw.
        curves: the runs.
        series: for each run its places on the axis and its values.
    """
    style = look(curves[0].optimizer)
    kept = []
    for curve, (places, values) in zip(curves, series, strict=True):
        if not curve.diverged:
            kept.append((places, values))
        elif places.size:
            axes.plot(places, values, linewidth=0.7, alpha=0.8, **style.line)
            axes.plot(
                *(places[-1:], values[-1:]),
                marker="x",
                color=style.color,
                markersize=8,
                markeredgewidth=2,
                zorder=5,
            )
    kept = [(places, values) for places, values in kept if places.size]
    if kept:
        shape = band(kept)
        axes.fill_between(
            shape.time_s, shape.low, shape.high, color=style.color, alpha=0.2, linewidth=0
        )
        first = 6 + 8 * list(LOOKS).index(curves[0].optimizer)
        axes.plot(
            shape.time_s, shape.median, marker=style.marker, markevery=(first, 25), **style.line
        )


def note_diverged(axes: Axes, groups: Mapping[str, Sequence[Curve]]) -> None:
    """Say in the corner how many runs of an optimizer diverged, where some did."""
    found = counts(curve for curves in groups.values() for curve in curves)
    lines = [
        f"{look(name).label}: {lost} of {total} diverged (×)"
        for name, (lost, total) in found.items()
        if lost
    ]
    if lines:
        axes.text(
            0.98, 0.97, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=8
        )
