"""Figure 6: training loss and validation metric of every data set, Adam · SGD · SNOpt.

Three blocks, one a task: images, time series, continuous normalizing flows. A column of a block is
a data set: training loss above, validation accuracy or negative log-likelihood below. The axis is
wall-clock training time; ``--x steps`` and ``--x nfe`` draw the same runs against training steps
and against evaluations of the vector field. A panel without data says so.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures.blocks import BLOCKS, PROFILES, Block
from experiments.figures.curves import Curve, by_optimizer, csv_of, curve_from_run, read_curves
from experiments.figures.panels import AXES, draw_curves, note_diverged
from experiments.figures.thinned import WINDOW, thin
from experiments.publish.provenance import machine, provenance, write_origin
from experiments.publish.style import LOOKS, RC, WIDTH_IN, look
from experiments.run.records import Summary, summarise

NAME = "figure-6"
OPTIMIZERS = ("adam", "sgd", "snopt")
COLUMNS = 3


LOOK = {**RC, "lines.linewidth": 1.3, "lines.markersize": 3.5}
METRICS = {block.task: block.metric for block in BLOCKS}


def curve_of(run: Summary) -> Curve:
    """Return the thinned curve of a finished run.

    Raises:
        RecordError: it did not finish, or measured nothing.
    """
    return thin(curve_from_run(run, METRICS[run.task]))


def collect(folders: Mapping[str, Path]) -> list[Summary]:
    """Read the records of the figure.

    Args:
        folders: for each run the name that messages use where it is missing, and its folder.

    Raises:
        RecordError: runs are missing or did not finish; all of them are named with the reason.
    """
    runs, problems = [], []
    for name, folder in folders.items():
        try:
            run = summarise(folder)
            curve_of(run)
        except RecordError as error:
            problems.append(f"{name}: {error}")
        else:
            runs.append(run)
    if problems:
        raise RecordError(f"{NAME} cannot be drawn:\n  " + "\n  ".join(problems))
    return runs


def make(
    runs: Sequence[Summary],
    folder: Path,
    *,
    profile: str,
    command: str,
    run_commands: Sequence[str],
    x: str = "time",
) -> None:
    """Write ``data.csv``, ``provenance.json`` and the picture into ``folder``.

    Args:
        runs: finished runs, for example from :func:`collect`.
        folder: where to write; made if missing.
        profile: name in :data:`PROFILES`.
        command: the command that makes the figure.
        run_commands: for each run the command that makes it.
        x: name in :data:`~experiments.figures.panels.AXES`.

    Raises:
        ConfigError: the axis is unknown.
        RecordError: a run did not finish.
    """
    origin = {**provenance(NAME, command, runs, run_commands), "profile": profile}
    write([curve_of(run) for run in runs], folder, origin, machine(runs), x=x)


def write(
    curves: Sequence[Curve], folder: Path, origin: Mapping[str, Any], device: str, x: str = "time"
) -> None:
    """Write the figure's three files from thinned curves.

    Args:
        curves: the runs, from :func:`curve_of`.
        folder: where to write; made if missing.
        origin: the provenance, with ``profile``.
        device: where the runs were, in words.
        x: name in :data:`~experiments.figures.panels.AXES`.

    Raises:
        ConfigError: the axis is unknown.
    """
    check_axis(x)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_of(curves))
    whole = {**origin, "caption": caption(curves, device, **_how(origin))}
    write_origin(folder, whole)
    redraw(folder, x)


def picture(x: str) -> str:
    """Return the file name of the picture against an axis."""
    return "figure.png" if x == "time" else f"figure-{x}.png"


def check_axis(x: str) -> None:
    """Raise ConfigError unless ``x`` is the name of an axis."""
    if x not in AXES:
        raise ConfigError(f"unknown axis x={x!r}; valid: {', '.join(AXES)}")


def redraw(folder: Path, x: str = "time") -> None:
    """Draw the picture again from ``data.csv`` and ``provenance.json``.

    Raises:
        ConfigError: the axis is unknown.
        RecordError: a file is missing or damaged.
    """
    check_axis(x)
    curves = read_curves(folder / "data.csv")
    try:
        origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        profile, line = origin["profile"], origin["caption"]
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{folder}/provenance.json cannot be read: {error}") from None
    with mpl.rc_context(LOOK):
        figure = draw(curves, profile, line, x)
        figure.savefig(folder / picture(x), metadata={"Software": None})


def _how(origin: Mapping[str, Any]) -> dict[str, str]:
    return {"profile": str(origin["profile"]), "budget": str(origin.get("budget", ""))}


def caption(curves: Sequence[Curve], device: str, profile: str, budget: str = "") -> str:
    """Return the lines below the figure: device, seeds, how long runs were, how curves are made."""
    titles = {panel.dataset: panel.title for panel in PROFILES[profile]}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for dataset, title in titles.items():
        seeds = tuple(sorted({curve.seed for curve in curves if curve.dataset == dataset}))
        if seeds:
            by_seeds.setdefault(seeds, []).append(title)
    parts = [
        f"{'' if len(by_seeds) == 1 else ', '.join(names) + ': '}"
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
        for seeds, names in by_seeds.items()
    ]
    steps = budget or (
        "Epochs as published."
        if profile == "paper"
        else "The same number of steps for each optimizer of a data set."
    )
    seeds_line = "; ".join(parts)
    return (
        f"{device}. {seeds_line[:1].upper()}{seeds_line[1:]}: median and range. {steps} "
        f"Training loss: running mean over {WINDOW} steps."
    )


def draw(curves: Sequence[Curve], profile: str, caption_line: str = "", x: str = "time") -> Figure:
    """Return the figure; call it within ``matplotlib.rc_context(LOOK)``.

    Raises:
        RecordError: no curve belongs to a data set of the profile.
    """
    known = {panel.dataset for panel in PROFILES[profile]}
    if not any(curve.dataset in known for curve in curves):
        raise RecordError(f"{NAME}: no run of any of its data sets: {', '.join(sorted(known))}")
    lines = textwrap.wrap(caption_line, width=int(15.5 * WIDTH_IN))
    foot = 0.005 + 0.0155 * len(lines)
    space = ConstrainedLayoutEngine(rect=(0.0, foot, 1.0, 0.965 - foot), hspace=0.0, h_pad=0.02)
    figure = Figure(figsize=(WIDTH_IN, 9.6), layout=space)
    subfigures: Any = figure.subfigures(len(BLOCKS), 1, hspace=0.03)
    for part, block in zip(subfigures, BLOCKS, strict=True):
        part.suptitle(block.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        grid = part.subplots(2, COLUMNS, sharex="col", squeeze=False)
        for column in range(COLUMNS):
            loss, metric = grid[0, column], grid[1, column]
            if column >= len(block.panels[profile]):
                loss.set_axis_off()
                metric.set_axis_off()
                continue
            panel = block.panels[profile][column]
            groups = by_optimizer(curves, panel.dataset)
            _draw_panel(loss, metric, groups, block, x)
            loss.set_title(panel.title)
            if column == 0:
                nll = block.metric == "nll"
                loss.set_ylabel("Train. NLL (nats)" if nll else "Training loss")
                metric.set_ylabel("Val. NLL (nats)" if nll else "Val. accuracy (%)")
            metric.set_xlabel(AXES[x].label if groups else "")
    _legend(figure)
    figure.text(0.5, 0.004, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    return figure


def _draw_panel(
    loss: Axes, metric: Axes, groups: Mapping[str, Sequence[Curve]], block: Block, x: str
) -> None:
    over = AXES[x].column
    scale = 100.0 if block.metric == "accuracy" else 1.0
    for optimizer in sorted(groups, key=list(LOOKS).index):
        runs = groups[optimizer]
        draw_curves(loss, runs, [run.series("train_loss", over) for run in runs])
        found = [run.series("val_metric", over) for run in runs]
        draw_curves(metric, runs, [(places, scale * values) for places, values in found])
    if not loss.lines:
        _say_empty(loss, metric)
        return
    note_diverged(loss, groups)
    for axes in (loss, metric):
        axes.set_xlim(left=0.0)
        axes.margins(x=0.02)
        axes.locator_params(axis="x", nbins=5)
    if block.metric == "accuracy":
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


def _say_empty(loss: Axes, metric: Axes) -> None:
    for axes in (loss, metric):
        axes.set(xticks=[], yticks=[], facecolor="#F2F2F2")
        axes.grid(visible=False)
    loss.text(
        0.5, 0.5, "no runs of\nthis data set", transform=loss.transAxes, ha="center", va="center"
    )


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], label=style.label, marker=style.marker, **style.line)
        for style in (look(name) for name in OPTIMIZERS)
    ]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
