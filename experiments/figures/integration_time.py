"""Figure 9 and table 5: training the integration time t1, what it costs and brings.

Both show the same runs: t1 fixed, trained by the first-order baseline (the exact gradient, and as
released) and by second-order feedback, from two starts. Runs of one seed have the same weights and
batches in all modes.

The figure has one column a start of t1: above t1 after each step, below validation accuracy against
wall-clock; lines, bands and crosses as in figure 1. The table has one row for each start and mode.
Its times relative to t1 fixed at 1.0 are medians of ratios seed by seed. Its medians and ranges
leave out the runs that diverged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter
from omegaconf import OmegaConf

from experiments.base.errors import RecordError
from experiments.figures.loss_curves import draw_band, draw_lost, note_diverged
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed, obtain
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.provenance import read_provenance
from experiments.publish.runs import NFE
from experiments.publish.style import WIDTH_IN, Look, finish, handles, styled
from experiments.publish.tables import Table, csv_of, escape, read_table
from experiments.run.build import load_data
from experiments.run.records import DIVERGED, DONE, finished
from experiments.studies.execute import PlannedRun, Say

FIGURE_9, TABLE_5 = "figure-9", "table-5"
DATASETS = {"embedded": "digits", "paper": "cifar10"}
"""Data set of each profile."""
MODES = ("fixed", "baseline", "baseline_released", "feedback")
COSTS = {1.0: 6e-4, 0.05: 4e-4}
"""Cost of time by start of t1, as published."""
STARTS = tuple(COSTS)
LOOKS = {
    "fixed": Look("fixed", "#7A7A7A", (0, (5.0, 1.5)), "o"),
    "baseline": Look("first-order baseline", "#E09F2B", (0, (1.5, 1.2)), "s"),
    "baseline_released": Look("the same as released", "#0F2B45", (0, (5.0, 1.5, 1.0, 1.5)), "D"),
    "feedback": Look("second-order feedback", "#8C1C4A", "solid", "^"),
}
OWN = {"dataset": str, "mode": str, "start": float, "seed": int, "state": str}
"""Columns that say which run a row belongs to."""
TRACE = {**OWN, "step": int, "time_s": float, "t1": float, "val_accuracy": float}
"""``data.csv`` of the figure: steps at which t1 changed or accuracy was measured, and the last; t1
after the step; an empty accuracy was not measured."""
NUMBERS = ("t1", "step_ms", "last_quarter_step_ms", "nfe_step", "test_accuracy")
ENTRY = {**OWN, **dict.fromkeys(NUMBERS, float)}
"""``data.csv`` of the table, one row a run: t1 at the end, mean time of all steps and of the last
quarter, mean evaluations of the field a step (forward, backward and curvature), test accuracy as a
fraction, NaN if the run diverged."""


class Variant(NamedTuple):
    """How t1 was trained (one of :data:`MODES`), and its value before training."""

    mode: str
    start: float


def plan(request: Request) -> list[tuple[Variant, PlannedRun]]:
    """Return the runs with their variants, in the order of training."""
    dataset = DATASETS[request.profile]
    return in_turn(
        {
            Variant(mode, start): request.runs(
                f"{FIGURE_9}/{dataset}-{mode}",
                dataset,
                f"t1 {mode} from {start:g}",
                [f"model.t1={start:g}", *([f"horizon.cost={cost:g}"] * (mode != "fixed"))],
            )
            for start, cost in COSTS.items()
            for mode in MODES
        }
    )


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write the files of the figure or of the table."""
    wanted = plan(request)
    missing = [run for _, run in wanted if not finished(run.folder)]
    if missing:
        load_data(missing[0].data)
    made = obtain(request, wanted, say, consequence=f"{request.target} is not made")
    facts = facts_of(made)
    run = made[0].run
    line = (
        f"{facts['device']}. {dataset_name(run.dataset)}, {optimizer_name(run.optimizer)},"
        f" {settings(made)}. Seeds {listed(facts['seeds'])}: median"
    )
    if request.target == FIGURE_9:
        traces = pd.concat([trace_of(one).assign(**_own(one)) for one in made])
        traces["time_s"] = traces["time_s"].map("{:.4f}".format)
        data, redraw = csv_of(traces[list(TRACE)], digits=6), redraw_figure
        line += " and range."
    else:
        data = csv_of(pd.DataFrame([entry_of(one) for one in made]), digits=6, missing="nan")
        redraw = redraw_table
        line += " (range). Relative times and accuracies are to fixed t1 = 1.0, seed by seed."
    request.publish(data, **facts, profile=request.profile, caption=line)
    redraw(request.folder)


def settings(made: Sequence[Made[Variant]]) -> str:
    """Return in words how t1 was trained, from the records; only c may differ between starts."""
    found, costs = set(), set()
    for one in made:
        if one.variant.mode != "fixed":
            config: Any = OmegaConf.load(one.run.folder / "config.yaml")
            horizon = config["horizon"]
            found.add(tuple(horizon[key] for key in ("lr", "every", "minimum", "decay")))
            costs.add((one.variant.start, horizon["cost"]))
    if len(found) != 1 or len(dict(costs)) != len(costs):
        raise RecordError(
            f"the runs have different settings of the integration time: {found}, costs {costs}"
        )
    lr, every, minimum, decay = found.pop()
    cost = listed([f"{c:g} from {start:g}" for start, c in sorted(costs, reverse=True)])
    every, bound = f"an update every {every} steps", f"t1 ≥ {minimum:g}"
    return f"η = {lr:g}, c = {cost}, {every}, averages {decay:g}, {bound}"


def _own(one: Made[Variant]) -> dict[str, Any]:
    run, (mode, start) = one.run, one.variant
    own = {"dataset": run.dataset, "mode": mode, "start": f"{start:g}"}
    return {**own, "seed": run.seed, "state": run.state}


def trace_of(one: Made[Variant]) -> pd.DataFrame:
    """Return the figure's rows of a run; lines of the same step are merged."""
    if not one.run.metrics:
        raise RecordError(f"{one.run.name} has no measurements in {one.run.folder}")
    rows = pd.DataFrame(list(one.run.metrics)).reindex(
        columns=["step", "time/train_s", "horizon/t1", "val/accuracy"]
    )
    rows.columns = pd.Index(["step", "time_s", "t1", "val_accuracy"])
    # A t1 that is fixed is not written in the record.
    rows["t1"] = rows["t1"].fillna(one.variant.start)
    trace = rows.groupby("step", as_index=False).last()
    kept = (trace["t1"] != trace["t1"].shift()) | trace["val_accuracy"].notna()
    kept.iloc[-1] = True
    return trace[kept]


def entry_of(one: Made[Variant]) -> dict[str, Any]:
    """Return the table's row of a run."""
    run = one.run
    steps = [row for row in run.metrics if "train/loss" in row]
    if not steps:
        raise RecordError(f"{run.name} took no step ({run.folder})")
    last, end = steps[-1], run.metrics[-1]
    if run.state == DONE and "test/accuracy" not in end:
        raise RecordError(f"{run.name} has no test accuracy in {run.folder}")
    start = {"step": 0, "time/train_s": 0.0}
    early = [start, *(row for row in steps if row["step"] <= 0.75 * last["step"])][-1]
    late_s, late = (last[key] - early[key] for key in ("time/train_s", "step"))
    evaluations = 0.0
    for before, row in itertools.pairwise([start, *steps]):
        # A line holds means over the steps since the line before.
        evaluations += (row["step"] - before["step"]) * sum(float(row[key]) for key in NFE)
    return {
        **_own(one),
        "t1": float(last.get("horizon/t1", one.variant.start)),
        "step_ms": 1e3 * last["time/train_s"] / last["step"],
        "last_quarter_step_ms": 1e3 * late_s / max(1, late),
        "nfe_step": evaluations / last["step"],
        "test_accuracy": float(end.get("test/accuracy", math.nan)),
    }


def redraw_figure(folder: Path) -> None:
    """Draw figure 9 again from ``data.csv`` and the caption in ``provenance.json``."""
    table = read_table(folder / "data.csv", TRACE)
    line = read_provenance(folder)["caption"]
    finish(draw(table), line, folder / "figure.png", top=0.94)


@styled
def draw(table: pd.DataFrame) -> Picture:
    """Return figure 9 without its caption."""
    starts = [start for start in STARTS if (table["start"] == start).any()]
    if not starts:
        raise RecordError(f"{FIGURE_9}: there is no run")
    picture = Picture(figsize=(WIDTH_IN, 5.2))
    axes = picture.subplots(2, len(starts), sharey="row", squeeze=False)
    for (above, below), start in zip(axes.T, starts, strict=True):
        own = table[table["start"] == start]
        for mode in MODES:
            _draw_mode(above, below, own[own["mode"] == mode], LOOKS[mode])
        above.set_title(f"start at $t_1$ = {start:g}")
        note_diverged(above, own, "mode", LOOKS, y=0.04, va="baseline")
        above.set_yscale("log")
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        above.set_xlabel("Training steps")
        below.set_xlabel("Wall-clock training time (s)")
        for one in (above, below):
            one.set_xlim(left=0.0)
    axes[0, 0].set_ylabel("Integration time $t_1$")
    axes[1, 0].set_ylabel("Validation accuracy (%)")
    axes[1, 0].set_ylim(0.0, 101.0)
    entries = handles(LOOKS.values(), markers=False)
    picture.legend(handles=entries, loc="upper center", ncols=len(entries))
    return picture


def _draw_mode(above: Axes, below: Axes, table: pd.DataFrame, look: Look) -> None:
    """Draw t1 and accuracy of the runs of one mode and start."""
    done, accuracies, lost = [], [], []
    for _, run in table.groupby("seed", sort=False):
        measured = run[np.isfinite(run["val_accuracy"])]
        accuracy = (measured["time_s"].to_numpy(), 100.0 * measured["val_accuracy"].to_numpy())
        if run["state"].iloc[0] == DIVERGED:
            above.step(run["step"], run["t1"], where="post", linewidth=0.7, **look.line)
            above.plot(run["step"].iloc[-1:], run["t1"].iloc[-1:], marker="x", color=look.color)
            lost += [accuracy] if len(measured) else []
        else:
            done.append(run)
            accuracies.append(accuracy)
    draw_lost(below, lost, look, {"marker": "x"}, linewidth=0.7)
    if done:
        steps = np.arange(min(run["step"].iloc[-1] for run in done) + 1)
        values = np.stack([t1_at(run, steps) for run in done])
        low, high = values.min(axis=0), values.max(axis=0)
        above.fill_between(steps, low, high, step="post", color=look.color, alpha=0.2, linewidth=0)
        above.step(steps, np.median(values, axis=0), where="post", **look.line)
        draw_band(below, accuracies, look)


def t1_at(run: pd.DataFrame, steps: Any) -> Any:
    """Return t1 of a run after each of ``steps``; it is constant between updates."""
    places = np.searchsorted(run["step"].to_numpy(), steps, side="right") - 1
    return run["t1"].to_numpy()[places]


def redraw_table(folder: Path) -> None:
    """Write table 5 again from ``data.csv`` and ``provenance.json``."""
    entries = read_table(folder / "data.csv", ENTRY)
    caption = read_provenance(folder)["caption"]
    as_table(entries, caption).write(folder, comment=escape(caption))


def as_table(entries: pd.DataFrame, caption: str = "") -> Table:
    """Return table 5; the reference is t1 fixed at 1.0."""
    done = entries[entries["state"] == DONE]
    reference = done[(done["mode"] == "fixed") & (done["start"] == 1.0)].set_index("seed")
    if reference.empty:
        raise RecordError(f"{TABLE_5}: no run with t1 fixed at 1.0 came to its end")
    lines = []
    for start in STARTS:
        for mode in MODES:
            every = entries[(entries["mode"] == mode) & (entries["start"] == start)]
            own = every[every["state"] == DONE].set_index("seed")
            if every.empty:
                continue
            label = mode if len(own) == len(every) else f"{mode} ({len(own)} of {len(every)})"
            cells = ["diverged", *["–"] * 6] if own.empty else _cells(own, reference)
            lines.append([f"{start:g}", label, *cells])
    header = (
        "start",
        "t1",
        "t1 at the end",
        "NFE / step",
        "time / step",
        "relative",
        "relative, last quarter",
        "test accuracy (%)",
        "difference (points)",
    )
    return Table(header, lines, caption, align="ll" + 7 * "r", dashes=(" --- ", " --- "))


def _cells(own: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    """Return the cells of one mode and start; both tables have the seed as index."""

    def middle(values: pd.Series, form: str) -> str:
        known = values.dropna()
        return format(median(known), form) if len(known) else "–"

    ratios = own[["step_ms", "last_quarter_step_ms"]] / reference
    difference = 100 * (own["test_accuracy"] - reference["test_accuracy"])
    return [
        _spread(own["t1"], ".2f"),
        _spread(own["nfe_step"], ".0f"),
        f"{median(own['step_ms']):.0f} ms",
        middle(ratios["step_ms"], ".2f"),
        middle(ratios["last_quarter_step_ms"], ".2f"),
        _spread(100 * own["test_accuracy"], ".1f"),
        middle(difference, "+.1f"),
    ]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


FIGURES = (
    Figure(FIGURE_9, reproduce, redraw_figure, tuple(DATASETS)),
    Figure(TABLE_5, reproduce, redraw_table, tuple(DATASETS)),
)
