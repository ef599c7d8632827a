"""``optimizer.png``: what a step of SNOpt costs, relative to one of SGD."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.measure.optimizers import UPDATE_FREQS
from experiments.measure.plotting import OURS, duration, entries, machines
from experiments.measure.scoring import pair_ratio
from experiments.publish.style import RC, WIDTH_IN, finish, look

NAME = "optimizer"

BARS = (
    ("adam", "Adam", look("adam").color, ""),
    ("snopt", "SNOpt, ordinary step", OURS, ""),
    ("snopt_ode_refresh", "SNOpt, refresh step, scope ode", "white", "////"),
    ("snopt_refresh", "SNOpt, refresh step", "white", ""),
)
"""Step, label, face and hatch of each bar."""

LINES = (("o", "solid"), ("s", (0, (5.0, 1.5))), ("^", (0, (1.5, 1.2))), ("D", "dashdot"))


def draw(folder: Path) -> None:
    """Draw ``optimizer.png`` from ``optimizer.json`` in ``folder``.

    Raises:
        RecordError: there are no results, or they are damaged.
    """
    found = entries(folder, NAME)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, 3.9))
        bars, lines = figure.subplots(1, 2, width_ratios=(1.6, 1.0))
        _draw_bars(bars, found)
        _draw_averages(lines, found)
        handles, labels = bars.get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=2, handlelength=1.6)
        rounds = min(entry["rounds"] for entry in found.values())
        caption = (
            f"{machines(found.values())} Medians of pairs over at least {rounds} interleaved"
            " rounds; bars with quartiles. All steps solve the same ODE (learning rate 0)."
            " Averages are composed of one refresh step and update_freq - 1 ordinary ones."
        )
        finish(figure, caption, folder / f"{NAME}.png", top=1 - 0.5 / figure.get_figheight())


def _draw_bars(axes: Axes, found: dict[str, dict[str, Any]]) -> None:
    width = 0.8 / len(BARS)
    for place, (step, label, face, hatch) in enumerate(BARS):
        ratios = [
            pair_ratio(entry["steps"][step]["samples_s"], entry["steps"]["sgd"]["samples_s"])
            for entry in found.values()
        ]
        x = [row + (place - (len(BARS) - 1) / 2) * width for row in range(len(found))]
        axes.bar(
            x,
            [ratio.median for ratio in ratios],
            width,
            label=label,
            facecolor=face,
            edgecolor=face if face != "white" else OURS,
            hatch=hatch,
        )
        axes.vlines(
            x, [r.q25 for r in ratios], [r.q75 for r in ratios], color="black", linewidth=1.0
        )
        for at, ratio in zip(x, ratios, strict=True):
            axes.annotate(
                f"{ratio.median:.2f}",
                (at, max(ratio.median, ratio.q75)),
                (0, 3),
                textcoords="offset points",
                ha="center",
                rotation=90,
                fontsize=8,
            )
    axes.axhline(1.0, color="black", linewidth=1.0)
    axes.set_xticks(
        range(len(found)),
        [
            f"{entry['title']}\n(1 = {duration(entry['steps']['sgd']['seconds']['median'])})"
            for entry in found.values()
        ],
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("Time of a step (SGD = 1)")
    axes.margins(y=0.2)


def _draw_averages(axes: Axes, found: dict[str, dict[str, Any]]) -> None:
    for (marker, style), entry in zip(cycle(LINES), found.values(), strict=False):
        values = [entry["average"]["all"][str(f)]["over_sgd"]["median"] for f in UPDATE_FREQS]
        axes.plot(
            UPDATE_FREQS, values, marker=marker, linestyle=style, color=OURS, label=entry["title"]
        )
    axes.axhline(1.0, color="black", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_xticks(UPDATE_FREQS, [str(freq) for freq in UPDATE_FREQS])
    axes.minorticks_off()
    axes.set_xlabel("update_freq (steps)")
    axes.set_ylabel("Average time of a step (SGD = 1)")
    axes.legend(handlelength=3.0, fontsize=8)
