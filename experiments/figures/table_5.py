"""Table 5: what a trained integration time costs and brings, relative to t1 fixed at 1.0.

One row for each start and mode of figure 9, whose runs these are. Times are those of the training
clock; relative ones are taken seed by seed, then their median. Medians and ranges are over the runs
that did not diverge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
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
from experiments.publish.provenance import caption_of, machine, provenance, write_origin
from experiments.publish.tables import Cells, read_csv, to_csv
from experiments.studies.execute import Say

NAME = "table-5"
PROFILES = DATASETS
COLUMNS = (
    "dataset",
    "mode",
    "start",
    "seed",
    "state",
    "t1",
    "step_ms",
    "last_quarter_step_ms",
    "nfe_step",
    "test_accuracy",
)
"""Header of ``data.csv``, one row a run."""
REFERENCE = ("fixed", 1.0)


@dataclass(frozen=True)
class Entry:
    """One run in numbers.

    Attributes:
        dataset: data set name.
        mode: how t1 was trained.
        start: t1 before training.
        seed: seed of the run.
        state: done or diverged.
        t1: integration time at the end.
        step_ms: mean time of a step, milliseconds.
        last_quarter_step_ms: the same over the last quarter of the steps.
        nfe_step: mean evaluations of the field a step: forward, backward and curvature.
        test_accuracy: accuracy on the test set, a fraction; NaN where the run diverged.
    """

    dataset: str
    mode: str
    start: float
    seed: int
    state: str
    t1: float
    step_ms: float
    last_quarter_step_ms: float
    nfe_step: float
    test_accuracy: float


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
    """Train what is missing, then write the table and the data behind it.

    Args:
        profile: name in :data:`PROFILES`.
        seeds: seeds of every row.
        overrides: changes to every run.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the table goes.
        command: the command that makes the table.
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
    """Write ``data.csv``, ``provenance.json``, ``table.md`` and ``table.tex``.

    Raises:
        RecordError: a file cannot be written, or the runs do not belong together.
    """
    summaries = [run.summary for run in runs]
    entries = [entry_of(run) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_of(entries))
    origin: dict[str, Any] = provenance(NAME, command, summaries, [run.command for run in runs])
    seeds = ", ".join(str(seed) for seed in origin["seeds"])
    origin["profile"] = profile
    origin["caption"] = (
        f"{machine(summaries)}. {TITLES[entries[0].dataset]}, SNOpt, {settings(runs)}. Seeds"
        f" {seeds}: median (range). Relative times and accuracies are to fixed t1 = 1.0, seed by"
        " seed."
    )
    write_origin(folder, origin)
    redraw(folder)


def redraw(folder: Path) -> None:
    """Write ``table.md`` and ``table.tex`` again from ``data.csv`` and ``provenance.json``.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    header, lines = rows(read_entries(folder / "data.csv"))
    caption = caption_of(folder)
    table = [" | ".join(header), " | ".join("---" for _ in header), *map(" | ".join, lines)]
    text = "".join(f"| {line} |\n" for line in table)
    write_whole(folder / "table.md", f"{text}\n{caption}\n")
    write_whole(folder / "table.tex", _latex(header, lines, caption))


def entry_of(run: HorizonRun) -> Entry:
    """Turn a record into numbers.

    Raises:
        RecordError: the run took no step.
    """
    steps = [row for row in run.summary.metrics if "train/loss" in row]
    if not steps:
        raise RecordError(f"{run.summary.name} took no step ({run.summary.folder})")
    last, end = steps[-1], run.summary.metrics[-1]
    quarter = [row for row in steps if row["step"] <= 0.75 * last["step"]] or [
        {"step": 0, "time/train_s": 0.0}
    ]
    # A line holds the mean over the steps since the line before.
    before = [0, *(row["step"] for row in steps[:-1])]
    counts = [row["step"] - start for row, start in zip(steps, before, strict=True)]
    nfe = sum(
        count * (row["nfe/forward"] + row["nfe/backward"] + row["nfe/curvature"])
        for row, count in zip(steps, counts, strict=True)
    )
    return Entry(
        run.summary.dataset,
        run.mode,
        run.start,
        run.seed,
        run.summary.state,
        t1=run.t1(last),
        step_ms=1e3 * last["time/train_s"] / last["step"],
        last_quarter_step_ms=1e3
        * (last["time/train_s"] - quarter[-1]["time/train_s"])
        / max(1, last["step"] - quarter[-1]["step"]),
        nfe_step=nfe / last["step"],
        test_accuracy=float(end.get("test/accuracy", "nan")),
    )


def csv_of(entries: Sequence[Entry]) -> str:
    """Return one row a run; floats to six significant digits."""
    values = ([getattr(entry, column) for column in COLUMNS] for entry in entries)
    return to_csv(
        COLUMNS, ([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in values)
    )


def read_entries(path: Path) -> list[Entry]:
    """Read what :func:`csv_of` wrote.

    Raises:
        RecordError: the file is missing, has another header, or holds something that is no number.
    """
    return read_csv(path, COLUMNS, _entry)


def _entry(cells: Cells) -> Entry:
    row = list(cells.values())
    return Entry(row[0], row[1], float(row[2]), int(row[3]), row[4], *map(float, row[5:]))


def rows(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table.

    Raises:
        RecordError: the reference, t1 fixed at 1.0, is missing or diverged with every seed.
    """
    of = {(e.mode, e.start, e.seed): e for e in entries if e.state == "done"}
    reference = {e.seed: e for e in of.values() if (e.mode, e.start) == REFERENCE}
    if not reference:
        raise RecordError(f"{NAME}: no run with t1 fixed at 1.0 came to its end")
    header = [
        *("start", "t1", "t1 at the end", "NFE / step", "time / step"),
        *("relative", "relative, last quarter", "test accuracy (%)", "difference (points)"),
    ]
    lines = []
    for start in STARTS:
        for mode in MODES:
            every = [e for e in entries if (e.mode, e.start) == (mode, start)]
            done = [e for e in every if e.state == "done"]
            if not every:
                continue
            label = mode if len(done) == len(every) else f"{mode} ({len(done)} of {len(every)})"
            lines.append([f"{start:g}", label, *_cells(done, reference)])
    return header, lines


def _cells(done: Sequence[Entry], reference: dict[int, Entry]) -> list[str]:
    if not done:
        return ["diverged", *["–"] * 6]
    pairs = [(entry, reference[entry.seed]) for entry in done if entry.seed in reference]
    accuracy = [100 * entry.test_accuracy for entry in done]
    return [
        _spread([entry.t1 for entry in done], ".2f"),
        _spread([entry.nfe_step for entry in done], ".0f"),
        f"{median(entry.step_ms for entry in done):.0f} ms",
        _ratio([one.step_ms / other.step_ms for one, other in pairs]),
        _ratio([one.last_quarter_step_ms / other.last_quarter_step_ms for one, other in pairs]),
        _spread(accuracy, ".1f"),
        _difference([100 * (one.test_accuracy - other.test_accuracy) for one, other in pairs]),
    ]


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _ratio(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else "–"


def _difference(values: Sequence[float]) -> str:
    return f"{median(values):+.1f}" if values else "–"


def _latex(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    def escape(text: str) -> str:
        for plain, tex in (("%", r"\%"), ("–", "--"), ("η", r"$\eta$"), ("≥", r"$\geq$")):
            text = text.replace(plain, tex)
        return text

    body = "".join(" & ".join(map(escape, line)) + r" \\" + "\n" for line in lines)
    return (
        f"% {escape(caption)}\n\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}\n\\toprule\n"
        + " & ".join(map(escape, header))
        + " \\\\\n\\midrule\n"
        + body
        + "\\bottomrule\n\\end{tabular}\n"
    )
