"""Figure 9: the integration time t1 while it is trained, and what it does to accuracy.

One column a start of t1; above t1 after each step, below validation accuracy against wall-clock.
Lines are medians over seeds, bands reach from the lowest to the highest. A run that diverged is
drawn alone, as a thin line that ends in a cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.figures.curves import band
from experiments.figures.horizon_runs import (
    DATASETS,
    MODES,
    STARTS,
    TITLES,
    HorizonRun,
    obtain,
    plan,
    settings,
)
from experiments.figures.horizon_traces import Trace, csv_of, read_traces, trace_of
from experiments.publish.provenance import caption_of, machine, provenance, write_origin
from experiments.publish.style import RC, WIDTH_IN, Look, finish
from experiments.studies.execute import Say

NAME = "figure-9"
PROFILES = DATASETS
LOOKS = {
    "fixed": Look("fixed", "#7A7A7A", (0, (5.0, 1.5)), "o"),
    "baseline": Look("first-order baseline", "#E09F2B", (0, (1.5, 1.2)), "s"),
    "feedback": Look("second-order feedback", "#8C1C4A", "solid", "^"),
}


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
    """Train what is missing, then write ``data.csv``, ``provenance.json`` and ``figure.png``.

    Args:
        profile: name in :data:`PROFILES`.
        seeds: seeds of every line.
        overrides: changes to every run.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the figure goes.
        command: the command that makes the figure.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: unknown profile or override, or seeds that are not all different.
        DataError: the data set is not available.
        RecordError: runs failed.
    """
    wanted = plan(profile, seeds, overrides, data_dir, output_dir)
    make(obtain(NAME, wanted, say, train), folder, profile=profile, command=command)


def make(runs: Sequence[HorizonRun], folder: Path, *, profile: str, command: str) -> None:
    """Write the figure's three files from finished runs.

    Raises:
        RecordError: a file cannot be written, or the runs do not belong together.
    """
    summaries = [run.summary for run in runs]
    traces = [trace_of(run) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_of(traces))
    origin: dict[str, Any] = provenance(NAME, command, summaries, [run.command for run in runs])
    seeds = ", ".join(str(seed) for seed in origin["seeds"])
    origin["profile"] = profile
    origin["caption"] = (
        f"{machine(summaries)}. {TITLES[traces[0].dataset]}, SNOpt, {settings(runs)}. Seeds"
        f" {seeds}: median and range."
    )
    write_origin(folder, origin)
    redraw(folder)


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    traces = read_traces(folder / "data.csv")
    line = caption_of(folder)
    with mpl.rc_context(RC):
        finish(draw(traces), line, folder / "figure.png", top=0.94)


def draw(traces: Sequence[Trace]) -> Figure:
    """Return the figure without its caption; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there is no run.
    """
    starts = [start for start in STARTS if any(trace.start == start for trace in traces)]
    if not starts:
        raise RecordError(f"{NAME}: there is no run")
    figure = Figure(figsize=(WIDTH_IN, 5.2))
    axes = figure.subplots(2, len(starts), sharey="row", squeeze=False)
    for column, start in enumerate(starts):
        above, below = axes[0, column], axes[1, column]
        for mode in MODES:
            same = [trace for trace in traces if (trace.mode, trace.start) == (mode, start)]
            if same:
                _draw_t1(above, same, LOOKS[mode])
                _draw_accuracy(below, same, LOOKS[mode])
        above.set_title(f"start at $t_1$ = {start:g}")
        _note_diverged(above, [trace for trace in traces if trace.start == start])
        above.set_yscale("log")
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        above.set_xlabel("Training steps")
        below.set_xlabel("Wall-clock training time (s)")
        for one in (above, below):
            one.set_xlim(left=0.0)
    axes[0, 0].set_ylabel("Integration time $t_1$")
    axes[1, 0].set_ylabel("Validation accuracy (%)")
    axes[1, 0].set_ylim(0.0, 101.0)
    handles = [Line2D([], [], label=look.label, **look.line) for look in LOOKS.values()]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    return figure


def _draw_t1(axes: Axes, traces: Sequence[Trace], look: Look) -> None:
    done = [trace for trace in traces if not trace.diverged]
    for trace in traces:
        if trace.diverged:
            axes.step(trace.step, trace.t1, where="post", linewidth=0.7, **look.line)
            axes.plot(trace.step[-1:], trace.t1[-1:], marker="x", color=look.color)
    if done:
        steps = np.arange(min(trace.step[-1] for trace in done) + 1)
        values = np.stack([trace.t1_at(steps) for trace in done])
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(steps, low, high, step="post", color=look.color, alpha=0.2, linewidth=0)
        axes.step(steps, np.median(values, axis=0), where="post", **look.line)


def _draw_accuracy(axes: Axes, traces: Sequence[Trace], look: Look) -> None:
    kept = []
    for trace in traces:
        times, values = trace.accuracy()
        if not trace.diverged:
            kept.append((times, 100.0 * values))
        elif times.size:
            axes.plot(times, 100.0 * values, linewidth=0.7, **look.line)
            axes.plot(times[-1:], 100.0 * values[-1:], marker="x", color=look.color)
    if kept:
        shape = band(kept)
        axes.fill_between(
            shape.time_s, shape.low, shape.high, color=look.color, alpha=0.2, linewidth=0
        )
        axes.plot(shape.time_s, shape.median, **look.line)


def _note_diverged(axes: Axes, traces: Sequence[Trace]) -> None:
    lines = []
    for mode in MODES:
        same = [trace for trace in traces if trace.mode == mode]
        if lost := sum(trace.diverged for trace in same):
            lines.append(f"{LOOKS[mode].label}: {lost} of {len(same)} diverged (×)")
    if lines:
        axes.text(0.98, 0.04, "\n".join(lines), transform=axes.transAxes, ha="right", fontsize=8)
