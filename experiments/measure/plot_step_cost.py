"""``optimizers.png`` and ``optimizers.md``: the step cost of every optimizer, relative to SGD's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.base.files import write_whole
from experiments.measure.plotting import OURS, duration, entries, machines
from experiments.publish.style import finish

NAME = "optimizers"

_OTHERS = "#7A7A7A"


def draw(folder: Path) -> None:
    """Draw the picture and write the table from ``optimizers.json`` in ``folder``.

    Raises:
        RecordError: there is nothing to draw yet, or the file is damaged.
    """
    found = entries(folder, NAME)
    write_whole(folder / f"{NAME}.md", table(found))
    figure = Figure(figsize=(7.0, 0.32 * max(len(e["optimizers"]) for e in found.values()) + 1.7))
    for place, entry in enumerate(found.values(), start=1):
        axes = figure.add_subplot(1, len(found), place)
        rows = by_cost(entry)
        names = [name for name, _ in rows]
        means = [o["average_over_sgd"] for _, o in rows]
        colours = [OURS if name.startswith("snopt") else _OTHERS for name in names]
        axes.barh(names, means, color=colours, height=0.65)
        medians = [o["ordinary_over_sgd"]["median"] for _, o in rows]
        axes.plot(medians, range(len(names)), "k|", markersize=9, label="step without a refresh")
        for y, mean in enumerate(means):
            axes.annotate(
                f"{mean:.2f}", (max(mean, medians[y]), y), (4, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        axes.axvline(1.0, color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.6 * max(*means, *medians))
        axes.set_xlabel("seconds of a step / SGD's")
        axes.set_title(entry["title"], fontsize=10)
        axes.legend(fontsize=8, loc="upper right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    one = next(iter(found.values()))
    caption = (
        f"{one['description']}, {one['parameters']} parameters, published settings of each. Bars: "
        f"mean of {one['rounds']} interleaved steps at the same weights, refreshes with their "
        f"share; marks: median. {machines(found.values())}"
    )
    finish(figure, caption, folder / f"{NAME}.png")


def by_cost(entry: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the optimizers, the cheapest average step first."""
    return sorted(entry["optimizers"].items(), key=lambda item: item[1]["average_over_sgd"])


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| optimizer | average step / SGD's | step without a refresh / SGD's | average step |"
        " losses a step | forward / backward / curvature evaluations a step |",
        "|---|---|---|---|---|---|",
    ]
    for entry in found.values():
        for name, o in by_cost(entry):
            nfe = " / ".join(f"{o[f'nfe_{k}']:.4g}" for k in ("forward", "backward", "curvature"))
            lines.append(
                f"| {name} | {o['average_over_sgd']:.3f} | {o['ordinary_over_sgd']['median']:.3f} |"
                f" {duration(o['mean_s'])} | {o['losses']:.3g} | {nfe} |"
            )
        for name, reason in entry.get("failed", {}).items():
            lines.append(f"| {name} | failed: {reason.replace('|', '/')} | | | | |")
    return "\n".join(lines) + "\n"
