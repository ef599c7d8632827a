"""Spectrum figure: what the preconditioner sees of the curvature while the digits net trains.

One column a training step. Above: eigenvalues by rank of the Hessian (those that Lanczos found), of
Gauss-Newton's matrix Q_θθ of the whole solve, of the Kronecker blocks A ⊗ B and of SNOpt's running
moment S; SNOpt treats what lies below the damping ε as flat. Below: density of the eigenvalues, for
the Hessian by stochastic Lanczos quadrature.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from experiments.base.errors import RecordError
from experiments.figures.request import Figure, Request, listed
from experiments.measure.pictures import number
from experiments.measure.snapshots import EXPERIMENT, snapshots
from experiments.measure.spectrum import (
    ADJOINT,
    EMPIRICAL,
    GAUSS_NEWTON,
    GGN,
    HESSIAN,
    MOMENT,
    Settings,
    density,
    measure,
)
from experiments.publish.provenance import devices, read_provenance
from experiments.publish.style import WIDTH_IN, draw_spread, finish, styled
from experiments.publish.tables import csv_of, read_table
from experiments.studies.execute import Say

NAME = "figure-spectrum"
TYPES = {
    **{"seed": int, "step": int, "matrix": str, "probe": float, "index": int},
    **dict.fromkeys(("value", "share", "residual"), float),
}
"""``data.csv``: the columns of :mod:`experiments.measure.spectrum`."""
SIGMA = 0.015
"""Width of the Gaussian in the densities, in units of the panel's range of eigenvalues."""
LOOKS: dict[str, dict[str, Any]] = {
    HESSIAN: {"label": "Hessian", "color": "#111111", "linestyle": "solid"},
    ADJOINT: {
        "label": "Hessian, adjoint (differences)",
        "color": "#7A7A7A",
        "linestyle": (0, (1.2, 1.2)),
    },
    GAUSS_NEWTON: {
        "label": r"Gauss-Newton $Q_{\theta\theta}$",
        "color": "#1F78B4",
        "linestyle": (0, (5.0, 1.5)),
    },
    GGN: {"label": r"$A \otimes B$, ggn", "color": "#8C1C4A", "linestyle": "solid"},
    EMPIRICAL: {
        "label": r"$A \otimes B$, empirical",
        "color": "#E09F2B",
        "linestyle": (0, (4.0, 1.2, 1.0, 1.2)),
    },
    MOMENT: {
        "label": r"SNOpt's running moment $S$",
        "color": "#2E8B57",
        "linestyle": (0, (7.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    },
}
_FLOOR = 1e-8  # eigenvalues below it are rounding
_TOLERANCE = 1e-2  # residual of a Lanczos value that is drawn as an eigenvalue


def reproduce(request: Request, say: Say, *, settings: Settings | None = None) -> None:
    """Measure, then write the figure's files.

    Args:
        request: seeds determine weights, batches and starts of Lanczos; overrides change the
            training configuration.
        say: prints one line.
        settings: what is measured; None: all of it.
    """
    chosen = settings or Settings()
    rows: list[dict[str, Any]] = []
    damping = float("nan")
    for seed in request.seeds:
        taken = snapshots(
            seed,
            chosen.steps,
            chosen.samples,
            overrides=request.overrides,
            data_dir=request.data_dir,
        )
        for snapshot in taken:
            say(f"{NAME}: seed {seed}, step {snapshot.step}")
            rows += measure(snapshot, chosen)
            damping = snapshot.damping
    device = devices([{"device": "cpu", "threads": torch.get_num_threads()}])
    caption = (
        f"{device}. Digits, conv field, {chosen.samples} training images, matrices over the"
        f" field's parameters; SNOpt with tuned settings, ε = {damping:g}. Seeds"
        f" {listed(request.seeds)}: above medians and ranges, below means. The Hessian by"
        f" curvlinops, backpropagating through dopri5; {chosen.probes} × {chosen.lanczos} Lanczos"
        " steps. The adjoint's is of differences of gradients, which see the kinks of the ReLUs."
        f" Densities smoothed with a Gaussian of {100 * SIGMA:g} % of the range."
    )
    request.publish(
        csv_of(pd.DataFrame(rows)[list(TYPES)], digits=6),
        device=device,
        seeds=list(request.seeds),
        experiment=EXPERIMENT,
        curvlinops=metadata.version("curvlinops-for-pytorch"),
        overrides=list(request.overrides),
        settings=asdict(chosen),
        damping=damping,
        caption=caption,
    )
    redraw(request.folder)


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and ``provenance.json``."""
    table = read_table(folder / "data.csv", TYPES)
    if table.empty:
        raise RecordError(f"{folder}/data.csv has no rows")
    origin = read_provenance(folder)
    picture = draw(table, float(origin.get("damping", float("nan"))))
    top = 1 - 0.5 / picture.get_figheight()
    finish(picture, origin["caption"], folder / "figure.png", top=top)


@styled
def draw(table: pd.DataFrame, damping: float) -> Picture:
    """Return the figure without its caption."""
    steps = sorted(table["step"].unique())
    picture = Picture(figsize=(WIDTH_IN, 5.6))
    axes = picture.subplots(2, len(steps), squeeze=False)
    for column, step in enumerate(steps):
        own = table[table["step"] == step]
        _draw_ranks(axes[0, column], own, damping)
        _draw_density(axes[1, column], own)
        axes[0, column].set_title("before training" if step == 0 else f"after {step} steps")
        axes[0, column].set_xlabel("Rank")
        axes[1, column].set_xlabel("Eigenvalue")
    limits = [one.get_ylim() for one in axes[0]]
    for one in axes[0]:
        one.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    if np.isfinite(damping):
        where = {"xycoords": ("axes fraction", "data")}
        number(axes[0, -1], r"damping $\varepsilon$", (0.03, damping), (0, -10), **where)
    axes[0, 0].set_ylabel("Eigenvalue")
    axes[1, 0].set_ylabel("Density")
    shown = set(table["matrix"])
    handles = [Line2D([], [], **look) for name, look in LOOKS.items() if name in shown]
    picture.legend(handles=handles, loc="upper center", ncols=3, columnspacing=1.6)
    return picture


def _draw_ranks(axes: Axes, table: pd.DataFrame, damping: float) -> None:
    for name in (MOMENT, EMPIRICAL, GGN, GAUSS_NEWTON):
        look, own = LOOKS[name], table[table["matrix"] == name]
        if own.empty:
            continue
        wide = own.pivot_table(index="index", columns="seed", values="value")
        wide = wide[wide.min(axis=1) > _FLOOR]
        draw_spread(axes, wide, color=look["color"], linestyle=look["linestyle"])
    own = table[(table["matrix"] == HESSIAN) & (table["probe"] == 0)]
    found = own[(own["residual"] <= _TOLERANCE * own["value"].abs()) & (own["share"] > 1e-12)]
    # A value that has not settled leaves the ranks behind it unknown.
    ranks = []
    for _, of_seed in found[found["value"] > 0].groupby("seed"):
        of_seed = of_seed.sort_values("index")
        ranks.append(of_seed[of_seed["index"].to_numpy() == np.arange(1, len(of_seed) + 1)])
    if ranks:
        wide = pd.concat(ranks).pivot_table(index="index", columns="seed", values="value").dropna()
        axes.plot(wide.index, wide.median(axis=1), "o", color="#111111", markersize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if np.isfinite(damping):
        axes.axhline(damping, color="#111111", linewidth=0.8, linestyle=(0, (2, 2)))


def _draw_density(axes: Axes, table: pd.DataFrame) -> None:
    """Draw all densities of one step, over the range of the Hessian and of Gauss-Newton."""
    true = table[table["matrix"].isin([HESSIAN, ADJOINT, GAUSS_NEWTON])]["value"]
    low, high = float(true.min()), float(true.max())
    margin = 0.05 * (high - low)
    grid = torch.linspace(low - margin, high + margin, 600, dtype=torch.float64)
    sigma, highest = SIGMA * (high - low), 0.0
    for name in (MOMENT, EMPIRICAL, GGN, GAUSS_NEWTON, ADJOINT, HESSIAN):
        own = table[table["matrix"] == name]
        if own.empty:
            continue
        values = torch.tensor(own["value"].to_numpy(), dtype=torch.float64)
        shares = torch.tensor(own["share"].to_numpy(), dtype=torch.float64)
        curve = density(grid, values, shares / own["seed"].nunique(), sigma)
        style = {key: LOOKS[name][key] for key in ("color", "linestyle")}
        axes.plot(grid.numpy(), curve.numpy(), linewidth=1.3, **style)
        highest = max(highest, float(curve.max()))
    axes.set_yscale("log")
    # The smallest share of the exact matrices is one eigenvalue: show a tenth of its bump.
    share = float(table.loc[table["probe"].isna(), "share"].min())
    axes.set_ylim(0.1 * share / (sigma * (2 * np.pi) ** 0.5), 3 * highest)


FIGURES = (Figure(NAME, reproduce, redraw),)
