"""Figure 8: how much the result depends on the learning rate, and on learning rate and damping.

Above, final validation accuracy over the learning rate; a line is the median over seeds. Below, one
map of learning rate and damping for each optimizer that has a damping. Everything is drawn from
``data.csv`` alone. :mod:`experiments.figures.sensitivity_runs` says which runs there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.base.errors import ConfigError
from experiments.base.files import write_whole
from experiments.figures.sensitivity_runs import (
    CUT,
    Entry,
    Sensitivity,
    budget,
    medians,
    plan,
    score,
    within,
)
from experiments.figures.sensitivity_table import Share, csv_of, read_entries, shares, table
from experiments.publish.provenance import caption_of, machine, provenance, write_origin
from experiments.publish.style import LOOKS, RC, WIDTH_IN, Look, finish
from experiments.run.records import DIVERGED, summarise
from experiments.studies.execute import Say, execute_all

NAME = "figure-8"
PROFILES = ("embedded",)
OWN_LOOKS = {**LOOKS, "kfac": Look("KFAC", "#1A1A1A", (0, (4.0, 1.2, 1.0, 1.2)), "D")}
COLOURS = "viridis"
"""Its luminance rises all the way, so the map reads in greyscale too."""


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
    jobs: int = 1,
    train: Sequence[str] | None = None,
) -> None:
    """Train what is missing; write ``data.csv``, ``table.md``, ``figure.png`` and provenance.

    Args:
        profile: ``"embedded"``, the only one.
        seeds: seeds of every point.
        overrides: changes to every run (``key=value``), and names of optimizers to leave the
            others out.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the figure goes.
        command: the command that makes it.
        say: prints one line.
        jobs: runs at a time.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: the profile, an optimizer or an override is unknown.
        RecordError: runs failed; one that diverged counts as guessing.
    """
    sensitivity = Sensitivity.load()
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; {NAME} has {', '.join(PROFILES)}")
    names = [name for name in overrides if "=" not in name]
    changes = [change for change in overrides if "=" in change]
    unknown = [name for name in names if name not in sensitivity.optimizers]
    if unknown:
        valid = ", ".join(sensitivity.optimizers)
        raise ConfigError(f"{NAME} takes key=value or optimizers, {valid}; got {unknown[0]!r}")
    steps, limit = budget(sensitivity, changes)
    wanted = plan(sensitivity, seeds, changes, data_dir, output_dir, names)
    length = "as long as the time allows" if steps is None else f"of {steps} steps each"
    say(f"{NAME}: {len(wanted)} runs, {length}")
    runs = [run for _, run in wanted]
    execute_all(runs, jobs, say, train, consequence=f"{NAME} is not drawn")
    order = list(sensitivity.optimizers)
    wanted.sort(key=lambda pair: order.index(pair[0].optimizer))  # stable: points keep their order
    summaries = [summarise(run.folder) for _, run in wanted]
    entries = [
        score(summary, point, steps, sensitivity.chance)
        for summary, (point, _) in zip(summaries, wanted, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    origin: dict[str, Any] = provenance(
        NAME, command, summaries, [run.command for _, run in wanted]
    )
    origin["caption"] = _caption(entries, machine(summaries), jobs, steps, limit)
    write_whole(folder / "data.csv", csv_of(entries))
    write_origin(folder, origin)
    redraw(folder)


def redraw(folder: Path) -> None:
    """Write ``figure.png`` and ``table.md`` again from ``data.csv`` and the caption.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    entries = read_entries(folder / "data.csv")
    line = caption_of(folder)
    write_whole(folder / "table.md", table(entries, line).markdown())
    with mpl.rc_context(RC):
        finish(draw(entries), line, folder / "figure.png")


def draw(entries: Sequence[Entry]) -> Figure:
    """Return the figure without its caption; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there is no run.
    """
    mapped = [share.optimizer for share in shares(entries, "map")]
    figure = Figure(figsize=(WIDTH_IN, 6.2 if mapped else 3.4))
    grid = figure.add_gridspec(2 if mapped else 1, 2)
    of_line = [entry for entry in entries if entry.line]
    handles = _lines(figure.add_subplot(grid[0, 0]), of_line)
    beside = figure.add_subplot(grid[0, 1])
    beside.axis("off")
    title = "Learning rates within 1 point\nof the optimizer's best"
    beside.legend(handles=handles, title=title, loc="center left")
    lowest = 100 * min((entry.accuracy for entry in entries if entry.map), default=0.0)
    for column, name in enumerate(mapped):
        axes = figure.add_subplot(grid[1, column])
        own = [entry for entry in entries if entry.optimizer == name and entry.map]
        image = _map(axes, own, lowest)
        axes.set_title(f"{OWN_LOOKS[name].label}: {_share_of_map(entries, name)}")
        axes.set_ylabel("Damping")
        bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))
        bar.set_label("Validation accuracy (%)")
    return figure


def _lines(axes: Axes, entries: Sequence[Entry]) -> list[Line2D]:
    """Draw accuracy over the learning rate; return the entries of the legend."""
    handles = []
    for share in shares(entries, "line"):
        look = OWN_LOOKS[share.optimizer]
        own = [entry for entry in entries if entry.optimizer == share.optimizer]
        values = medians(own)
        rates = [lr for lr, _ in values]
        axes.plot(rates, [100 * value for value in values.values()], **look.line)
        low, high = (
            [100 * pick(e.accuracy for e in own if e.lr == lr) for lr in rates]
            for pick in (min, max)
        )
        axes.fill_between(rates, low, high, color=look.color, alpha=0.15, linewidth=0)
        for (lr, _), value in values.items():
            _mark(axes, lr, 100 * value, {e.state for e in own if e.lr == lr}, look)
        label = f"{look.label}: {share.own} of {share.points}, best {100 * share.best:.1f} %"
        handles.append(Line2D([], [], marker=look.marker, label=label, **look.line))
    states = {entry.state for entry in entries}
    if CUT in states:
        handles.append(_sample("stopped by the time limit", marker="o", markerfacecolor="white"))
    if DIVERGED in states:
        handles.append(_sample("diverged", marker="x", markeredgewidth=1.8))
    axes.set_xscale("log")
    axes.set_ylim(0.0, 101.0)
    axes.set_xlabel("Learning rate")
    axes.set_ylabel("Validation accuracy (%)")
    return handles


def _mark(axes: Axes, lr: float, value: float, states: set[str], look: Look) -> None:
    """Draw the marker of a point: a cross where a seed diverged, hollow where one was cut."""
    style: dict[str, Any] = {"color": look.color, "linestyle": "none", "zorder": 3}
    if DIVERGED in states:
        axes.plot([lr], [value], marker="x", markersize=6.5, markeredgewidth=1.8, **style)
    else:
        face = "white" if CUT in states else look.color
        axes.plot([lr], [value], marker=look.marker, markerfacecolor=face, **style)


def _sample(label: str, **style: Any) -> Line2D:
    return Line2D([], [], color="#555555", linestyle="none", label=label, **style)


def _map(axes: Axes, entries: Sequence[Entry], lowest: float) -> Any:
    """Draw accuracy over learning rate (across) and damping (up); the best cells get a frame."""
    values = medians(entries)
    rates, dampings = (sorted({key[place] for key in values}) for place in (0, 1))
    cells = np.full((len(dampings), len(rates)), np.nan)
    for (lr, damping), value in values.items():
        cells[dampings.index(damping), rates.index(lr)] = 100 * value
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=COLOURS, vmin=lowest, vmax=100.0)
    best = max(values.values())
    for (lr, damping), value in values.items():
        row, column = dampings.index(damping), rates.index(lr)
        states = {e.state for e in entries if (e.lr, e.damping) == (lr, damping)}
        text = "×" if states == {DIVERGED} else f"{100 * value:.0f}"
        text += "×" * (DIVERGED in states and len(states) > 1) + "†" * (CUT in states)
        # Light cells get dark numbers.
        dark = (100 * value - lowest) > 0.55 * (100 - lowest)
        axes.text(
            *(column, row, text),
            ha="center",
            va="center",
            fontsize=8,
            color="black" if dark else "white",
        )
        if within([value], best):
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(
                mpl.patches.Rectangle(corner, 0.92, 0.92, fill=False, color="black", linewidth=1.6)
            )
    axes.set_xticks(range(len(rates)), [_number(value) for value in rates], rotation=30)
    axes.set_yticks(range(len(dampings)), [_number(value) for value in dampings])
    axes.set_xlabel("Learning rate")
    axes.grid(visible=False)
    return image


def _number(value: float) -> str:
    """Return a number for a tick: plain, or with an exponent where that is shorter."""
    return f"{value:g}" if 1e-3 <= value < 1e3 else f"{value:.2g}".replace("e-0", "e-")


def _share_of_map(entries: Sequence[Entry], name: str) -> str:
    found: dict[str, Share] = {share.optimizer: share for share in shares(entries, "map")}
    return f"{found[name].own} of {found[name].points} within 1 point"


def _caption(
    entries: Sequence[Entry], device: str, jobs: int, steps: int | None, limit: float | None
) -> str:
    seeds = sorted({entry.seed for entry in entries})
    together = "" if jobs == 1 else f", {jobs} runs at a time"
    length = f"{steps} steps" if steps is not None else "as many steps as the time allows"
    stop = "" if limit is None else f", at most {limit:g} s of training"
    several = "" if len(seeds) == 1 else ": medians and range"
    dampings = sorted({e.optimizer for e in entries if not math.isnan(e.damping)})
    framed = " Framed: within 1 point of the map's best. † stopped by time, × diverged."
    return (
        f"{device}{together}. Digits, {length}{stop}; seed{'s' * (len(seeds) > 1)}"
        f" {', '.join(map(str, seeds))}{several}. A run that diverged (×) counts as guessing."
        f"{framed if dampings else ''} The middle point is the tuned setting (KFAC: the default)."
    )
