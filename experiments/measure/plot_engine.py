"""``engine.png``: time of one pass in multiples of the floor, one row a workload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from experiments.measure.plotting import OURS, duration, entries, machines
from experiments.publish.style import RC, WIDTH_IN, finish

NAME = "engine"


@dataclass(frozen=True)
class Mark:
    """How a variant is drawn: shape and grey tell it apart without colour."""

    marker: str
    color: str
    face: str


MARKS = {
    "snopt_adjoint": Mark("^", OURS, OURS),
    "snopt_checkpoint": Mark("v", OURS, "white"),
    "torchdiffeq_seminorm": Mark("s", "#222222", "#222222"),
    "torchdiffeq_adjoint": Mark("s", "#222222", "white"),
    "torchdiffeq_direct": Mark("o", "#777777", "#777777"),
}


def draw(folder: Path) -> None:
    """Draw ``engine.png`` from ``engine.json`` in ``folder``.

    Raises:
        RecordError: there are no results, or they are damaged.
    """
    found = entries(folder, NAME)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.62 * len(found)))
        axes = figure.subplots()
        labels = []
        for row, entry in enumerate(found.values()):
            variants = entry["variants"]
            for place, (name, variant) in enumerate(variants.items()):
                mark, over = MARKS[name], variant["over_floor"]
                # A little apart, so that equal ones do not hide one another.
                y = row + 0.11 * (place - (len(variants) - 1) / 2)
                axes.plot([over["q25"], over["q75"]], [y, y], color=mark.color, linewidth=1.0)
                axes.plot(
                    [over["median"]],
                    [y],
                    linestyle="none",
                    marker=mark.marker,
                    color=mark.color,
                    markerfacecolor=mark.face,
                    label=variant["label"] if variant["label"] not in labels else None,
                )
                labels.append(variant["label"])
        axes.axvline(1.0, color="black", linewidth=1.0)
        axes.set_yticks(
            range(len(found)),
            [
                f"{entry['title']}\n(1 = {duration(entry['floor']['seconds']['median'])})"
                for entry in found.values()
            ],
        )
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Time of one forward and backward pass / time of its evaluations alone")
        figure.legend(loc="upper center", ncols=2, handlelength=1.2)
        rounds = sorted({entry["rounds"] for entry in found.values()})
        caption = (
            f"{machines(found.values())} Median and quartiles over {_span(rounds)} interleaved"
            " rounds, as pairs with the floor: the evaluations of F and the vector-Jacobian"
            " products that the adjoint of snopt makes, and nothing else."
        )
        finish(figure, caption, folder / f"{NAME}.png", top=1 - 0.62 / figure.get_figheight())


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
