"""Density figure: what 2-d flows have learned, one row a run.

From left to right: points of the test set, the learned density on a grid, and base points on their
way to the data at five times. ``scripts/density.py`` draws any finished run on points in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.base.errors import ConfigError, RecordError
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed, obtain
from experiments.models.cnf import CNF
from experiments.publish.names import dataset_name
from experiments.publish.provenance import publish
from experiments.publish.style import WIDTH_IN, put_caption, save, styled, wrapped
from experiments.publish.tables import csv_of
from experiments.run.build import build
from experiments.run.checkpoint import load_checkpoint
from experiments.run.config import run_name
from experiments.run.records import Record, Summary
from experiments.studies.execute import Say

NAME = "figure-density"
DATASETS = ("circle", "pinwheel", "eight_gaussians", "checkerboard", "moons")
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Times of the flow, as parts of the whole."""
POINTS = 20_000
"""Points of the flow's pictures."""
GRID = 120
"""Cells of the density's picture, each way."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """What is drawn of one run.

    Attributes:
        dataset: data set name.
        optimizer: optimizer name.
        seed: seed of the run.
        test_nll: negative log-likelihood of the test set in nats.
        mass: integral of the learned density over the picture.
        extent: half the width of the pictures.
        data: test points, shape (n, 2).
        density: p at the centres of the cells, shape (GRID, GRID), rows from low to high y.
        path: points of the flow at :data:`FRACTIONS`, each of shape (POINTS, 2).
    """

    dataset: str
    optimizer: str
    seed: int
    test_nll: float
    mass: float
    extent: float
    data: Array
    density: Array
    path: tuple[Array, ...]


NUMBERS = ("dataset", "optimizer", "seed", "test_nll", "mass", "extent")
"""Header of ``data.csv``."""


def learned(run: Summary, points: int = POINTS, grid: int = GRID) -> Learned:
    """Evaluate the flow of a finished run with ``points`` points and ``grid`` cells each way.

    Raises:
        ConfigError: the run's data are not points in the plane.
        RecordError: the run is not done, or its record is damaged.
        CheckpointError: its checkpoint is damaged.
    """
    if run.task != "cnf":
        raise ConfigError(f"{run.name} is a run of task {run.task}; a density needs task cnf")
    if run.state != "done":
        raise RecordError(f"{run.name} is {run.state}: a density needs a run that is done")
    try:
        config = OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{run.folder}/config.yaml cannot be read: {error}") from None
    config = cast("dict[str, object]", config)
    parts = build(config, torch.device("cpu"))
    if parts.data.info.input_shape != (2,):
        raise ConfigError(f"{run.name} has points of {parts.data.info.input_shape}, not (2,)")
    state = load_checkpoint(run.folder / "checkpoint.pt", run_name(run.folder))
    if state is None:
        raise RecordError(f"{run.folder} has no checkpoint.pt: its weights are not there")
    flow = cast(CNF, parts.model)
    flow.load_state_dict(state["model"])
    data = parts.data.test[0]
    extent = float(1.15 * data.abs().max())
    edges = torch.linspace(-extent, extent, grid + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    cells = torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)
    with torch.no_grad():
        log_p = torch.cat([flow.log_prob(part, trace="exact") for part in torch.split(cells, 4096)])
    density = log_p.double().exp().reshape(grid, grid)
    base = torch.randn(points, 2, generator=torch.Generator().manual_seed(0))
    path = flow.path(base, FRACTIONS)
    return Learned(
        dataset=run.dataset,
        optimizer=run.optimizer,
        seed=run.seed,
        test_nll=Record(run.folder).results()["test/nll"],
        mass=float(density.sum()) * (2 * extent / grid) ** 2,
        extent=extent,
        data=data.double().numpy(),
        density=density.numpy(),
        path=tuple(points.double().numpy() for points in path),
    )


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing with SNOpt, with the first seed, then write the figure's files."""
    one = replace(request, seeds=request.seeds[:1])
    wanted = {name: one.runs(f"figure-6/{name}-snopt", name, "snopt") for name in DATASETS}
    made = obtain(request, in_turn(wanted), say)
    write(made, request.folder, command=request.command)


def write(made: Sequence[Made[str]], folder: Path, *, command: str) -> None:
    """Write ``figure.png``, ``data.csv`` (the numbers of each row) and ``provenance.json``."""
    rows = [learned(one.run) for one in made]
    facts = facts_of(made)
    line = (
        f"{facts['device']}. SNOpt, seed {listed(facts['seeds'])}. Left: test points and learned"
        " density, with the negative log-likelihood of the test set in nats. Right: the flow, from"
        " a standard normal at t = 0 to the data at t = 1."
    )
    numbers = csv_of(pd.DataFrame(rows)[list(NUMBERS)])
    publish(folder, numbers, target=NAME, command=command, **facts, caption=line)
    save(draw(rows, line), folder / "figure.png")


def redraw(folder: Path) -> None:
    """Refuse, because only the run records have the weights of the flows."""
    raise RecordError(
        f"{folder}/figure.png shows trained flows, whose weights are in run records: "
        f"make reproduce-{NAME} draws it again"
    )


@styled
def draw(rows: Sequence[Learned], caption: str = "") -> Picture:
    """Return the figure."""
    if not rows:
        raise RecordError(f"{NAME}: there is no run to draw")
    lines = wrapped(caption)
    foot = 0.05 + 0.145 * len(lines)
    height = 0.3 + 1.0 * len(rows) + foot
    space = ConstrainedLayoutEngine(
        rect=(0, foot / height, 1, 1 - foot / height), w_pad=0.01, h_pad=0.01, hspace=0, wspace=0
    )
    picture = Picture(figsize=(WIDTH_IN, height), layout=space)
    axes = picture.subplots(len(rows), 2 + len(FRACTIONS), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(line, row)
    titles = ["test points", "density", *(f"t = {fraction:g}" for fraction in FRACTIONS)]
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    put_caption(picture, lines, 0.05 / height)
    return picture


def _draw_row(line: Sequence[Axes], row: Learned) -> None:
    box = (-row.extent, row.extent)
    edges = np.linspace(*box, GRID + 1)
    for ax in line:
        ax.set(xlim=box, ylim=box, aspect="equal", xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(True)
    line[0].plot(*row.data[:2000].T, ".", color="#333333", markersize=0.8, alpha=0.6)
    line[0].set_ylabel(dataset_name(row.dataset), fontsize=8)
    shown: dict[str, Any] = {
        "origin": "lower",
        "extent": (*box, *box),
        "cmap": "magma",
        "vmin": 0.0,
    }
    line[1].imshow(row.density, vmax=float(np.quantile(row.density, 0.998)), **shown)
    nll, place = f"{row.test_nll:.2f}", line[1].transAxes
    line[1].text(0.04, 0.96, nll, transform=place, color="white", fontsize=7, va="top")
    for ax, points in zip(line[2:], row.path, strict=True):
        counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))
        ax.imshow(counts, vmax=max(float(np.quantile(counts, 0.998)), 1.0), **shown)


FIGURES = (Figure(NAME, reproduce, redraw),)
