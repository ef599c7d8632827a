"""Figures 1 and 6: training loss and validation metric of Adam, SGD and SNOpt.

Figure 1 has one column a data set, training loss above validation accuracy; figure 6 has one block
a task with one column a data set. Both are drawn against wall-clock or CPU seconds of training
(``--x cpu``), figure 6 also against training steps (``--x steps``) or evaluations of the vector
field (``--x nfe``).

Lines are medians over seeds, bands reach from the lowest to the highest seed. The training loss of
each run is a trailing running mean over :data:`WINDOW` steps. A run that diverged is a thin line
that ends in a cross; median and band leave it out, and a note counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.base.errors import ConfigError, RecordError
from experiments.figures.request import Figure, Request, facts_of, in_turn, listed, obtain
from experiments.publish.names import dataset_name, panel_title
from experiments.publish.provenance import disturbance, read_provenance
from experiments.publish.runs import (
    Series,
    band,
    csv_of_runs,
    each_run,
    read_runs,
    running_mean,
    runs_table,
    series,
    thin,
)
from experiments.publish.style import (
    LOOKS,
    RC,
    WIDTH_IN,
    Look,
    handles,
    look,
    put_caption,
    save,
    styled,
    wrapped,
)
from experiments.run.config import options
from experiments.run.records import DIVERGED
from experiments.studies.execute import PlannedRun, Say, available
from experiments.tasks import METRICS

FIGURE_1, FIGURE_6 = "figure-1", "figure-6"
OPTIMIZERS = ("adam", "sgd", "snopt")
PROFILES = ("embedded", "paper")

WINDOW = 10
"""Steps of the running mean over the training loss."""

POINTS = 250
"""Rows with a training loss that figure 6 keeps of a long run; it keeps all evaluations."""

AXES = {
    "time": ("time_s", "Wall-clock training time (s)"),
    "cpu": ("cpu_s", "CPU seconds of training"),
    "steps": ("step", "Training steps"),
    "nfe": ("nfe", "Evaluations of the vector field"),
}
"""Column and label of the axes, by the name for ``--x``; figure 1 has the first two."""

COLUMNS_OF_FIGURE_1 = {
    "embedded": ("digits", "japanese_vowels"),
    "paper": ("cifar10", "articulary_word_recognition"),
}


class Block(NamedTuple):
    """One task with its data sets by profile: figure 6 shows, table 3 lists them."""

    task: str
    title: str
    datasets: Mapping[str, Sequence[str]]


BLOCKS = (
    Block(
        "image",
        "Image classification",
        {"embedded": ("digits",), "paper": ("mnist", "svhn", "cifar10")},
    ),
    Block(
        "time_series",
        "Time series",
        {
            "embedded": ("japanese_vowels", "basic_motions"),
            "paper": (
                "character_trajectories",
                "articulary_word_recognition",
                "spoken_arabic_digits",
            ),
        },
    ),
    Block(
        "cnf",
        "Continuous normalizing flows",
        {"embedded": ("circle", "pinwheel", "moons"), "paper": ("circle", "gas", "miniboone")},
    ),
)


def datasets_of(target: str, profile: str) -> tuple[str, ...]:
    """Return the data sets that a figure shows."""
    if target == FIGURE_1:
        return COLUMNS_OF_FIGURE_1[profile]
    return tuple(dataset for block in BLOCKS for dataset in block.datasets[profile])


def experiment_of(dataset: str, optimizer: str, profile: str) -> str:
    """Return the experiment file of a curve; both figures show the same runs."""
    folder = "paper"
    if profile == "embedded":
        folder = FIGURE_1 if dataset in COLUMNS_OF_FIGURE_1["embedded"] else FIGURE_6
    return f"{folder}/{dataset}-{optimizer}"


def plan(request: Request) -> dict[str, dict[str, list[PlannedRun]]]:
    """Return the runs by data set and optimizer; none of a data set without a configuration."""
    plans: dict[str, dict[str, list[PlannedRun]]] = {}
    for dataset in datasets_of(request.target, request.profile):
        plans[dataset] = {}
        for optimizer in OPTIMIZERS if dataset in options("dataset") else ():
            experiment = experiment_of(dataset, optimizer, request.profile)
            plans[dataset][optimizer] = request.runs(experiment, dataset, optimizer)
    return plans


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write the figure's files.

    A run that fails does not stop the others. Data sets that are not available are left out with a
    message.
    """
    plans = plan(request)
    flat = {name: [run for runs in own.values() for run in runs] for name, own in plans.items()}
    present = available(flat, say)
    wanted = [pair for dataset in present for pair in in_turn(plans[dataset])]
    made = obtain(request, wanted, say, jobs=request.jobs)
    table = runs_table([one.run for one in made])
    if request.target == FIGURE_6:
        table = thin(table, POINTS, WINDOW)
    write(request, table, facts_of(made))


def write(request: Request, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write the files of figure 1 or 6 from a table of runs.

    Args:
        request: which figure, profile and axis, and where it goes.
        table: the runs, thinned for figure 6.
        facts: entries of the provenance: ``device``, ``runs``, and optionally ``budget``, a
            sentence on the length of runs, and ``smooth``: training losses are running means.
    """
    device, profile, budget = facts["device"], request.profile, facts.get("budget", "")
    one = request.target == FIGURE_1
    line = caption_1(table, device, budget) if one else caption_6(table, device, profile, budget)
    line = f"{line} {disturbance(facts['runs'])}".strip()
    request.publish(csv_of_runs(table), **facts, profile=profile, caption=line)
    (redraw_1 if one else redraw_6)(request.folder, request.x)


def redraw_1(folder: Path, x: str = "time") -> None:
    """Draw figure 1 again from ``data.csv`` and ``provenance.json``, against one of two axes."""
    origin = read_provenance(folder)
    smooth = origin.get("smooth", False)
    picture = draw_1(_read(folder, x), origin["caption"], smooth=smooth, x=x)
    save(picture, folder / _picture_name(x))


def redraw_6(folder: Path, x: str = "time") -> None:
    """Draw figure 6 again, against one of :data:`AXES`; see :func:`redraw_1`."""
    if x not in AXES:
        raise ConfigError(f"unknown axis x={x!r}; valid: {', '.join(AXES)}")
    origin = read_provenance(folder)
    if "profile" not in origin:
        raise RecordError(f"{folder}/provenance.json is missing or names no profile")
    picture = draw_6(_read(folder, x), origin["profile"], origin["caption"], x)
    save(picture, folder / _picture_name(x))


def _read(folder: Path, x: str) -> pd.DataFrame:
    """Return the table of a figure; raise if nothing in it can be drawn over axis ``x``."""
    table = read_runs(folder / "data.csv")
    if table[AXES[x][0]].isna().all():
        raise RecordError(f"no run in {folder}/data.csv has {AXES[x][1]}: leave out x={x}")
    return table


def _picture_name(x: str) -> str:
    return "figure.png" if x == "time" else f"figure-{x}.png"


def caption_1(table: pd.DataFrame, device: str, budget: str) -> str:
    """Return the line below figure 1: device, data, seeds, and how curves are made."""
    data = listed([panel_title(dataset) for dataset in table["dataset"].unique()])
    line = (
        f"{device}. Data: {data}. Seeds {listed(sorted(table['seed'].unique()))}: median and range."
        " The same number of steps for each optimizer of a column; training loss: running mean over"
        f" {WINDOW} steps."
    )
    return f"{line} {budget}".strip()


def caption_6(table: pd.DataFrame, device: str, profile: str, budget: str = "") -> str:
    """Return the lines below figure 6: device, seeds, how long runs were, how curves are made."""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for dataset in datasets_of(FIGURE_6, profile):
        seeds = tuple(sorted(table.loc[table["dataset"] == dataset, "seed"].unique()))
        if seeds:
            by_seeds.setdefault(seeds, []).append(dataset_name(dataset))
    parts = [
        f"{'' if len(by_seeds) == 1 else listed(names) + ': '}"
        f"seed{'' if len(seeds) == 1 else 's'} {listed(seeds)}"
        for seeds, names in by_seeds.items()
    ]
    steps = budget or (
        "Epochs as published."
        if profile == "paper"
        else "The same number of steps for each optimizer of a data set."
    )
    line = "; ".join(parts)
    return (
        f"{device}. {line[:1].upper()}{line[1:]}: median and range. {steps} "
        f"Training loss: running mean over {WINDOW} steps."
    )


@styled
def draw_1(
    table: pd.DataFrame, caption: str = "", *, smooth: bool = False, x: str = "time"
) -> Picture:
    """Return figure 1; ``smooth``: the training losses are running means already."""
    over, label = AXES[x]
    known = [dataset for profile in PROFILES for dataset in datasets_of(FIGURE_1, profile)]
    present = [dataset for dataset in known if (table["dataset"] == dataset).any()]
    if not present:
        raise RecordError(f"{FIGURE_1}: no run of any of its data sets: {listed(known)}")
    picture = Picture(figsize=(WIDTH_IN if len(present) > 1 else WIDTH_IN * 0.6, 5.4))
    axes = picture.subplots(2, len(present), sharex="col", squeeze=False)
    for column, dataset in enumerate(present):
        loss, metric = axes[0, column], axes[1, column]
        for optimizer, runs in by_optimizer(table, dataset):
            draw_runs(loss, runs, optimizer, "train_loss", over, window=1 if smooth else WINDOW)
            draw_runs(metric, runs, optimizer, "val_metric", over, scale=100.0)
        loss.set_title(panel_title(dataset))
        loss.set_yscale("log")
        metric.set_xlabel(label)
        _start_at_zero(loss, metric)
        metric.set_ylim(max(metric.get_ylim()[0], 0.0), 101.0)
        note_diverged(loss, table[table["dataset"] == dataset])
    axes[0, 0].set_ylabel("Training loss")
    axes[1, 0].set_ylabel("Validation accuracy (%)")
    _legend(picture)
    lines = wrapped(caption, picture.get_figwidth())
    put_caption(picture, lines, 0.008)
    picture.tight_layout(rect=(0.0, 0.03 * len(lines), 1.0, 0.945))
    return picture


@mpl.rc_context({**RC, "lines.linewidth": 1.3, "lines.markersize": 3.5})
def draw_6(table: pd.DataFrame, profile: str, caption: str = "", x: str = "time") -> Picture:
    """Return figure 6."""
    known = datasets_of(FIGURE_6, profile)
    if not table["dataset"].isin(known).any():
        raise RecordError(f"{FIGURE_6}: no run of any of its data sets: {listed(sorted(known))}")
    lines = wrapped(caption)
    foot = 0.005 + 0.0155 * len(lines)
    space = ConstrainedLayoutEngine(rect=(0.0, foot, 1.0, 0.965 - foot), hspace=0.0, h_pad=0.02)
    picture = Picture(figsize=(WIDTH_IN, 9.6), layout=space)
    parts: Any = picture.subfigures(len(BLOCKS), 1, hspace=0.03)
    for part, block in zip(parts, BLOCKS, strict=True):
        part.suptitle(block.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        shown = block.datasets[profile]
        grid = part.subplots(2, 3, sharex="col", squeeze=False)
        for unused in grid[:, len(shown) :].flat:
            unused.set_axis_off()
        for (loss, metric), dataset in zip(grid.T, shown, strict=False):
            _draw_panel(loss, metric, table, dataset, METRICS[block.task], x)
        nll = METRICS[block.task] == "nll"
        grid[0, 0].set_ylabel("Train. NLL (nats)" if nll else "Training loss")
        grid[1, 0].set_ylabel("Val. NLL (nats)" if nll else "Val. accuracy (%)")
    _legend(picture)
    put_caption(picture, lines, 0.004)
    return picture


def _draw_panel(
    loss: Axes, metric: Axes, table: pd.DataFrame, dataset: str, kind: str, x: str
) -> None:
    over, label = AXES[x]
    loss.set_title(dataset_name(dataset))
    for optimizer, runs in by_optimizer(table, dataset):
        draw_runs(loss, runs, optimizer, "train_loss", over)
        draw_runs(metric, runs, optimizer, "val_metric", over, 100.0 if kind == "accuracy" else 1.0)
    if not loss.lines:
        for axes in (loss, metric):
            axes.set(xticks=[], yticks=[], facecolor="#F2F2F2")
            axes.grid(visible=False)
        text = "no runs of\nthis data set"
        loss.text(0.5, 0.5, text, transform=loss.transAxes, ha="center", va="center")
        return
    metric.set_xlabel(label)
    note_diverged(loss, table[table["dataset"] == dataset])
    _start_at_zero(loss, metric)
    for axes in (loss, metric):
        axes.locator_params(axis="x", nbins=5)
    if kind == "accuracy":
        loss.set_yscale("log")
        # Within one decade the default writes out every tick, as 3 × 10⁰.
        loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        metric.set_ylim(max(metric.get_ylim()[0], 0.0), 101.0)
    else:
        for axes in (loss, metric):
            _leave_out_the_start(axes)


def _leave_out_the_start(axes: Axes) -> None:
    """Limit a likelihood axis to where the curves spend their time: the first fall is steep."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(np.quantile(values, 0.97))
    space = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - space, high + space)


def _start_at_zero(*panels: Axes) -> None:
    for axes in panels:
        axes.set_xlim(left=0.0)
        axes.margins(x=0.02)


def _legend(picture: Picture) -> None:
    entries = handles(look(name) for name in OPTIMIZERS)
    picture.legend(handles=entries, loc="upper center", ncols=len(entries))


def by_optimizer(table: pd.DataFrame, dataset: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the runs of a data set by optimizer, in the order of :data:`LOOKS`."""
    groups = dict(list(table[table["dataset"] == dataset].groupby("optimizer")))
    for optimizer in sorted(groups, key=list(LOOKS).index):
        yield optimizer, groups[optimizer]


def draw_runs(
    axes: Axes,
    runs: pd.DataFrame,
    optimizer: str,
    column: str,
    over: str = "time_s",
    scale: float = 1.0,
    window: int = 1,
) -> None:
    """Draw a column of the runs of one optimizer over another one.

    ``scale`` is a factor of the values, ``window`` the steps of their running mean.
    """
    kept: list[Series] = []
    lost: list[Series] = []
    for _, run in each_run(runs):
        places, values = series(run, column, over)
        values = scale * (running_mean(values, window) if window > 1 else values)
        if places.size:
            (lost if run["state"].iloc[0] == DIVERGED else kept).append((places, values))
    style = look(optimizer)
    cross = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "zorder": 5}
    draw_lost(axes, lost, style, cross, linewidth=0.7, alpha=0.8)
    if kept:
        first = 6 + 8 * list(LOOKS).index(optimizer)
        draw_band(axes, kept, style, marker=style.marker, markevery=(first, 25))


def draw_band(axes: Axes, kept: Sequence[Series], style: Look, **line: Any) -> None:
    """Draw median and range over seeds."""
    at, median, low, high = band(kept)
    axes.fill_between(at, low, high, color=style.color, alpha=0.2, linewidth=0)
    axes.plot(at, median, **line, **style.line)


def draw_lost(
    axes: Axes, lost: Sequence[Series], style: Look, cross: Mapping[str, Any], **line: Any
) -> None:
    """Draw runs that diverged, each as a thin line that ends in a cross."""
    for places, values in lost:
        axes.plot(places, values, **line, **style.line)
        axes.plot(places[-1:], values[-1:], color=style.color, **cross)


def note_diverged(
    axes: Axes,
    table: pd.DataFrame,
    by: str = "optimizer",
    looks: Mapping[str, Look] = LOOKS,
    *,
    y: float = 0.97,
    va: str = "top",
) -> None:
    """Count at the right border the runs that diverged, by the kind in the column ``by``."""
    lines = []
    for kind, runs in table.drop_duplicates([by, "seed"]).groupby(by, sort=False):
        if lost := (runs["state"] == DIVERGED).sum():
            lines.append(f"{looks[kind].label}: {lost} of {len(runs)} diverged (×)")
    if lines:
        text = listed(lines, "\n")
        axes.text(0.98, y, text, transform=axes.transAxes, ha="right", va=va, fontsize=8)


FIGURES = (
    Figure(FIGURE_1, reproduce, redraw_1, PROFILES, axes=("time", "cpu")),
    Figure(FIGURE_6, reproduce, redraw_6, PROFILES, axes=tuple(AXES)),
)
