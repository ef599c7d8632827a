"""Figure 1: training loss and validation accuracy against wall-clock, Adam · SGD · SNOpt.

One column a data set, one row a quantity. Lines are medians over seeds, bands reach from the lowest
to the highest seed, curves end where training ended. The training loss is a trailing running mean
over :data:`WINDOW` steps of each run, taken before the median. A run that diverged is drawn alone,
as a thin line that ends in a cross; it is left out of median and band, and a note counts it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.figures.curves import (
    Curve,
    by_optimizer,
    csv_of,
    curve_from_run,
    read_curves,
    running_mean,
)
from experiments.figures.panels import draw_curves, note_diverged
from experiments.figures.thinned import WINDOW
from experiments.publish.provenance import machine, provenance, write_origin
from experiments.publish.style import LOOKS, RC, WIDTH_IN, look
from experiments.run.records import Summary, summarise

NAME = "figure-1"
OPTIMIZERS = ("adam", "sgd", "snopt")
METRIC = "accuracy"


@dataclass(frozen=True)
class Panel:
    """A panel of a figure: data set name in records, its title, and where its runs are described.

    Attributes:
        dataset: data set name in records.
        title: what the figure calls it.
        experiments: table in ``configs/tuned``; empty:
            the figure's own.
    """

    dataset: str
    title: str
    experiments: str = ""


PROFILES: dict[str, tuple[Panel, ...]] = {
    "embedded": (
        Panel("digits", "Digits (images)"),
        Panel("japanese_vowels", "JapaneseVowels (time series)"),
    ),
    "paper": (
        Panel("cifar10", "CIFAR-10 (images)", "paper"),
        Panel("articulary_word_recognition", "ArticularyWordRecognition (time series)", "paper"),
    ),
}
"""What each profile shows."""


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
        except RecordError as error:
            problems.append(f"{name}: {error}")
            continue
        try:
            curve_from_run(run, METRIC)
        except RecordError as error:
            problems.append(str(error))
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
) -> None:
    """Write ``data.csv``, ``provenance.json`` and ``figure.png`` into ``folder``.

    Args:
        runs: finished runs, for example from :func:`collect`.
        folder: where to write; made if missing.
        profile: ``"embedded"`` or ``"paper"``.
        command: the command that makes the figure.
        run_commands: for each run the command that makes it.

    Raises:
        RecordError: a run did not finish.
    """
    curves = [curve_from_run(run, METRIC) for run in runs]
    origin = {**provenance(NAME, command, runs, run_commands), "profile": profile}
    write(curves, folder, origin, machine(runs))


def write(
    curves: Sequence[Curve],
    folder: Path,
    origin: Mapping[str, Any],
    device: str,
    *,
    smooth: bool = False,
) -> None:
    """Write the figure's three files from curves.

    Args:
        curves: the runs.
        folder: where to write; made if missing.
        origin: the provenance.
        device: where the runs were, in words.
        smooth: the training losses are running means already, as those of thinned curves are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_of(curves))
    whole = {**origin, "caption": f"{caption(curves, device)} {origin.get('budget', '')}".strip()}
    if smooth:
        whole["smooth"] = True
    write_origin(folder, whole)
    redraw(folder)


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``.

    Raises:
        RecordError: ``data.csv`` is missing or damaged, or holds none of the figure's data sets.
    """
    curves = read_curves(folder / "data.csv")
    path = folder / "provenance.json"
    origin = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with mpl.rc_context(RC):
        figure = draw(curves, origin.get("caption", ""), smooth=origin.get("smooth", False))
        figure.savefig(folder / "figure.png", metadata={"Software": None})


def caption(curves: Sequence[Curve], device: str) -> str:
    """Return the line below the figure: device, data, seeds, and how curves are made."""
    titles = _titles()
    present = list(dict.fromkeys(curve.dataset for curve in curves))
    data = ", ".join(titles.get(dataset, dataset) for dataset in present)
    seeds = ", ".join(str(seed) for seed in sorted({curve.seed for curve in curves}))
    return (
        f"{device}. Data: {data}. Seeds {seeds}: median and range. The same number of steps for "
        f"each optimizer of a column; training loss: running mean over {WINDOW} steps."
    )


def _titles() -> dict[str, str]:
    return {panel.dataset: panel.title for panels in PROFILES.values() for panel in panels}


def draw(curves: Sequence[Curve], caption_line: str = "", *, smooth: bool = False) -> Figure:
    """Return the figure; call it within ``matplotlib.rc_context(RC)``.

    Args:
        curves: the runs.
        caption_line: what stands below.
        smooth: the training losses are running means already.

    Raises:
        RecordError: no curve belongs to a data set of this figure.
    """
    titles = _titles()
    datasets = [name for name in titles if any(curve.dataset == name for curve in curves)]
    if not datasets:
        raise RecordError(f"{NAME}: no run of any of its data sets: {', '.join(titles)}")
    columns = len(datasets)
    figure = Figure(figsize=(WIDTH_IN if columns > 1 else WIDTH_IN * 0.6, 5.4))
    axes = figure.subplots(2, columns, sharex="col", squeeze=False)
    for column, dataset in enumerate(datasets):
        groups = by_optimizer(curves, dataset)
        loss, metric = axes[0, column], axes[1, column]
        for optimizer in sorted(groups, key=list(LOOKS).index):
            _draw_loss(loss, groups[optimizer], 1 if smooth else WINDOW)
            _draw_metric(metric, groups[optimizer])
        _label(loss, metric, titles[dataset], first=column == 0)
        note_diverged(loss, groups)
    _legend_and_caption(figure, caption_line)
    return figure


def _draw_loss(axes: Axes, curves: Sequence[Curve], window: int) -> None:
    series = []
    for curve in curves:
        times, values = curve.series("train_loss")
        series.append((times, running_mean(values, window)))
    draw_curves(axes, curves, series)


def _draw_metric(axes: Axes, curves: Sequence[Curve]) -> None:
    series = []
    for curve in curves:
        times, values = curve.series("val_metric")
        series.append((times, 100.0 * values))
    draw_curves(axes, curves, series)


def _label(loss: Axes, metric: Axes, title: str, *, first: bool) -> None:
    loss.set_title(title)
    loss.set_yscale("log")
    metric.set_xlabel("Wall-clock training time (s)")
    for axes in (loss, metric):
        axes.set_xlim(left=0.0)
        axes.margins(x=0.02)
    low = metric.get_ylim()[0]
    metric.set_ylim(max(low, 0.0), 101.0)
    if first:
        loss.set_ylabel("Training loss")
        metric.set_ylabel("Validation accuracy (%)")


def _legend_and_caption(figure: Figure, line: str) -> None:
    handles = [
        Line2D([], [], label=style.label, marker=style.marker, **style.line)
        for style in (look(name) for name in OPTIMIZERS)
    ]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    lines = textwrap.wrap(line, width=int(15.5 * figure.get_figwidth()))
    figure.text(0.5, 0.008, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, 0.03 * len(lines), 1.0, 0.945))
