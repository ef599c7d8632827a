"""The comparison in pictures: performance profiles and speed-ups."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.publish.names import optimizer_name
from experiments.publish.style import WIDTH_IN
from experiments.studies.comparison.report import optimizers, reference_of, speed_ups, where_and_how
from experiments.studies.comparison.rows import Row
from experiments.studies.comparison.scoring import LEVEL, MEASURES, SpeedUp, profile, studies_of

TAU_MAX, POINTS, COLUMNS = 4.0, 601, 3

OWN, OTHERS, FILL = "#8C1C4A", "#B8B8B8", "#F1DDE5"

TITLES = {"seconds": "Training time", "steps": "Steps", "nfe": "Field evaluations"}


def draw_profile(rows: Sequence[Row]) -> Figure:
    """Return the performance profiles: a panel for each optimizer, the others thin behind it.

    With few data sets, profiles lie on one another; panels keep each one readable. Call it within
    ``matplotlib.rc_context(RC)``.
    """
    found = studies_of(rows)
    names = optimizers(rows)
    taus = np.linspace(1.0, TAU_MAX, POINTS)
    curves = {name: np.array(profile(found, name, taus.tolist())) for name in names}
    area = {name: float(curve.mean()) for name, curve in curves.items()}
    names.sort(key=lambda name: -area[name])
    lines = _wrapped(
        f"{where_and_how(rows)}. Share of {len(found)} data sets on which an optimizer's score"
        " (median over studies of the fastest trial's training time to the target) is at most τ"
        " times the best one; a miss never counts. Grey: the other optimizers."
    )
    down = math.ceil(len(names) / COLUMNS)
    height = 0.55 + 1.45 * down + 0.16 * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height))
    panels = figure.subplots(down, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        for other in names:
            if other != name:
                panel.plot(taus, curves[other], color=OTHERS, linewidth=0.8, zorder=1)
        panel.fill_between(taus, curves[name], color=FILL, zorder=0)
        panel.plot(taus, curves[name], color=OWN, linewidth=2.4, zorder=3, clip_on=False)
        panel.set_title(optimizer_name(name))
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    panels[0, 0].set_xlim(1.0, TAU_MAX)
    panels[0, 0].set_ylim(0.0, 1.0)
    for panel in panels[:, 0]:
        panel.set_ylabel("Share ρ(τ)")
    for column in range(COLUMNS):
        shown = [panel for panel in panels[:, column] if panel.get_visible()]
        if shown:
            shown[-1].set_xlabel("τ")
            shown[-1].tick_params(labelbottom=True)
    _caption(figure, lines, height)
    return figure


def draw_speed_up(rows: Sequence[Row]) -> Figure:
    """Return the speed-ups in training time, steps and evaluations of the field, side by side.

    Call it within ``matplotlib.rc_context(RC)``.
    """
    found = studies_of(rows)
    ups = speed_ups(found, rows)
    names = sorted(optimizers(rows), key=lambda name: -ups[name, "seconds"].bounded)
    reference = optimizer_name(reference_of(rows))
    lines = _wrapped(
        f"{where_and_how(rows)}. Geometric mean over {len(found)} data sets; bars:"
        f" {100 * LEVEL:.0f} % bootstrap interval over studies. A miss counts with the least that"
        " it can have taken: an open triangle to the left marks an upper bound (the optimizer"
        " missed a data set), to the right a lower one (the reference did), an open diamond"
        " neither."
    )
    height = 0.95 + 0.24 * len(names) + 0.16 * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height))
    panels = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, MEASURES, strict=True):
        own = [ups[name, measure] for name in names]
        for place, up in enumerate(own):
            _mark(panel, place, up)
        panel.axvline(1.0, color="#666666", linewidth=1.0, zorder=1)
        _ratio_axis(panel, own)
        panel.set_title(TITLES[measure])
        panel.grid(visible=False, axis="y")
    panels[1].set_xlabel(f"Speed-up over {reference} (times)")
    panels[0].set_yticks(range(len(names)), [optimizer_name(name) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    _caption(figure, lines, height)
    return figure


def _mark(panel: Axes, place: int, up: SpeedUp) -> None:
    """Draw one speed-up with its interval."""
    marker = {(False, False): "o", (True, False): "<", (False, True): ">"}.get(
        (up.upper, up.lower), "D"
    )
    panel.plot([up.low, up.high], [place, place], color="#555555", linewidth=1.4, zorder=2)
    panel.plot(
        *([up.bounded], [place]),
        marker=marker,
        markersize=6,
        color=OWN,
        markerfacecolor=OWN if marker == "o" else "white",
        markeredgewidth=1.3,
        linestyle="none",
        zorder=3,
    )


def _ratio_axis(panel: Axes, ups: Sequence[SpeedUp]) -> None:
    """Set a logarithmic axis with ticks at powers of 2 that leaves room for every interval."""
    low = min(1.0, *(up.low for up in ups), *(up.bounded for up in ups)) / 1.25
    high = max(1.0, *(up.high for up in ups), *(up.bounded for up in ups)) * 1.25
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    powers = [2.0**k for k in range(-10, 11) if low <= 2.0**k <= high]
    powers = powers[:: max(1, math.ceil(len(powers) / 6))]
    panel.xaxis.set_major_locator(FixedLocator(powers))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(powers, [f"{p:g}" if p >= 1 else f"1/{1 / p:.0f}" for p in powers])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=int(16 * WIDTH_IN))


def _caption(figure: Figure, lines: Sequence[str], height: float) -> None:
    figure.text(0.5, 0.06 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, (0.1 + 0.14 * len(lines)) / height, 1.0, 1.0))
