"""The comparison in numbers, words and pictures, all of it drawn from ``runs.csv`` alone."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.base.files import write_whole
from experiments.publish.names import dataset_name, optimizer_name
from experiments.publish.provenance import devices, write_provenance
from experiments.publish.style import RC, WIDTH_IN
from experiments.publish.tables import Table, csv_of
from experiments.run.records import DIVERGED
from experiments.studies.comparison.planning import FRESH, SEARCH
from experiments.studies.comparison.rows import (
    RUNS,
    fresh_of,
    mean_and_deviation,
    names_of,
    read_rows,
    settings_text,
)
from experiments.studies.comparison.scoring import (
    LEVEL,
    MEASURES,
    SpeedUp,
    profile,
    scores_of,
    speed_up,
    studies_of,
)
from experiments.studies.execute import Say

FILES = ("profile.png", "speedup.png", "table.md", "data.csv", "provenance.json")

TAUS = (1.0, 1.5, 2.0, 4.0)
"""Values of τ in the table."""

REFERENCE = "adam"

TAU_MAX, POINTS, COLUMNS = 4.0, 601, 3

OWN, OTHERS, FILL = "#8C1C4A", "#B8B8B8", "#F1DDE5"

TITLES = {"seconds": "Training time", "steps": "Steps", "nfe": "Field evaluations"}


def draw(folder: Path, command: str, say: Say) -> None:
    """Write :data:`FILES` beside ``runs.csv``, and say which best settings lie on a border.

    Args:
        folder: where ``runs.csv`` is.
        command: the command that makes the comparison.
        say: prints one line.

    Raises:
        RecordError: ``runs.csv`` is missing, damaged or not of an equal search.
    """
    rows = read_rows(folder / RUNS)
    write_whole(folder / "table.md", table(rows))
    write_whole(folder / "data.csv", data(rows))
    with mpl.rc_context(RC):
        draw_profile(rows).savefig(folder / "profile.png", metadata={"Software": None})
        draw_speed_up(rows).savefig(folder / "speedup.png", metadata={"Software": None})
    write_provenance(folder, "protocol", command, **_facts(rows))
    for (dataset, optimizer), fresh in fresh_of(rows).iterrows():
        if fresh["border"]:
            who = f"{dataset_name(dataset)} · {optimizer_name(optimizer)}"
            where = ", ".join(fresh["border"])
            say(f"warning: best setting on the border of its search space: {who}: {where}")


def reference_of(rows: pd.DataFrame) -> str:
    """Return what speed-ups are relative to: Adam, or the first optimizer where it is missing."""
    names = names_of(rows, "optimizer")
    return REFERENCE if REFERENCE in names else names[0]


def speed_ups(found: pd.DataFrame, rows: pd.DataFrame) -> dict[tuple[str, str], SpeedUp]:
    """Return the speed-ups by optimizer and measure."""
    reference = reference_of(rows)
    return {
        (name, measure): speed_up(found, name, reference, measure)
        for name in names_of(rows, "optimizer")
        for measure in MEASURES
    }


def _fastest_first(ups: dict[tuple[str, str], SpeedUp]) -> list[str]:
    names = [name for name, measure in ups if measure == "seconds"]
    return sorted(names, key=lambda name: -ups[name, "seconds"].bounded)


def table(rows: pd.DataFrame) -> str:
    """Return ``table.md``: all data sets together, then each, then what the columns mean."""
    found, fresh = studies_of(rows), fresh_of(rows)
    parts = [_overall(found, rows).markdown()]
    for dataset, own in rows.groupby("dataset", sort=False):
        parts.append(_one(found.loc[[dataset]], fresh, own).markdown())
    return "\n".join(parts)


def _overall(found: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """Return the table over all data sets, the best optimizer first."""
    ups = speed_ups(found, rows)
    header = [
        "",
        *(f"ρ({tau:g})" for tau in TAUS),
        f"speed-up over {optimizer_name(reference_of(rows))}",
        "a miss as 0",
        "in steps",
        "in evaluations",
        "data sets missed",
        "studies missed",
    ]
    scores = scores_of(found)["seconds"]
    lines = []
    for name in _fastest_first(ups):
        up = ups[name, "seconds"]
        missed, lost = (
            np.isinf(seconds.xs(name, level="optimizer")) for seconds in (scores, found["seconds"])
        )
        lines.append(
            [
                optimizer_name(name),
                *(f"{share:.2f}" for share in profile(found, name, TAUS)),
                f"{up.sign}{up.bounded:.2f} ({up.low:.2f} to {up.high:.2f})",
                "–" if math.isnan(up.strict) else f"{up.strict:.2f}",
                *(f"{ups[name, m].sign}{ups[name, m].bounded:.2f}" for m in ("steps", "nfe")),
                f"{missed.sum()} of {len(missed)}",
                f"{lost.sum()} of {len(lost)}",
            ]
        )
    return Table(header, lines, overall_caption(rows))


def _one(found: pd.DataFrame, fresh: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """Return the table of one data set, the fastest first."""
    first = rows.iloc[0]
    lines, borders = [], []
    ranked = scores_of(found).sort_values(["seconds", "least_seconds"], kind="stable")
    for (dataset, name), score in ranked.iterrows():
        hits = np.isfinite(found["seconds"].xs(name, level="optimizer"))
        line = [optimizer_name(name), _seconds(score["seconds"]), f"{hits.sum()} of {len(hits)}"]
        again = fresh.loc[dataset, name] if (dataset, name) in fresh.index else None
        lines.append([*line, *_fresh_cells(again)])
    if first["dataset"] in fresh.index:
        for name, again in fresh.loc[first["dataset"]].iterrows():
            if again["border"]:
                borders.append(f"{optimizer_name(name)}: {', '.join(again['border'])}")
    header = [
        f"{dataset_name(first['dataset'])}, target {goal(first)}",
        "score",
        "studies",
        "fresh seeds",
        "reached",
        "steps",
        "evaluations",
        "test",
        "best setting",
    ]
    lost = ((rows["role"] == SEARCH) & (rows["state"] == DIVERGED)).sum()
    caption = f"Budget {first['budget']:g} s; {lost} trials diverged."
    if borders:
        caption += f" (!) On the border of its space: {'; '.join(borders)}."
    return Table(header, lines, caption)


def _fresh_cells(fresh: pd.Series | None) -> list[str]:
    if fresh is None:
        return ["–"] * 6
    counts = [fresh["steps"], fresh["nfe"]]
    return [
        _seconds(fresh["seconds"]),
        f"{fresh['reached']} of {fresh['seeds']}",
        *(f"{count:.0f}" if math.isfinite(count) else "missed" for count in counts),
        mean_and_deviation(fresh),
        settings_text(fresh),
    ]


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "missed"


def goal(row: pd.Series) -> str:
    """Return the target in words."""
    if row["metric"] == "accuracy":
        return f"{100 * row['target']:.1f} %"
    return f"{row['target']:.3f} nats"


def where_and_how(rows: pd.DataFrame) -> str:
    """Return machine and search in words."""
    search = rows[rows["role"] == SEARCH]
    studies, trials = 1 + search["study"].max(), 1 + search["trial"].max()
    jobs = rows["jobs"].max()
    together = "" if jobs == 1 else f", {jobs} runs at a time"
    count = f"{studies} {'study' if studies == 1 else 'studies'}"
    return f"{_machine(rows)}{together}; {count} of {trials} trials each"


def _machine(rows: pd.DataFrame) -> str:
    entries = rows[["device", "threads"]].astype(object).where(rows["threads"].notna(), None)
    entries["device"] = rows["device"]
    return devices(entries.to_dict("records"))


def overall_caption(rows: pd.DataFrame) -> str:
    """Return what the columns of the first table mean."""
    return (
        f"{where_and_how(rows)}. A score is the median over studies of the training seconds of a"
        " study's fastest trial to the target, infinite where all of its trials missed it. ρ(τ):"
        " share of the data sets on which an optimizer's score is at most τ times the best one."
        " Speed-up: geometric mean over data sets of the ratio of scores; a miss counts with the"
        " least that it can have taken (the budget), so that ≤ marks an upper bound (the optimizer"
        " missed a data set), ≥ a lower one (the reference did) and ~ neither (both missed the same"
        " one, which counts as 1, or each missed another); in parentheses a"
        f" {100 * LEVEL:.0f} % bootstrap interval over studies, coarse with so few. Beside it the"
        " same with a miss as speed-up 0. Evaluations of the vector field count forward, backward"
        " and curvature passes of training. Fresh seeds: the best setting for the whole budget,"
        " medians over seeds, misses infinite."
    )


def data(rows: pd.DataFrame) -> str:
    """Return ``data.csv``: one number a line."""
    found, fresh = studies_of(rows), fresh_of(rows)
    scores = scores_of(found)
    lines: list[tuple[str, str, str, float | None]] = []
    ups = speed_ups(found, rows)
    for name in names_of(rows, "optimizer"):
        for tau, share in zip(TAUS, profile(found, name, TAUS), strict=True):
            lines.append(("all", name, f"profile at {tau:g}", share))
        for measure in MEASURES:
            up = ups[name, measure]
            named = {"": up.bounded, " low": up.low, " high": up.high, " miss as 0": up.strict}
            lines += [("all", name, f"speed-up {measure}{k}", v) for k, v in named.items()]
    for (dataset, name), own in found.groupby(["dataset", "optimizer"], sort=False):
        values: dict[str, float | None] = {}
        for measure in MEASURES:
            values[f"score {measure}"] = scores.loc[(dataset, name), measure]
            for number, value in enumerate(own[measure]):
                values[f"study {number} {measure}"] = value
        if (dataset, name) in fresh.index:
            again = fresh.loc[dataset, name]
            values |= {f"fresh {measure}": again[measure] for measure in MEASURES}
            values |= {"fresh reached": again["reached"], "fresh seeds": again["seeds"]}
            for quantity in ("mean", "deviation"):
                values[f"test {quantity}"] = (
                    None if math.isnan(again[quantity]) else again[quantity]
                )
        lines += [(dataset, name, quantity, value) for quantity, value in values.items()]
    table = pd.DataFrame(lines, columns=["dataset", "optimizer", "quantity", "value"], dtype=object)
    # What cannot be compared is nan, what was not measured is empty.
    value = table["value"].map(lambda value: "" if value is None else f"{value:.6g}")
    return csv_of(table.assign(value=value))


def _facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return where the results come from; the runs themselves are in ``runs.csv``."""
    started = sorted(filter(None, rows["started"]))
    first = rows.groupby("dataset", sort=False)[["metric", "target", "budget"]].first()
    return {
        "device": _machine(rows),
        "processor": " and ".join(sorted(names_of(rows, "processor"))),
        "seeds": sorted(rows["seed"].unique().tolist()),
        "fresh_seeds": sorted(rows["seed"][rows["role"] == FRESH].unique().tolist()),
        "optimizers": names_of(rows, "optimizer"),
        "datasets": first.rename(columns={"budget": "budget_s"}).reset_index().to_dict("records"),
        "runs": {
            "file": RUNS,
            "number": len(rows),
            "jobs": sorted(rows["jobs"].unique().tolist()),
            "torch": sorted(names_of(rows, "torch")),
            "dirty": bool((rows["dirty"] == "true").any()),
            "first_start": started[0] if started else None,
            "last_start": started[-1] if started else None,
            "training_s": round(float(rows["total_seconds"].sum()), 1),
            "commits": [
                {"commit": commit, "runs": number}
                for commit, number in Counter(rows["commit"]).items()
            ],
        },
    }


def draw_profile(rows: pd.DataFrame) -> Figure:
    """Return the performance profiles: a panel for each optimizer, the others thin behind it.

    With few data sets, profiles lie on one another; panels keep each one readable. Call it within
    ``matplotlib.rc_context(RC)``.
    """
    found = studies_of(rows)
    taus = np.linspace(1.0, TAU_MAX, POINTS)
    curves = {
        name: np.array(profile(found, name, taus.tolist())) for name in names_of(rows, "optimizer")
    }
    names = sorted(curves, key=lambda name: -float(curves[name].mean()))
    lines = _wrapped(
        f"{where_and_how(rows)}. Share of {len(names_of(rows, 'dataset'))} data sets on which an"
        " optimizer's score (median over studies of the fastest trial's training time to the"
        " target) is at most τ times the best one; a miss never counts. Grey: the other optimizers."
    )
    down = math.ceil(len(names) / COLUMNS)
    height = 0.55 + 1.45 * down + 0.16 * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height))
    panels = figure.subplots(down, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        for other in names:
            if other != name:
                panel.plot(taus, curves[other], color=OTHERS, linewidth=0.8, zorder=1)
        panel.fill_between(taus, curves[name], color=FILL, zorder=0)
        panel.plot(taus, curves[name], color=OWN, linewidth=2.4, zorder=3, clip_on=False)
        panel.set_title(optimizer_name(name))
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    panels[0, 0].set_xlim(1.0, TAU_MAX)
    panels[0, 0].set_ylim(0.0, 1.0)
    for panel in panels[:, 0]:
        panel.set_ylabel("Share ρ(τ)")
    for column in range(COLUMNS):
        shown = [panel for panel in panels[:, column] if panel.get_visible()]
        if shown:
            shown[-1].set_xlabel("τ")
            shown[-1].tick_params(labelbottom=True)
    _caption(figure, lines, height)
    return figure


def draw_speed_up(rows: pd.DataFrame) -> Figure:
    """Return the speed-ups in training time, steps and evaluations of the field, side by side.

    Call it within ``matplotlib.rc_context(RC)``.
    """
    ups = speed_ups(studies_of(rows), rows)
    names = _fastest_first(ups)
    lines = _wrapped(
        f"{where_and_how(rows)}. Geometric mean over {len(names_of(rows, 'dataset'))} data sets;"
        f" bars: {100 * LEVEL:.0f} % bootstrap interval over studies. A miss counts with the least"
        " that it can have taken: an open triangle to the left marks an upper bound (the optimizer"
        " missed a data set), to the right a lower one (the reference did), an open diamond"
        " neither."
    )
    height = 0.95 + 0.24 * len(names) + 0.16 * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height))
    panels = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, MEASURES, strict=True):
        own = [ups[name, measure] for name in names]
        for place, up in enumerate(own):
            _mark(panel, place, up)
        panel.axvline(1.0, color="#666666", linewidth=1.0, zorder=1)
        _ratio_axis(panel, own)
        panel.set_title(TITLES[measure])
        panel.grid(visible=False, axis="y")
    panels[1].set_xlabel(f"Speed-up over {optimizer_name(reference_of(rows))} (times)")
    panels[0].set_yticks(range(len(names)), [optimizer_name(name) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    _caption(figure, lines, height)
    return figure


def _mark(panel: Axes, place: int, up: SpeedUp) -> None:
    """Draw one speed-up with its interval."""
    marker = {(False, False): "o", (True, False): "<", (False, True): ">"}.get(
        (up.upper, up.lower), "D"
    )
    panel.plot([up.low, up.high], [place, place], color="#555555", linewidth=1.4, zorder=2)
    panel.plot(
        [up.bounded],
        [place],
        marker=marker,
        markersize=6,
        color=OWN,
        markerfacecolor=OWN if marker == "o" else "white",
        markeredgewidth=1.3,
        linestyle="none",
        zorder=3,
    )


def _ratio_axis(panel: Axes, ups: Sequence[SpeedUp]) -> None:
    """Set a logarithmic axis with ticks at powers of 2 that leaves room for every interval."""
    low = min(1.0, *(up.low for up in ups), *(up.bounded for up in ups)) / 1.25
    high = max(1.0, *(up.high for up in ups), *(up.bounded for up in ups)) * 1.25
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    powers = [2.0**k for k in range(-10, 11) if low <= 2.0**k <= high]
    powers = powers[:: max(1, math.ceil(len(powers) / 6))]
    panel.xaxis.set_major_locator(FixedLocator(powers))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(powers, [f"{p:g}" if p >= 1 else f"1/{1 / p:.0f}" for p in powers])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=int(16 * WIDTH_IN))


def _caption(figure: Figure, lines: Sequence[str], height: float) -> None:
    figure.text(0.5, 0.06 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, (0.1 + 0.14 * len(lines)) / height, 1.0, 1.0))
