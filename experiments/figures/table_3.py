"""Table 3: sizes of all data sets, as loaded here, beside what the paper states.

One row a data set: examples of each split, size of an input, classes and steps, all read from the
tensors that a run trains on. Inputs of a time series count its time and its observation channels.
A data set that is not in the data folder is listed as not present, with the paper's numbers in
columns of their own; nothing is downloaded for the table.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.utils import get_method

from experiments.base.errors import ConfigError, DataError
from experiments.base.files import write_whole
from experiments.data.splits import Splits
from experiments.figures.blocks import BLOCKS
from experiments.publish.provenance import git_state, versions, write_origin
from experiments.publish.tables import to_csv
from experiments.run.config import load_config, resolve

NAME = "table-3"
PROFILES = ("embedded", "paper")
ABSENT = "not present"

MORE: dict[str, tuple[tuple[str, str], ...]] = {
    "cnf": (("eight_gaussians", "EightGaussians"), ("checkerboard", "Checkerboard")),
}
"""Data sets of a task that no figure shows: name and title."""

PAPER: dict[str, tuple[str, int | None, int | None]] = {
    "mnist": ("1 × 28 × 28", 10, None),
    "svhn": ("3 × 32 × 32", 10, None),
    "cifar10": ("3 × 32 × 32", 10, None),
    "spoken_arabic_digits": ("27", 10, 93),
    "articulary_word_recognition": ("19", 25, 144),
    "character_trajectories": ("7", 20, 187),
    "circle": ("2", None, None),
    "gas": ("8", None, None),
    "miniboone": ("43", None, None),
}
"""Inputs, classes and steps as the paper states them (Liu, Chen, Theodorou 2021)."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One data set; None where a number does not apply or the data is not present.

    Attributes:
        dataset: name in configurations.
        title: what the table calls it.
        task: task name.
        train: training examples.
        val: validation examples.
        test: test examples.
        inputs: size of an input; of one step for a time series.
        classes: classes.
        steps: steps of the longest series.
        paper_inputs: inputs that the paper states.
        paper_classes: classes that the paper states.
        paper_steps: steps that the paper states.
        source: where the numbers came from, or why there are none.
    """

    dataset: str
    title: str
    task: str
    train: int | None
    val: int | None
    test: int | None
    inputs: str | None
    classes: int | None
    steps: int | None
    paper_inputs: str | None
    paper_classes: int | None
    paper_steps: int | None
    source: str

    @property
    def present(self) -> bool:
        """Whether the data was loaded."""
        return self.train is not None

    @property
    def agrees(self) -> bool | None:
        """Whether the loaded data has the paper's numbers; None where one of them is missing."""
        if not self.present or self.paper_inputs is None:
            return None
        stated = (self.paper_inputs, self.paper_classes, self.paper_steps)
        return (self.inputs, self.classes, self.steps) == stated


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
) -> None:
    """Load every data set that is there and write the table's files.

    Args:
        profile: ``"embedded"``: all data sets; ``"paper"``: those of the paper.
        seeds: not used: splits do not depend on a run's seed.
        overrides: changes to every data set.
        data_dir: where data sets lie.
        output_dir: not used.
        folder: where the table goes: ``table.md``, ``table.tex``, ``data.csv``,
            ``provenance.json``.
        command: the command that makes the table.
        say: prints one line.

    Raises:
        ConfigError: unknown profile or override.
        RecordError: a file cannot be written.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; valid: {', '.join(PROFILES)}")
    rows = []
    for dataset, title, task in listed(profile):
        row = measure(dataset, title, task, data_dir, overrides)
        if not row.present:
            say(f"{dataset}: {ABSENT} ({row.source})")
        elif row.agrees is False:
            say(f"{dataset}: not as in the paper: {row}")
        else:
            say(dataset)
        rows.append(row)
    write(rows, folder, profile=profile, command=command)


def listed(profile: str) -> list[tuple[str, str, str]]:
    """Return name, title and task of the data sets of a profile, by task, each once."""
    wanted = PROFILES if profile == "embedded" else ("paper",)
    found: dict[str, tuple[str, str, str]] = {}
    for block in BLOCKS:
        for name in reversed(wanted):  # the paper's first
            for panel in block.panels[name]:
                found.setdefault(panel.dataset, (panel.dataset, panel.title, block.task))
        if "embedded" in wanted:
            for dataset, title in MORE.get(block.task, ()):
                found.setdefault(dataset, (dataset, title, block.task))
    return list(found.values())


def measure(
    dataset: str, title: str, task: str, data_dir: Path, overrides: Sequence[str] = ()
) -> Row:
    """Load a data set and return its row; one that cannot be loaded says why in ``source``.

    Raises:
        ConfigError: unknown data set or override.
    """
    arguments = [f"task={task}", f"dataset={dataset}", *overrides]
    config = resolve(load_config(arguments))["dataset"]
    if "data_dir" in config and config["data_dir"] is not None:
        config["data_dir"] = str(data_dir)
    if "download" in config:
        config["download"] = False
    stated = PAPER.get(dataset, (None, None, None))
    try:
        load = get_method(config["_target_"])
        data: Splits = load(**{k: v for k, v in config.items() if k not in ("_target_", "task")})
    except DataError as error:
        reason = " ".join(str(error).split()).replace(str(data_dir), "<data_dir>")
        return _row((dataset, title, task), (None,) * 6, stated, reason)
    return _row((dataset, title, task), _numbers(data), stated, data.info.source)


def _row(which: Sequence[str], own: Sequence[Any], stated: Sequence[Any], source: str) -> Row:
    """Put a row together in the order of its fields."""
    values = (*which, *own, *stated, source)
    return Row(**dict(zip((field.name for field in fields(Row)), values, strict=True)))


def _numbers(data: Splits) -> tuple[int, int, int, str, int | None, int | None]:
    sizes, shape = data.sizes(), data.info.input_shape
    steps = None
    if data.info.task == "time_series":
        steps = max(int(tensors[1].max()) for _, tensors in data.items())
        shape = shape[1:]
    inputs = " × ".join(map(str, shape))
    counts = (sizes["train"], sizes["val"], sizes["test"])
    return (*counts, inputs, data.info.num_classes, steps)


def write(rows: Sequence[Row], folder: Path, *, profile: str, command: str) -> None:
    """Write the table's files.

    Raises:
        RecordError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = [field.name for field in fields(Row)]
    write_whole(folder / "data.csv", to_csv(columns, map(astuple, rows)))
    write_whole(folder / "table.md", markdown(rows))
    write_whole(folder / "table.tex", latex(rows))
    present = [row.title for row in rows if row.present]
    origin: dict[str, Any] = {
        "target": NAME,
        "command": command,
        "profile": profile,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "platform": platform.platform(),
        "caption": f"Sizes of the data as loaded. Data: {', '.join(present)}. {NOTE}",
        "sources": {row.dataset: row.source for row in rows},
    }
    write_origin(folder, origin)


NOTE = (
    "Inputs of a time series count its time and its observation channels; steps are those of the "
    "longest series. The last column has the paper's numbers: inputs, classes, steps."
)
HEADER = ("Data set", "Training", "Validation", "Test", "Inputs", "Classes", "Steps", "Paper")


def cells(row: Row) -> list[str]:
    """Return the cells of a row; the last one has the paper's numbers and what differs."""
    if row.present:
        numbers = [f"{n:,}".replace(",", " ") for n in (row.train, row.val, row.test)]
        own = [*numbers, *(_cell(value) for value in (row.inputs, row.classes, row.steps))]
    else:
        own = [ABSENT, *["–"] * 5]
    stated = [value for value in (row.paper_inputs, row.paper_classes, row.paper_steps) if value]
    paper = " / ".join(map(str, stated)) or "–"
    return [row.title, *own, paper + (" (differs)" if row.agrees is False else "")]


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|" + "--:|" * 6 + "---|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + f"\n\n{NOTE}\n"


def latex(rows: Sequence[Row]) -> str:
    r"""Return the table in LaTeX: a ``tabular`` with rules of ``booktabs``."""

    def line(values: Sequence[str]) -> str:
        escaped = [v.replace("×", r"$\times$").replace("–", "--").replace(" ", "~") for v in values]
        return " & ".join([values[0], *escaped[1:]]) + r" \\"

    body = [line(cells(row)) for row in rows]
    start = [f"% {NOTE}", r"\begin{tabular}{lrrrrrrl}", r"\toprule", line(HEADER), r"\midrule"]
    return "\n".join([*start, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"
