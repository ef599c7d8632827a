"""The panels of the factor figure, from its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.base.errors import RecordError
from experiments.publish.style import WIDTH_IN

ALONG, NODES, TIME = "along", "nodes", "time"
COLUMNS = (
    *("panel", "seed", "step", "layer", "factor", "t", "field", "rule", "n", "tolerance"),
    *("quantity", "value"),
)
QUANTITIES = {
    "trace": "Trace / mean",
    "top": "Largest eigenvalue / trace",
    "distance": "Distance to time mean",
}
FIELDS = {"relu": "ReLU field", "tanh": "tanh field"}
CURVES: dict[tuple[str, str], dict[str, Any]] = {
    ("conv1", "A"): {"color": "#1F78B4", "linestyle": "solid"},
    ("conv2", "A"): {"color": "#1F78B4", "linestyle": (0, (4.0, 1.5))},
    ("conv1", "B"): {"color": "#8C1C4A", "linestyle": "solid"},
    ("conv2", "B"): {"color": "#8C1C4A", "linestyle": (0, (4.0, 1.5))},
}
RULES: dict[str, dict[str, Any]] = {
    "gauss_legendre": {"label": "Gauss–Legendre", "color": "#8C1C4A", "marker": "^"},
    "uniform": {"label": "uniform", "color": "#E09F2B", "marker": "s"},
    "steps": {"label": "step ends", "color": "#1F78B4", "marker": "o"},
}
OF_FACTOR: dict[str, Any] = {"A": "solid", "B": (0, (3.0, 1.2))}
GREY = "#888888"


def draw(table: pd.DataFrame) -> Figure:
    """Return the figure without its caption; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there are no factors along the path.
    """
    along = table[table["panel"] == ALONG]
    if along.empty:
        raise RecordError("figure-factors: there are no factors along the path")
    steps = sorted(along["step"].unique())
    figure = Figure(figsize=(WIDTH_IN, 2.0 * (len(steps) + 1) + 1.7))
    axes = figure.subplots(len(steps) + 1, 3, squeeze=False)
    for row, step in enumerate(steps):
        for column, (quantity, label) in enumerate(QUANTITIES.items()):
            own = along[(along["step"] == step) & (along["quantity"] == quantity)]
            _draw_along(axes[row, column], own)
            axes[row, column].set_xlabel("Time $t$")
            if quantity == "trace":
                axes[row, column].set_yscale("log")
            if row == 0:
                axes[row, column].set_title(label)
        name = "before training" if step == 0 else f"after {int(step)} steps"
        axes[row, 0].set_ylabel(name, fontweight="bold")
    for column, field in enumerate(FIELDS):
        own = table[(table["panel"] == NODES) & (table["field"] == field)]
        _draw_errors(axes[-1, column], own)
        axes[-1, column].set_title(FIELDS[field])
        axes[-1, column].set_xlabel("Nodes $n$")
    axes[-1, 0].set_ylabel("Relative error")
    _draw_time(axes[-1, 2], table[table["panel"] == TIME])
    _share_rows(axes, len(steps))
    _legends(figure, axes[-1, 1])
    return figure


def _share_rows(axes: Any, rows: int) -> None:
    """Give each quantity one scale before and after training."""
    for column in range(3):
        low = min(axes[row, column].get_ylim()[0] for row in range(rows))
        high = max(axes[row, column].get_ylim()[1] for row in range(rows))
        for row in range(rows):
            linear = axes[row, column].get_yscale() == "linear"
            axes[row, column].set_ylim(0.0 if linear and low < 0.5 * high else low, high)
            axes[row, column].set_xlim(0.0, 1.0)


def _legends(figure: Figure, errors: Axes) -> None:
    """Put the legends of curves and of rules above all panels, that of A and B into one of them."""
    curves = [
        Line2D([], [], label=f"${factor}$ of {layer}", **style)
        for (layer, factor), style in CURVES.items()
    ]
    rules = [Line2D([], [], markersize=4, linewidth=1.1, **rule) for rule in RULES.values()]
    rules.append(Line2D([], [], color=GREY, linewidth=1.0, label="error of the solve"))
    height = figure.get_figheight()
    common: dict[str, Any] = {"loc": "upper center", "ncols": 4, "columnspacing": 1.6}
    figure.legend(handles=curves, bbox_to_anchor=(0.5, 1.0), **common)
    figure.legend(handles=rules, bbox_to_anchor=(0.5, 1.0 - 0.22 / height), **common)
    factors = [
        Line2D([], [], color="black", linestyle=style, linewidth=1.2, label=f"${name}$")
        for name, style in OF_FACTOR.items()
    ]
    errors.legend(handles=factors, loc="upper right", borderpad=0.1, fontsize=8, handlelength=2.0)


def _wide(table: pd.DataFrame, index: str) -> pd.DataFrame:
    wide: pd.DataFrame = table.pivot_table(index=index, columns="seed", values="value")
    return wide.dropna()


def _band(axes: Axes, wide: pd.DataFrame, color: str) -> None:
    low, high = wide.min(axis=1), wide.max(axis=1)
    axes.fill_between(wide.index, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_along(axes: Axes, table: pd.DataFrame) -> None:
    for (layer, factor), style in CURVES.items():
        own = table[(table["layer"] == layer) & (table["factor"] == factor)]
        if own.empty:
            continue
        wide = _wide(own, "t")
        _band(axes, wide, style["color"])
        axes.plot(wide.index, wide.median(axis=1), **style)


def _draw_errors(axes: Axes, table: pd.DataFrame) -> None:
    for rule, look in RULES.items():
        for factor, line in OF_FACTOR.items():
            own = table[(table["rule"] == rule) & (table["factor"] == factor)]
            if own.empty:
                continue
            style = {"color": look["color"], "linestyle": line, "marker": look["marker"]}
            if rule == "steps":
                # The solver chooses the number of nodes, another one for each seed.
                by = own.groupby("tolerance")[["n", "value"]].median().sort_values("n")
                axes.plot(by["n"], by["value"], markersize=3, linewidth=1.1, **style)
                continue
            wide = _wide(own, "n")
            _band(axes, wide, look["color"])
            axes.plot(wide.index, wide.median(axis=1), markersize=3, linewidth=1.1, **style)
    for factor, line in OF_FACTOR.items():
        own = table[(table["rule"] == "solve") & (table["factor"] == factor)]
        if not own.empty:
            axes.axhline(own["value"].median(), color=GREY, linestyle=line, linewidth=1.0)
    axes.set_xscale("log")
    axes.set_yscale("log")


def _draw_time(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_title("Time to target (s)")
    axes.set_xlabel("Nodes $n$")
    seconds = table[table["quantity"] == "seconds"]
    finite = seconds[np.isfinite(seconds["value"])]
    if seconds.empty:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    edge = 1.15 * float(finite["value"].max()) if len(finite) else 1.0
    # A little to the side, so that two rules with the same n are both seen.
    for rule, shift in (("gauss_legendre", 0.92), ("uniform", 1.08)):
        own, look = seconds[seconds["rule"] == rule], RULES[rule]
        own = own.assign(n=own["n"] * shift)
        style = {"color": look["color"], "marker": look["marker"]}
        hit = own[np.isfinite(own["value"])]
        missed = own[~np.isfinite(own["value"])]
        axes.plot(hit["n"], hit["value"], linestyle="none", color=GREY, marker=".", markersize=4)
        axes.plot(missed["n"], [edge] * len(missed), "x", color=look["color"], markersize=5)
        middle = own.groupby("n")["value"].median()
        middle = middle[np.isfinite(middle)]
        axes.plot(middle.index, middle, markersize=4.5, linewidth=1.1, **style)
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.1 * edge)
