"""Step figure: what SNOpt's steps are made of during the runs of figure 1; when is it second order?

One column a data set, over training steps, of the layers inside the ODE. Top: share of the
coordinates of the eigenbasis whose second moment S exceeds the damping ε, and their share of the
squared gradient. Middle: cosine of gradient and step. Bottom: length of the step relative to that
of gradient descent at lr/ε. While S ≪ ε the step is that of gradient descent: shares 0, the others
1. Lines are medians, bands ranges, over layers and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Picture

from experiments.base.errors import RecordError
from experiments.figures.loss_curves import COLUMNS_OF_FIGURE_1, PROFILES, experiment_of
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed, obtain
from experiments.publish.names import panel_title
from experiments.publish.provenance import read_provenance
from experiments.publish.style import WIDTH_IN, draw_spread, finish, styled
from experiments.publish.tables import csv_of, read_table
from experiments.run.config import load_config
from experiments.studies.execute import PlannedRun, Say, available
from snopt.precondition.kronecker import PARTS

NAME = "figure-step"
COLUMNS = {"dataset": str, "seed": int, "layer": str, "step": int, **dict.fromkeys(PARTS, float)}
"""``data.csv``: one row a layer inside the ODE and logged step."""
ROWS = (
    ("S > ε: share of", {"above": "coordinates", "energy_above": "squared gradient"}),
    ("cosine of gradient and step", {"cosine": ""}),
    ("step / gradient descent's", {"length": ""}),
)
COLORS = ("#8C1C4A", "#1F78B4")


def plan(request: Request) -> dict[str, list[PlannedRun]]:
    """Return the runs by data set: SNOpt's of figure 1, which report their steps."""
    plans = {}
    for dataset in COLUMNS_OF_FIGURE_1[request.profile]:
        experiment = experiment_of(dataset, "snopt", request.profile)
        split = "ode" in load_config([f"experiment={experiment}"])["optimizer"]
        change = f"+optimizer.{'ode.' * split}report_steps=true"
        plans[dataset] = request.runs(experiment, dataset, "SNOpt, steps reported", [change])
    return plans


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write the figure's files."""
    plans = plan(request)
    present = available(plans, say)
    made = obtain(request, in_turn({name: plans[name] for name in present}), say)
    facts = facts_of(made)
    facts["caption"] = (
        f"{facts['device']}. SNOpt as in figure 1, layers inside the ODE. Seeds "
        f"{listed(facts['seeds'])}: median and range over layers and seeds."
    )
    table = pd.concat([parts_of(one) for one in made], ignore_index=True)
    request.publish(csv_of(table, digits=6), **facts, profile=request.profile)
    redraw(request.folder)


def parts_of(made: Made[str]) -> pd.DataFrame:
    """Return the rows of :data:`COLUMNS` of a run.

    Raises:
        RecordError: it reports no steps.
    """
    run, found = made.run, []
    for row in run.metrics:
        for key in row:
            layer, _, part = key.removeprefix("optimizer/").removeprefix("ode/").rpartition("/")
            if part == PARTS[0] and layer.startswith("ode.") and key.startswith("optimizer/"):
                own = [row.get(f"{key.removesuffix(part)}{name}") for name in PARTS]
                found.append([run.dataset, run.seed, layer, row["step"], *own])
    if not found:
        raise RecordError(f"{run.name} reports no steps ({run.folder})")
    return pd.DataFrame(found, columns=list(COLUMNS))


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``."""
    table = read_table(folder / "data.csv", COLUMNS)
    finish(draw(table), read_provenance(folder)["caption"], folder / "figure.png")


@styled
def draw(table: pd.DataFrame) -> Picture:
    """Return the figure without its caption."""
    datasets: Sequence[str] = list(dict.fromkeys(table["dataset"]))
    picture = Picture(figsize=(WIDTH_IN, 6.0))
    axes = picture.subplots(len(ROWS), len(datasets), sharex="col", sharey="row", squeeze=False)
    for column, dataset in enumerate(datasets):
        own = table[table["dataset"] == dataset]
        for row, (label, parts) in enumerate(ROWS):
            panel = axes[row, column]
            for (part, name), color in zip(parts.items(), COLORS, strict=False):
                wide = own.pivot(index="step", columns=["layer", "seed"], values=part)
                draw_spread(panel, wide, color=color, label=name)
            panel.set_ylim(-0.03, 1.03)
            if column == 0:
                panel.set_ylabel(label)
        axes[0, column].set_title(panel_title(dataset))
        axes[-1, column].set_xlabel("Training steps")
    axes[0, 0].legend()
    return picture


FIGURES = (Figure(NAME, reproduce, redraw, PROFILES),)
