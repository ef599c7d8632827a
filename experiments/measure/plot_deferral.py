"""``deferral.png``: what deferring the parameter products costs, over the share of rejections."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.measure.plotting import OURS, entries, machines
from experiments.publish.style import RC, WIDTH_IN, finish

NAME = "deferral"

MARKERS = ("o", "s", "^", "v", "D", "P")


def draw(folder: Path) -> None:
    """Draw ``deferral.png`` from ``deferral.json`` in ``folder``.

    Raises:
        RecordError: there are no results, or they are damaged.
    """
    found = entries(folder, NAME)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, 3.6))
        axes = figure.subplots()
        for place, entry in enumerate(found.values()):
            ratio, share = entry["deferred_over_joint"], 100 * entry["rejected_share"]
            axes.plot([share, share], [ratio["q25"], ratio["q75"]], color=OURS, linewidth=1.0)
            axes.plot(
                [share],
                [ratio["median"]],
                linestyle="none",
                marker=MARKERS[place % len(MARKERS)],
                markerfacecolor=OURS if place % 2 else "white",
                color=OURS,
                label=entry["title"],
            )
        axes.axhline(1.0, color="black", linewidth=1.0)
        axes.set_xlabel("Attempted steps of the backward solve that were rejected (%)")
        axes.set_ylabel("Products after acceptance /\nproducts with every stage (time)")
        figure.legend(loc="upper center", ncols=3, handlelength=1.2)
        caption = (
            f"{machines(found.values())} One forward and backward pass, median and quartiles over"
            " interleaved pairs. Above 1 it is cheaper to take the parameter products with every"
            " stage, in vain where a step is rejected, as snopt does."
        )
        finish(figure, caption, folder / f"{NAME}.png", top=1 - 0.55 / figure.get_figheight())
