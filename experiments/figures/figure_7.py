"""Figure 7: runtime per step and peak memory of SNOpt relative to Adam, over all data sets.

One row a data set. Runtime: medians and quartiles over pairs of steps that were taken right after
one another, of the average step (one refresh in ``update_freq`` steps) and of the refresh step
alone. Memory: of the whole process, and without what it held at the start, before any step. Both
optimizers take their steps at the same weights.
The figure is drawn from ``data.csv`` alone; :mod:`experiments.measure.step_cost` measures.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.base.errors import ConfigError, DataError, RecordError
from experiments.base.files import write_whole
from experiments.figures.figure_1 import Panel
from experiments.figures.relative_cost import Row, csv_of, read_table, rows, table
from experiments.measure.harness import Spread, in_words
from experiments.measure.pictures import OURS, duration
from experiments.measure.step_cost import ROUNDS, Measurement, plan
from experiments.publish.provenance import caption_of, git_state, processor, versions, write_origin
from experiments.publish.style import RC, WIDTH_IN, finish
from experiments.run.config import options

NAME = "figure-7"
PROFILES: dict[str, tuple[Panel, ...]] = {
    "embedded": (
        Panel("digits", "Digits"),
        Panel("japanese_vowels", "JapaneseVowels"),
        Panel("basic_motions", "BasicMotions"),
        Panel("circle", "Circle"),
    ),
    "paper": (
        Panel("mnist", "MNIST"),
        Panel("svhn", "SVHN"),
        Panel("cifar10", "CIFAR-10"),
        Panel("character_trajectories", "CharacterTrajectories"),
        Panel("articulary_word_recognition", "ArticularyWordRecognition"),
        Panel("spoken_arabic_digits", "SpokenArabicDigits"),
        Panel("circle", "Circle"),
        Panel("gas", "GAS"),
        Panel("miniboone", "MINIBOONE"),
    ),
}
"""What each profile shows; data sets that are not there are left out."""

Say = Callable[[str], None]


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
    rounds: int = ROUNDS,
) -> None:
    """Measure what is missing, then write ``data.csv``, ``provenance.json`` and ``figure.png``.

    Args:
        profile: name in :data:`PROFILES`.
        seeds: of weights and batches.
        overrides: changes to every run.
        data_dir: where data sets lie.
        output_dir: where measurements lie, or will.
        folder: where the figure goes.
        command: the command that makes the figure.
        say: prints one line.
        rounds: interleaved rounds of a timing.

    Raises:
        ConfigError: unknown profile or override, or seeds that are not all different.
        DataError: no data set is available.
        RecordError: a measurement failed.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; valid: {', '.join(PROFILES)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")
    where = [f"data_dir={data_dir.absolute()}"]
    measured: list[tuple[Measurement, dict[str, Any]]] = []
    reasons = []
    for panel in PROFILES[profile]:
        if f"{NAME}/{panel.dataset}" not in options("experiment"):
            reasons.append(f"{panel.dataset}: configs/tuned/{NAME}.yaml does not have it")
            continue
        todo = plan(NAME, panel.dataset, seeds, overrides, where, output_dir, rounds)
        try:
            measured += [(one, _result(one, say)) for one in todo]
        except DataError as error:
            reasons.append(f"{panel.dataset}: {error}")
    for reason in reasons:
        say(f"left out: {reason}")
    if not measured:
        raise DataError("none of the data sets is available:\n  " + "\n  ".join(reasons))
    make(measured, folder, profile=profile, command=command)


def _result(measurement: Measurement, say: Say) -> dict[str, Any]:
    found = measurement.result()
    if found is not None:
        say(f"{measurement.name}: there already ({measurement.file}; remove it to measure again)")
        return found
    say(measurement.name)
    return measurement.run()


def make(
    measured: Sequence[tuple[Measurement, Mapping[str, Any]]],
    folder: Path,
    *,
    profile: str,
    command: str,
) -> None:
    """Write the figure's three files from finished measurements.

    Raises:
        RecordError: a file cannot be written, or a data set lacks a measurement.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_of(table(measured)))
    origins = [result["origin"] for _, result in measured]
    devices = " and ".join(sorted({in_words(origin) for origin in origins}))
    seeds = sorted({one.seed for one, _ in measured})
    origin = {
        "target": NAME,
        "command": command,
        "profile": profile,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "processor": processor(),
        "device": devices,
        "platform": platform.platform(),
        "seeds": seeds,
        "caption": (
            f"{devices}. Seeds {', '.join(map(str, seeds))}. 1 is Adam at the same weights. Time:"
            " medians and quartiles of pairs of steps. Memory: medians and quartiles over seeds;"
            " without the start (after imports and two steps of both optimizers on a small Neural"
            " ODE, which load library code), 1 is the number of MB shown."
        ),
        "measurements": [
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
        ],
    }
    write_origin(folder, origin)
    redraw(folder)


def _portable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without the folder of the data, which is this machine's own."""
    kept = [item for item in arguments["overrides"] if not item.startswith("data_dir=")]
    return {**arguments, "overrides": kept}


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    found = rows(read_table(folder / "data.csv"))
    line = caption_of(folder)
    with mpl.rc_context(RC):
        figure = draw(found)
        finish(figure, line, folder / "figure.png", top=1 - 0.5 / figure.get_figheight())


def draw(found: Sequence[Row]) -> Figure:
    """Return the figure without its caption; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there is no row.
    """
    if not found:
        raise RecordError(f"{NAME}: no data set was measured")
    titles = {panel.dataset: panel.title for panels in PROFILES.values() for panel in panels}
    figure = Figure(figsize=(WIDTH_IN, 2.1 + 0.5 * len(found)))
    time, memory = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    _draw_time(time, found)
    _draw_memory(memory, found)
    time.set_yticks(
        range(len(found)),
        [f"{titles.get(r.dataset, r.dataset)}\n(1 = {duration(r.adam_s)})" for r in found],
    )
    memory.set_yticks(range(len(found)), [f"1 = {row.adam_mb:.3g} MB" for row in found])
    for axes in (time, memory):
        axes.axvline(1.0, color="black", linewidth=1.0)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0.0, 1.2 * axes.get_xlim()[1])  # room for the numbers
        axes.grid(visible=False, axis="y")
    figure.legend(loc="upper center", ncols=2, handlelength=1.6, columnspacing=4.0)
    return figure


def _draw_time(axes: Axes, found: Sequence[Row]) -> None:
    freqs = sorted({row.update_freq for row in found})
    period = str(freqs[0]) if len(freqs) == 1 else f"{freqs[0]} to {freqs[-1]}"
    average, refresh = [row.average for row in found], [row.refresh for row in found]
    _bars(axes, -0.2, average, f"average step (one refresh in {period})", OURS, "")
    _bars(axes, 0.2, refresh, "refresh step", "white", "////")
    axes.set_xlabel("Time of a step (Adam = 1)")


def _draw_memory(axes: Axes, found: Sequence[Row]) -> None:
    process, steps = [row.process_memory for row in found], [row.memory for row in found]
    _bars(axes, -0.2, process, "peak of the process", "#777777", "")
    _bars(axes, 0.2, steps, "peak without the start", "white", "....")
    axes.set_xlabel("Memory (Adam = 1)")


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
        axes.annotate(
            *(f"{value.median:.2f}", (max(value.median, value.q75), at), (3, 0)),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
