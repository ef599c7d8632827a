"""Factor figure: A_ℓ(t) and B_ℓ(t) along the path, and how many nodes their integrals need.

First two rows, before and after training: trace, largest eigenvalue, distance to the time mean.
Last row: error of the integrals over the number of nodes, for the ReLU field and for the same
weights with tanh, and the training time to a target. In these runs of tuned SNOpt on digits only
the quadrature of the factors changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from experiments.base.errors import RecordError
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed, obtain
from experiments.measure.path_factors import Settings, along_path, node_errors, smooth
from experiments.measure.snapshots import EXPERIMENT, snapshots
from experiments.publish.provenance import devices, read_provenance
from experiments.publish.style import WIDTH_IN, draw_spread, finish, styled
from experiments.publish.tables import csv_of, read_table
from experiments.studies.execute import PlannedRun, Say
from experiments.studies.goals import time_to

NAME = "figure-factors"
METRIC, TARGET = "accuracy", 0.85
VARIANTS = (
    ("gauss_legendre", 1),
    ("gauss_legendre", 4),
    ("gauss_legendre", 16),
    ("uniform", 4),
    ("uniform", 100),
)
"""Rule and number of nodes; 100 uniform ones are the paper's."""
LENGTH = (
    f"trainer.stop_at={TARGET}",
    "trainer.epochs=null",
    "trainer.max_steps=160",
    "trainer.eval_every=5",
    "tracking=none",
)
ALONG, NODES, TIME = "along", "nodes", "time"
COLUMNS = {
    "panel": str,
    "seed": int,
    "step": float,
    "layer": str,
    "factor": str,
    "t": float,
    "field": str,
    "rule": str,
    "n": float,
    "tolerance": float,
    "quantity": str,
    "value": float,
}
"""``data.csv`` in long form; what does not apply is empty."""
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


def plan(request: Request) -> dict[tuple[str, int], list[PlannedRun]]:
    """Return the runs of the last panel by rule and number of nodes."""
    return {
        (rule, n): request.runs(
            EXPERIMENT, "digits", f"SNOpt, {rule}, n = {n}", (*quadrature(rule, n), *LENGTH)
        )
        for rule, n in VARIANTS
    }


def quadrature(rule: str, n: int) -> tuple[str, ...]:
    """Return the overrides that choose a rule with ``n`` nodes on [0, 1]."""
    if rule == "gauss_legendre":
        return (f"optimizer.quadrature.n={n}",)
    # A merged group would keep the other rule's n.
    return ("optimizer=snopt_uniform", f"optimizer.quadrature.step={1 / n:g}")


def row_of(made: Made[tuple[str, int]]) -> dict[str, Any]:
    """Return seconds and steps of a run to the target, infinite where it was missed."""
    rule, n = made.variant
    last = max(made.run.metrics, key=lambda row: row["step"])
    seconds = time_to(made.run.metrics, METRIC, TARGET, greater=True)
    steps = last["step"] if math.isfinite(seconds) else math.inf
    return {"seed": made.run.seed, "rule": rule, "n": n, "seconds": seconds, "steps": steps}


def reproduce(
    request: Request, say: Say, *, settings: Settings | None = None, timed: bool = True
) -> None:
    """Measure, train what is missing, then write the figure's files.

    Args:
        request: seeds determine weights and batches; overrides change the training configuration.
        say: prints one line.
        settings: what is measured along the path; None: all of it.
        timed: whether to make the runs of the last panel.
    """
    chosen = settings or Settings()
    wanted = in_turn(plan(request)) if timed else []
    rows: list[dict[str, Any]] = []
    for seed in request.seeds:
        taken = snapshots(
            seed,
            chosen.states,
            chosen.samples,
            overrides=request.overrides,
            data_dir=request.data_dir,
        )
        for snapshot in taken:
            say(f"{NAME}: factors along the path, seed {seed}, step {snapshot.step}")
            rows += long(ALONG, along_path(snapshot, chosen), tuple(QUANTITIES))
        trained = taken[-1].double()
        for field, snapshot in (("relu", trained), ("tanh", smooth(trained))):
            say(f"{NAME}: errors of quadratures, seed {seed}, {field}")
            rows += long(NODES, node_errors(snapshot, field, chosen), ("error",))
    made = obtain(request, wanted, say) if timed else []
    rows += long(TIME, map(row_of, made), ("seconds", "steps"))
    data = csv_of(pd.DataFrame(rows, columns=list(COLUMNS)), digits=6)
    request.publish(data, **_facts(request, chosen, made))
    redraw(request.folder)


def long(
    panel: str, rows: Iterable[Mapping[str, Any]], quantities: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row of ``data.csv`` for each quantity of each row."""
    return [
        {"panel": panel, **row, "quantity": name, "value": row[name]}
        for row in rows
        for name in quantities
    ]


def _facts(request: Request, settings: Settings, made: Sequence[Made[Any]]) -> dict[str, Any]:
    device = devices([{"device": "cpu", "threads": torch.get_num_threads()}])
    runs = facts_of(made)
    timed = (
        f" Time to {100 * TARGET:g} % validation accuracy on {runs['device']}: medians, dots are"
        " seeds, × missed it."
    )
    return {
        "device": device,
        "seeds": list(request.seeds),
        "experiment": EXPERIMENT,
        "overrides": list(request.overrides),
        "settings": asdict(settings),
        "caption": (
            f"{device}. Digits, {settings.samples} images, SNOpt with tuned settings, empirical"
            f" curvature. Seeds {listed(request.seeds)}: medians and ranges. Distances and"
            " errors relative, in the Frobenius norm; errors of the worse layer after training,"
            " against many nodes on the same solve (tolerance 1e-3; for the rule of step ends"
            " 1e-2 to 1e-5). Grey: error of the solve itself." + (timed if made else "")
        ),
        "runs": runs["runs"],
    }


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``."""
    table = read_table(folder / "data.csv", COLUMNS)
    line = read_provenance(folder)["caption"]
    picture = draw(table)
    finish(picture, line, folder / "figure.png", top=1 - 0.52 / picture.get_figheight())


@styled
def draw(table: pd.DataFrame) -> Picture:
    """Return the figure without its caption."""
    along = table[table["panel"] == ALONG]
    if along.empty:
        raise RecordError(f"{NAME}: there are no factors along the path")
    steps = sorted(along["step"].unique())
    picture = Picture(figsize=(WIDTH_IN, 2.0 * (len(steps) + 1) + 1.7))
    axes = picture.subplots(len(steps) + 1, 3, squeeze=False)
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
    _legends(picture, axes[-1, 1])
    return picture


def _share_rows(axes: Any, rows: int) -> None:
    """Give each quantity one scale before and after training."""
    for column in range(3):
        low = min(axes[row, column].get_ylim()[0] for row in range(rows))
        high = max(axes[row, column].get_ylim()[1] for row in range(rows))
        for row in range(rows):
            linear = axes[row, column].get_yscale() == "linear"
            axes[row, column].set_ylim(0.0 if linear and low < 0.5 * high else low, high)
            axes[row, column].set_xlim(0.0, 1.0)


def _legends(picture: Picture, errors: Axes) -> None:
    """Put the legends of curves and of rules above all panels, that of A and B into one of them."""
    curves = [
        Line2D([], [], label=f"${factor}$ of {layer}", **style)
        for (layer, factor), style in CURVES.items()
    ]
    rules = [Line2D([], [], markersize=4, linewidth=1.1, **rule) for rule in RULES.values()]
    rules.append(Line2D([], [], color=GREY, linewidth=1.0, label="error of the solve"))
    height = picture.get_figheight()
    common: dict[str, Any] = {"loc": "upper center", "ncols": 4, "columnspacing": 1.6}
    picture.legend(handles=curves, bbox_to_anchor=(0.5, 1.0), **common)
    picture.legend(handles=rules, bbox_to_anchor=(0.5, 1.0 - 0.22 / height), **common)
    factors = [
        Line2D([], [], color="black", linestyle=style, linewidth=1.2, label=f"${name}$")
        for name, style in OF_FACTOR.items()
    ]
    errors.legend(handles=factors, loc="upper right", borderpad=0.1, fontsize=8, handlelength=2.0)


def _wide(table: pd.DataFrame, index: str) -> pd.DataFrame:
    wide: pd.DataFrame = table.pivot_table(index=index, columns="seed", values="value")
    return wide.dropna()


def _draw_along(axes: Axes, table: pd.DataFrame) -> None:
    for (layer, factor), style in CURVES.items():
        own = table[(table["layer"] == layer) & (table["factor"] == factor)]
        if not own.empty:
            draw_spread(axes, _wide(own, "t"), 0.18, **style)


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
            draw_spread(axes, _wide(own, "n"), 0.18, markersize=3, linewidth=1.1, **style)
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


FIGURES = (Figure(NAME, reproduce, redraw),)
