"""The ablation of SNOpt's options: training time to a target that tuned SGD and Adam set.

One column a data set, one row a variant; a dot is a seed, a bar the median. Everything is drawn
from ``data.csv`` alone. :mod:`experiments.figures.ablation_runs` trains.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures.ablation_runs import Ablation, Entry, run_ablation
from experiments.publish.provenance import caption_of, machine, provenance, write_origin
from experiments.publish.style import RC, WIDTH_IN
from experiments.publish.tables import Cells, read_csv, to_csv
from experiments.studies.execute import Say

NAME = "ablation"
PROFILES = ("embedded",)
TITLES = {"digits": "Digits", "japanese_vowels": "JapaneseVowels", "circle": "Circle"}
SETTERS = {"adam": "Adam, tuned", "sgd": "SGD, tuned"}
COLUMNS = tuple(field.name for field in fields(Entry))
REFERENCE = "adam"


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
) -> None:
    """Train what is missing, then write ``data.csv``, ``table.md``, ``figure.png``, provenance.

    Args:
        profile: ``"embedded"``, the only one.
        seeds: seeds of every run.
        overrides: names of data sets to leave the others out; empty means all.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the results go.
        command: the command that makes them.
        say: prints one line.
        jobs: runs at a time.

    Raises:
        ConfigError: the profile or a data set is unknown.
        RecordError: a run failed.
    """
    ablation = Ablation.load()
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; {NAME} has {', '.join(PROFILES)}")
    unknown = [name for name in overrides if name not in ablation.datasets]
    if unknown:
        raise ConfigError(
            f"{NAME} takes names of data sets, {', '.join(ablation.datasets)}; got {unknown[0]!r}"
        )
    entries, used = run_ablation(
        ablation,
        seeds,
        data_dir=data_dir,
        output_dir=output_dir,
        jobs=jobs,
        say=say,
        datasets=overrides,
    )
    runs, commands = [run for run, _ in used], [line for _, line in used]
    origin = {
        **provenance(NAME, command, runs, commands),
        "caption": _caption(entries, machine(runs), jobs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", to_csv(COLUMNS, map(astuple, entries)))
    write_origin(folder, origin)
    redraw(folder)


def redraw(folder: Path) -> None:
    """Write ``table.md`` and ``figure.png`` again from ``data.csv`` and the caption.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    entries = read_entries(folder / "data.csv")
    line = caption_of(folder)
    write_whole(folder / "table.md", table(entries) + f"\n{line}\n")
    with mpl.rc_context(RC):
        draw(entries, line).savefig(folder / "figure.png", metadata={"Software": None})


def read_entries(path: Path) -> list[Entry]:
    """Read ``data.csv``.

    Raises:
        RecordError: the file is missing or damaged.
    """
    return read_csv(path, COLUMNS, _entry)


def _entry(row: Cells) -> Entry:
    return Entry(
        dataset=row["dataset"],
        variant=row["variant"],
        seed=int(row["seed"]),
        target=float(row["target"]),
        seconds=float(row["seconds"]),
        best=float(row["best"]),
        state=row["state"],
        trained=float(row["trained"]),
        steps=int(row["steps"]),
    )


def medians(entries: Sequence[Entry]) -> dict[tuple[str, str], float]:
    """Return the median time by (data set, variant); a run that missed counts as infinite."""
    groups: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        groups.setdefault((entry.dataset, entry.variant), []).append(entry.seconds)
    return {key: median(values) for key, values in groups.items()}


def table(entries: Sequence[Entry]) -> str:
    """Return the table in Markdown: medians, how many reached the target, ratio to Adam."""
    datasets = list(dict.fromkeys(entry.dataset for entry in entries))
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    found = medians(entries)
    lines = ["| | " + " | ".join(TITLES.get(name, name) for name in datasets) + " |"]
    lines.append("|---|" + "---|" * len(datasets))
    goals = {entry.dataset: entry.target for entry in entries}
    lines.append("| target | " + " | ".join(_goal(goals[name]) for name in datasets) + " |")
    for variant in variants:
        cells = [_cell(entries, found, dataset, variant) for dataset in datasets]
        lines.append(f"| {SETTERS.get(variant, variant)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _goal(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3f} nats"


def _cell(
    entries: Sequence[Entry],
    found: Mapping[tuple[str, str], float],
    dataset: str,
    variant: str,
) -> str:
    own = [e for e in entries if (e.dataset, e.variant) == (dataset, variant)]
    if not own:
        return "–"
    hits = sum(math.isfinite(entry.seconds) for entry in own)
    count = f"{hits} of {len(own)}"
    time, reference = found[dataset, variant], found.get((dataset, REFERENCE), math.inf)
    if not math.isfinite(time):
        return f"missed ({count})"
    ratio = f", {time / reference:.2f}×" if math.isfinite(reference) else ""
    return f"{time:.1f} s{ratio} ({count})"


def draw(entries: Sequence[Entry], line: str = "") -> Figure:
    """Return the figure; call it within ``matplotlib.rc_context(RC)``.

    Raises:
        RecordError: there is no entry.
    """
    if not entries:
        raise RecordError(f"{NAME}: there are no runs")
    datasets = list(dict.fromkeys(entry.dataset for entry in entries))
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    lines = textwrap.wrap(line, width=int(15.5 * WIDTH_IN))
    height = 1.0 + 0.21 * len(variants) + 0.14 * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height))
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for panel, dataset in zip(axes, datasets, strict=True):
        _panel(panel, [e for e in entries if e.dataset == dataset], variants)
        panel.set_title(TITLES.get(dataset, dataset))
        panel.set_xlabel("Seconds to target")
    axes[0].set_yticks(range(len(variants)), [SETTERS.get(v, v) for v in variants])
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.text(0.5, 0.008, "\n".join(lines), ha="center", va="bottom", fontsize=8)
    figure.tight_layout(rect=(0.0, (0.05 + 0.14 * len(lines)) / height, 1.0, 1.0))
    return figure


def _panel(axes: Axes, entries: Sequence[Entry], variants: Sequence[str]) -> None:
    finite = [entry.seconds for entry in entries if math.isfinite(entry.seconds)]
    edge = 1.18 * max(finite, default=1.0)  # where a miss is drawn
    found = medians(entries)
    for entry in entries:
        row = variants.index(entry.variant)
        if math.isfinite(entry.seconds):
            axes.plot(entry.seconds, row, "o", color="#444444", markersize=3.5, zorder=3)
        else:
            shift = 0.18 * (entry.seed % 3 - 1)
            axes.plot(edge, row + shift, "x", color="#8C1C4A", markersize=4, zorder=3)
    for (_, variant), time in found.items():
        if math.isfinite(time):
            face = "#8C1C4A" if variant in ("SNOpt", "snopt_plus") else "#BBBBBB"
            axes.barh(variants.index(variant), time, 0.6, color=face, zorder=2)
    reference = found.get((entries[0].dataset, REFERENCE), math.inf)
    if math.isfinite(reference):
        axes.axvline(reference, color="#1F78B4", linestyle=(0, (5, 1.5)), linewidth=1.0, zorder=1)
    axes.set_xlim(0.0, 1.08 * edge)
    axes.grid(visible=False, axis="y")


def _caption(entries: Sequence[Entry], device: str, jobs: int) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({entry.seed for entry in entries}))
    together = "" if jobs == 1 else f", {jobs} runs at a time"
    return (
        f"{device}{together}. Seeds {seeds}: bars are medians, dots seeds, a cross a run that"
        " missed the target, the median of the best validation values of tuned Adam and SGD with"
        " half as many steps again. Dashed line: tuned Adam. + and −: one change to tuned SNOpt or"
        " snopt_plus, not tuned again."
    )
