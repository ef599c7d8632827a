"""``memory.png``: memory of each optimizer, and of each gradient mode against solver steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.measure.memory import STEPS
from experiments.measure.plotting import OURS, entries, machines
from experiments.publish.style import RC, WIDTH_IN, finish, look

NAME = "memory"

BARS = (
    ("sgd", "SGD", look("sgd").color, ""),
    ("adam", "Adam", look("adam").color, "...."),
    ("snopt_ode", "SNOpt, scope ode", "white", "////"),
    ("snopt", "SNOpt", OURS, ""),
)
"""Optimizer, label, face and hatch of each bar."""

LINES = {
    "snopt_adjoint": ("^", "solid", OURS),
    "snopt_checkpoint": ("s", (0, (5.0, 1.5)), "#444444"),
    "snopt_direct": ("o", (0, (1.5, 1.2)), "#777777"),
}


def draw(folder: Path) -> None:
    """Draw ``memory.png`` from ``memory.json`` in ``folder``; a panel without results is left out.

    Raises:
        RecordError: there are no results, or they are damaged.
    """
    found = entries(folder, NAME)
    training = {name: entry for name, entry in found.items() if name != STEPS}
    panels = bool(training) + (STEPS in found)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN * (1.0 if panels == 2 else 0.6), 3.6))
        axes = list(figure.subplots(1, panels, squeeze=False)[0])
        if training:
            _draw_optimizers(axes[0], training)
        if STEPS in found:
            _draw_steps(axes[-1], found[STEPS])
        counted = (
            "The allocator's peak less its state at the start"
            if all(entry["origin"]["device"] != "cpu" for entry in found.values())
            else "Peak of the resident memory less the start: imports, building, two small steps"
        )
        caption = f"{machines(found.values())} {counted}; every measurement in its own process."
        finish(figure, caption, folder / f"{NAME}.png")


def _draw_optimizers(axes: Axes, found: dict[str, dict[str, Any]]) -> None:
    width = 0.8 / len(BARS)
    for place, (optimizer, label, face, hatch) in enumerate(BARS):
        x = [row + (place - (len(BARS) - 1) / 2) * width for row in range(len(found))]
        values = [entry["optimizers"][optimizer]["extra_mb"] for entry in found.values()]
        axes.bar(
            x,
            [value["median"] for value in values],
            width,
            label=label,
            facecolor=face,
            edgecolor=OURS if face == "white" else "black",
            linewidth=0.6,
            hatch=hatch,
        )
    axes.set_xticks(range(len(found)), [entry["title"] for entry in found.values()], fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("Peak memory of training steps (MB)")
    axes.legend(handlelength=1.6, fontsize=8)


def _draw_steps(axes: Axes, entry: dict[str, Any]) -> None:
    for name, mode in entry["modes"].items():
        marker, style, color = LINES[name]
        points = sorted((p["steps_forward"], p["extra_mb"]) for p in mode["points"])
        slope = mode["mb_per_step"]
        axes.plot(
            *zip(*points, strict=True),
            marker=marker,
            linestyle=style,
            color=color,
            label=f"{mode['label'].removeprefix('snopt ')}: "
            f"{slope['slope']:+.2f} ± {slope['slope_stderr']:.2f} MB a step",
        )
    axes.set_ylim(0.0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"Accepted steps (state {entry['state_mb']:.2g} MB)")
    axes.set_ylabel("Peak memory of a pass (MB)")
    axes.legend(handlelength=3.0, fontsize=8)
