"""Refresh figure: what a refresh of SNOpt's factors does to the loss on Circle.

Left: training loss over steps for several intervals between refreshes, and for the shortest with
the second moment carried over or the factors averaged. Right: change of the loss in the steps after
a refresh. The hyper-network sees the time alone, so its factors come from one row an evaluation and
have a low rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from experiments.base.errors import RecordError
from experiments.figures.request import Figure, Request, facts_of, in_turn, listed, obtain
from experiments.publish.provenance import read_provenance
from experiments.publish.runs import running_mean
from experiments.publish.style import WIDTH_IN, Look, draw_spread, finish, styled
from experiments.publish.tables import csv_of, read_table
from experiments.run.records import Summary
from experiments.studies.execute import PlannedRun, Say

NAME = "figure-refresh"
EXPERIMENT = "figure-6/circle-snopt"
COLUMNS = {"variant": str, "seed": int, "step": int, "loss": float, "refreshed": int}
"""``data.csv``; ``loss`` is that of the batch before the step's update."""
WINDOW = 20
"""Steps of the left panel's running mean."""
AFTER = 9
"""Steps after a refresh that the right panel shows."""
SETTLED = 50
"""Refreshes before this step are left out of the right panel: the loss falls anyway."""


class Variant(NamedTuple):
    """One line of the figure."""

    overrides: tuple[str, ...]
    look: Look


VARIANTS = {
    "10": Variant(("optimizer.update_freq=10",), Look("every 10", "#E09F2B", (0, (1.5, 1.2)), "s")),
    "10-carried": Variant(
        ("optimizer.update_freq=10", "++optimizer.carry_moment=true"),
        Look("every 10, moment carried", "#7A7A7A", (0, (4.0, 1.2, 1.0, 1.2)), "D"),
    ),
    "10-averaged": Variant(
        ("optimizer.update_freq=10", "++optimizer.factor_decay=0.9"),
        Look("every 10, factors averaged", "#2B2B2B", (0, (1.0, 0.8)), "v"),
    ),
    "50": Variant(("optimizer.update_freq=50",), Look("every 50", "#1F78B4", (0, (5.0, 1.5)), "o")),
    "100": Variant(("optimizer.update_freq=100",), Look("every 100", "#8C1C4A", "solid", "^")),
}
"""What is compared: steps between refreshes, the carried moment, averages over refreshes."""


def plan(request: Request) -> dict[str, list[PlannedRun]]:
    """Return the runs of each variant, by seed."""
    return {
        name: request.runs(EXPERIMENT, "circle", f"SNOpt, refresh {name}", variant.overrides)
        for name, variant in VARIANTS.items()
    }


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write the figure's files."""
    made = obtain(request, in_turn(plan(request)), say)
    made.sort(key=lambda one: list(VARIANTS).index(one.variant))  # stable: seeds keep their order
    rows = pd.concat([steps(one.variant, one.run) for one in made])
    facts = facts_of(made)
    facts["caption"] = (
        f"{facts['device']}. Circle, SNOpt with tuned settings but for the steps between two "
        f"refreshes of the factors. Seeds {listed(facts['seeds'])}. Left: running means over "
        f"{WINDOW} steps, medians and ranges over seeds. Right: change of the loss from the step "
        f"before, mean over the refreshes after step {SETTLED} and over seeds; dots are seeds."
    )
    request.publish(csv_of(rows, digits=6), **facts)
    redraw(request.folder)


def steps(variant: str, run: Summary) -> pd.DataFrame:
    """Return a row of :data:`COLUMNS` for each step of a run."""
    rows = [
        (variant, run.seed, row["step"], row["train/loss"], int(row["nfe/curvature"] > 0))
        for row in run.metrics
        if "train/loss" in row
    ]
    if not rows:
        raise RecordError(f"{run.name} took no step ({run.folder})")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def changes(own: pd.DataFrame) -> list[float]:
    """Return the mean change of the loss 1, 2, …, :data:`AFTER` steps after a refresh of one run.

    It is NaN where no refresh has that many steps before the next one.
    """
    loss = dict(zip(own.step, own.loss, strict=True))
    every = set(own.step[own.refreshed > 0])
    refreshes = sorted(step for step in every if step > SETTLED)
    means = []
    for after in range(1, AFTER + 1):
        found = [
            loss[step + after] - loss[step + after - 1]
            for step in refreshes
            if step + after in loss and every.isdisjoint(range(step + 1, step + after))
        ]
        means.append(float(np.mean(found)) if found else float("nan"))
    return means


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``."""
    table = read_table(folder / "data.csv", COLUMNS)
    line = read_provenance(folder)["caption"]
    finish(draw(table), line, folder / "figure.png", top=0.88)


@styled
def draw(table: pd.DataFrame) -> Picture:
    """Return the figure without its caption."""
    picture = Picture(figsize=(WIDTH_IN, 4.0))
    left, right = picture.subplots(1, 2)
    labelled = {str(name): group for name, group in table.groupby("variant")}
    after = np.arange(1, AFTER + 1)
    shift = np.linspace(-0.18, 0.18, len(VARIANTS))
    for place, (name, variant) in enumerate(VARIANTS.items()):
        if name not in labelled:
            continue
        runs = [own.sort_values("step") for _, own in labelled[name].groupby("seed")]
        look = variant.look
        curves = [pd.Series(running_mean(own.loss, WINDOW), own.step) for own in runs]
        wide = pd.concat(curves, axis=1, join="inner")
        draw_spread(left, wide, 0.18, label=look.label, **look.line)
        means = np.array([changes(own) for own in runs])
        for each in means:
            right.plot(after + shift[place], each, ".", color=look.color, markersize=3)
        middle = means.mean(axis=0)
        right.plot(after + shift[place], middle, marker=look.marker, **look.line)
    left.set_xlabel("Training steps")
    left.set_ylabel("Training loss (nats)")
    right.axhline(0.0, color="#333333", linewidth=0.8)
    right.set_xlabel("Steps after a refresh")
    right.set_ylabel("Change of the training loss (nats)")
    right.set_xticks(after)
    handles, labels = left.get_legend_handles_labels()
    picture.legend(handles, labels, loc="upper center", ncols=3)
    return picture


FIGURES = (Figure(NAME, reproduce, redraw),)
