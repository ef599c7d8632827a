"""Figure 7: runtime per step and peak memory of SNOpt relative to Adam, over all data sets.

One row a data set. Runtime: medians and quartiles over pairs of steps taken right after one
another, of the average step (one refresh in ``update_freq`` steps) and of the refresh step. Memory:
of the whole process, and without what it held before the first step. Both optimizers take their
steps at the same weights. :mod:`experiments.measure.step_cost` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from experiments.base.errors import DataError, RecordError
from experiments.figures.loss_curves import FIGURE_6, datasets_of
from experiments.figures.request import Figure, Request, listed
from experiments.measure.harness import Spread, averaged, in_words, pair_ratio, spread
from experiments.measure.pictures import OURS, duration, number
from experiments.measure.step_cost import ROUNDS, Measurement, plan
from experiments.publish.names import dataset_name
from experiments.publish.provenance import read_provenance
from experiments.publish.style import WIDTH_IN, finish, styled
from experiments.publish.tables import csv_of, read_table
from experiments.run.config import options
from experiments.studies.execute import Say

NAME = "figure-7"
DATASETS = {
    "embedded": ("digits", "japanese_vowels", "basic_motions", "circle"),
    "paper": datasets_of(FIGURE_6, "paper"),
}
"""Data sets of each profile; those that are not there are left out."""

COLUMNS = {
    "dataset": str,
    "optimizer": str,
    "quantity": str,
    "seed": int,
    "sample": int,
    "value": float,
    "unit": str,
}
"""``data.csv``; samples of one data set and seed with the same number are pairs."""

Measured = Sequence[tuple[Measurement, Mapping[str, Any]]]


def reproduce(request: Request, say: Say, *, rounds: int = ROUNDS) -> None:
    """Measure what is missing in ``rounds`` interleaved rounds, then write the figure's files."""
    where = [f"data_dir={request.data_dir.absolute()}"]
    measured: list[tuple[Measurement, dict[str, Any]]] = []
    reasons = []
    for dataset in DATASETS[request.profile]:
        if f"{NAME}/{dataset}" not in options("experiment"):
            reasons.append(f"{dataset}: configs/tuned/{NAME}.yaml does not have it")
            continue
        todo = plan(
            NAME, dataset, request.seeds, request.overrides, where, request.output_dir, rounds
        )
        try:
            measured += [(one, _result(one, say)) for one in todo]
        except DataError as error:
            reasons.append(f"{dataset}: {error}")
    for reason in reasons:
        say(f"left out: {reason}")
    if not measured:
        raise DataError("none of the data sets is available:\n  " + listed(reasons, "\n  "))
    make(measured, request)


def _result(measurement: Measurement, say: Say) -> dict[str, Any]:
    found = measurement.result()
    if found is not None:
        say(f"{measurement.name}: there already ({measurement.file}; remove it to measure again)")
        return found
    say(measurement.name)
    return measurement.run()


def make(measured: Measured, request: Request) -> None:
    """Write the figure's files from finished measurements."""
    device = " and ".join(sorted({in_words(result["origin"]) for _, result in measured}))
    seeds = sorted({one.seed for one, _ in measured})
    caption = (
        f"{device}. Seeds {listed(seeds)}. 1 is Adam at the same weights. Time:"
        " medians and quartiles of pairs of steps. Memory: medians and quartiles over seeds;"
        " without the start (after imports and two steps of both optimizers on a small Neural"
        " ODE, which load library code), 1 is the number of MB shown."
    )
    measurements = [
        {
            "dataset": one.dataset,
            "kind": one.kind,
            "seed": one.seed,
            "function": one.target,
            "arguments": _portable(one.arguments),
            "environment": dict(one.environment),
            "origin": result["origin"],
        }
        for one, result in measured
    ]
    request.publish(
        csv_of(table(measured), digits=6),
        profile=request.profile,
        device=device,
        seeds=seeds,
        caption=caption,
        measurements=measurements,
    )
    redraw(request.folder)


def _portable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without the folder of this machine's data."""
    kept = [item for item in arguments["overrides"] if not item.startswith("data_dir=")]
    return {**arguments, "overrides": kept}


def table(measured: Measured) -> pd.DataFrame:
    """Return the numbers of the figure in long form; see :data:`COLUMNS`."""
    rows: list[tuple[Any, ...]] = []
    for one, result in measured:
        if one.kind == "time":
            samples = result["samples_s"]
            found = [
                ("adam", "step", samples["adam"], "s"),
                ("snopt", "step", samples["snopt"], "s"),
                ("snopt", "refresh_step", samples["snopt_refresh"], "s"),
                ("snopt", "update_freq", [float(result["update_freq"])], "steps"),
            ]
        else:
            optimizer = one.kind.removeprefix("memory-")
            found = [
                (optimizer, "memory", [result["extra_mb"]], "MB"),
                (optimizer, "process_memory", [result["peak_mb"]], "MB"),
            ]
        rows += [
            (one.dataset, optimizer, quantity, one.seed, sample, value, unit)
            for optimizer, quantity, values, unit in found
            for sample, value in enumerate(values)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Row(NamedTuple):
    """One data set: ratios of SNOpt to Adam, seconds of Adam's step and MB of Adam's steps."""

    dataset: str
    update_freq: int
    average: Spread
    refresh: Spread
    adam_s: float
    process_memory: Spread
    memory: Spread
    adam_mb: float


def rows_of(numbers: pd.DataFrame) -> list[Row]:
    """Return the figure's rows, in the order of the numbers."""
    return [_row(str(name), own) for name, own in numbers.groupby("dataset", sort=False)]


def _row(dataset: str, numbers: pd.DataFrame) -> Row:
    groups = dict(list(numbers.groupby(["optimizer", "quantity", "seed"])["value"]))
    seeds = sorted(numbers["seed"].unique())

    def values(optimizer: str, quantity: str) -> list[float]:
        return [float(x) for seed in seeds for x in groups[optimizer, quantity, int(seed)]]

    try:
        (update_freq,) = {int(value) for value in values("snopt", "update_freq")}
        adam, refresh = values("adam", "step"), values("snopt", "refresh_step")
        return Row(
            dataset,
            update_freq,
            average=pair_ratio(averaged(values("snopt", "step"), refresh, update_freq), adam),
            refresh=pair_ratio(refresh, adam),
            adam_s=spread(adam).median,
            process_memory=pair_ratio(
                values("snopt", "process_memory"), values("adam", "process_memory")
            ),
            memory=pair_ratio(values("snopt", "memory"), values("adam", "memory")),
            adam_mb=spread(values("adam", "memory")).median,
        )
    except KeyError as error:
        raise RecordError(f"{dataset} has no measurement {error.args[0]}") from None
    except ValueError as error:
        raise RecordError(f"the measurements of {dataset} do not fit: {error}") from None


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``."""
    rows = rows_of(read_table(folder / "data.csv", COLUMNS))
    line = read_provenance(folder)["caption"]
    picture = draw(rows)
    finish(picture, line, folder / "figure.png", top=1 - 0.5 / picture.get_figheight())


@styled
def draw(rows: Sequence[Row]) -> Picture:
    """Return the figure without its caption."""
    if not rows:
        raise RecordError(f"{NAME}: no data set was measured")
    picture = Picture(figsize=(WIDTH_IN, 2.1 + 0.5 * len(rows)))
    time, memory = picture.subplots(1, 2, width_ratios=(1.25, 1.0))
    _draw_time(time, rows)
    _draw_memory(memory, rows)
    for axes in (time, memory):
        axes.axvline(1.0, color="black", linewidth=1.0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0.0, 1.2 * axes.get_xlim()[1])  # room for the numbers
        axes.grid(visible=False, axis="y")
    picture.legend(loc="upper center", ncols=2, handlelength=1.6, columnspacing=4.0)
    return picture


def _draw_time(axes: Axes, rows: Sequence[Row]) -> None:
    freqs = sorted({row.update_freq for row in rows})
    period = str(freqs[0]) if len(freqs) == 1 else f"{freqs[0]} to {freqs[-1]}"
    average, refresh = [row.average for row in rows], [row.refresh for row in rows]
    _bars(axes, -0.2, average, f"average step (one refresh in {period})", OURS, "")
    _bars(axes, 0.2, refresh, "refresh step", "white", "////")
    axes.set_xlabel("Time of a step (Adam = 1)")
    names = [f"{dataset_name(row.dataset)}\n(1 = {duration(row.adam_s)})" for row in rows]
    axes.set_yticks(range(len(rows)), names)


def _draw_memory(axes: Axes, rows: Sequence[Row]) -> None:
    process, steps = [row.process_memory for row in rows], [row.memory for row in rows]
    _bars(axes, -0.2, process, "peak of the process", "#777777", "")
    _bars(axes, 0.2, steps, "peak without the start", "white", "....")
    axes.set_xlabel("Memory (Adam = 1)")
    axes.set_yticks(range(len(rows)), [f"1 = {row.adam_mb:.3g} MB" for row in rows])


def _bars(
    axes: Axes, shift: float, values: Sequence[Spread], label: str, face: str, hatch: str
) -> None:
    """Draw one bar a row with its quartiles and its number."""
    y = [row + shift for row in range(len(values))]
    axes.barh(
        y,
        [value.median for value in values],
        0.36,
        label=label,
        facecolor=face,
        edgecolor=OURS if face != "#777777" else face,
        hatch=hatch,
    )
    axes.hlines(y, [v.q25 for v in values], [v.q75 for v in values], color="black", linewidth=1.0)
    for at, value in zip(y, values, strict=True):
        end = max(value.median, value.q75)
        number(axes, f"{value.median:.2f}", (end, at), (3, 0), va="center")


FIGURES = (Figure(NAME, reproduce, redraw, tuple(DATASETS)),)
