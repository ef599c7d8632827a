"""Density figure: what 2-d flows have learned, one row a run.

From left to right: points of the test set, the learned density on a grid, and the flow: base points
on their way to the data at five times. By default one small flow a density, trained with SNOpt;
``scripts/density.py`` draws the row of any finished run on points in the plane.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.models.cnf import CNF
from experiments.publish.provenance import machine, provenance, write_origin
from experiments.publish.style import RC, WIDTH_IN
from experiments.publish.tables import to_csv
from experiments.run.build import build
from experiments.run.checkpoint import load_checkpoint
from experiments.run.config import places, run_name
from experiments.run.records import Record, Summary, summarise
from experiments.studies.execute import execute_all, planned

NAME = "figure-density"
PROFILES = ("embedded",)
TITLES = {
    "circle": "Circle",
    "pinwheel": "Pinwheel",
    "eight_gaussians": "EightGaussians",
    "checkerboard": "Checkerboard",
    "moons": "Moons",
}
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Times of the flow, as parts of the whole."""
POINTS = 20_000
"""Points of the flow's pictures."""
GRID = 120
"""Cells of the density's picture, each way."""

Array = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """What is drawn of one run.

    Attributes:
        dataset: data set name.
        optimizer: optimizer name.
        seed: seed of the run.
        test_nll: negative log-likelihood of the test set in nats.
        mass: integral of the learned density over the picture; 1 where nothing lies outside.
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
    """Evaluate the flow of a finished run.

    Args:
        run: its record.
        points: points of the flow.
        grid: cells of the density, each way.

    Raises:
        ConfigError: the run's data are no points in the plane.
        RecordError: the run is not done, or its record is damaged.
        CheckpointError: its checkpoint is missing or damaged.
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


def reproduce(
    *,
    profile: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    data_dir: Path,
    output_dir: Path,
    folder: Path,
    command: str,
    say: Say,
    train: Sequence[str] | None = None,
) -> None:
    """Train what is missing with SNOpt, then write the figure's files.

    Args:
        profile: ``"embedded"``.
        seeds: the first one is drawn.
        overrides: changes to every run.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the figure goes.
        command: the command that makes the figure.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: unknown profile or override, or no seed.
        RecordError: a run failed or diverged.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; valid: {', '.join(PROFILES)}")
    if not seeds:
        raise ConfigError("seeds: at least one is needed")
    where = places(data_dir, output_dir)
    runs = []
    for dataset in TITLES:
        name = f"figure-6/{dataset}-snopt"
        runs += planned(name, dataset, "snopt", seeds[:1], overrides, where)
    execute_all(runs, 1, say, train, consequence=f"{NAME} is not drawn")
    records = [summarise(run.folder) for run in runs]
    write(records, folder, command=command, run_commands=[run.command for run in runs])


def write(
    runs: Sequence[Summary], folder: Path, *, command: str, run_commands: Sequence[str]
) -> None:
    """Write ``figure.png``, ``data.csv`` (the numbers of each row) and ``provenance.json``.

    Raises:
        ConfigError: a run's data are no points in the plane.
        RecordError: a run is not done, or its record is damaged.
    """
    rows = [learned(run) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    values = ([getattr(row, name) for name in NUMBERS] for row in rows)
    write_whole(folder / "data.csv", to_csv(NUMBERS, values))
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
    line = (
        f"{machine(runs)}. SNOpt, seed {seeds}. Left: test points and learned density, with the "
        "negative log-likelihood of the test set in nats. Right: the flow, from a standard normal "
        "at t = 0 to the data at t = 1."
    )
    origin = {**provenance(NAME, command, runs, run_commands), "caption": line}
    write_origin(folder, origin)
    with mpl.rc_context(RC):
        draw(rows, line).savefig(folder / "figure.png", metadata={"Software": None})


def draw(rows: Sequence[Learned], caption: str = "") -> Figure:
    """Return the figure; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there is no row.
    """
    if not rows:
        raise RecordError(f"{NAME}: there is no run to draw")
    lines = textwrap.wrap(caption, width=int(15.5 * WIDTH_IN))
    foot = 0.05 + 0.145 * len(lines)
    height = 0.3 + 1.0 * len(rows) + foot
    space = ConstrainedLayoutEngine(
        rect=(0, foot / height, 1, 1 - foot / height), w_pad=0.01, h_pad=0.01, hspace=0, wspace=0
    )
    figure = Figure(figsize=(WIDTH_IN, height), layout=space)
    axes = figure.subplots(len(rows), 2 + len(FRACTIONS), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        _draw_row(line, row)
    titles = ["test points", "density", *(f"t = {fraction:g}" for fraction in FRACTIONS)]
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    figure.text(0.5, 0.05 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    return figure


def _draw_row(line: Sequence[Axes], row: Learned) -> None:
    box = (-row.extent, row.extent)
    edges = np.linspace(*box, GRID + 1)
    for ax in line:
        ax.set(xlim=box, ylim=box, aspect="equal", xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(True)
    line[0].plot(*row.data[:2000].T, ".", color="#333333", markersize=0.8, alpha=0.6)
    line[0].set_ylabel(TITLES.get(row.dataset, row.dataset), fontsize=8)
    shown: dict[str, Any] = {
        "origin": "lower",
        "extent": (*box, *box),
        "cmap": "magma",
        "vmin": 0.0,
    }
    line[1].imshow(row.density, vmax=float(np.quantile(row.density, 0.998)), **shown)
    line[1].text(
        *(0.04, 0.96, f"{row.test_nll:.2f}"),
        transform=line[1].transAxes,
        color="white",
        fontsize=7,
        va="top",
    )
    for ax, points in zip(line[2:], row.path, strict=True):
        counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))
        ax.imshow(counts, vmax=max(float(np.quantile(counts, 0.998)), 1.0), **shown)
