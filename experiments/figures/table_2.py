"""Table 2: memory of first-order adjoint, recursion, Theorem 1, Proposition 2, Kronecker factors.

What each has to hold as a formula and in MB, beside the measured peak of a process of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.figures.table_1 import check_request
from experiments.measure.derivatives import BATCH, LIMIT_MB, WAYS, measure_memory, sizes
from experiments.measure.harness import in_words, origin
from experiments.publish.tables import Table, csv_text, write_table

NAME = "table-2"
PROFILES = ("embedded",)
WIDTHS = (8, 32, 128, 512)
COLUMNS = ("way", "width", "z", "theta", "theory_mb", "seed", "measured_mb")

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
    widths: Sequence[int] = WIDTHS,
) -> None:
    """Measure and write the table.

    Args:
        profile: must be ``"embedded"``: there is no data.
        seeds: one process for each.
        overrides: must be empty: nothing is trained from a configuration.
        data_dir: not used.
        output_dir: not used.
        folder: where the table goes.
        command: the command that makes it.
        say: prints one line.
        widths: of the layers, one column of the table each.

    Raises:
        ConfigError: another profile, overrides, or seeds that are not all different.
        RecordError: a measurement failed or a file cannot be written.
    """
    del data_dir, output_dir
    check_request(NAME, profile, seeds, overrides, PROFILES)
    facts = origin(torch.device("cpu"), len(seeds))
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        say(f"{NAME}: {way.label}")
        rows += measure_memory(way, widths, seeds)
    write_table(
        folder,
        as_table(rows),
        csv_text(COLUMNS, rows),
        target=NAME,
        command=command,
        facts={"device": in_words(facts), "seeds": list(seeds), "origin": facts},
    )


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table: theory and median of the measurements by width, in MB."""
    widths = sorted({int(row["width"]) for row in rows})
    header = ["", "entries"]
    for d in widths:
        n, m = sizes(d)
        header += [f"d = {d} (|z| = {n}, |θ| = {m})", "measured"]
    lines = []
    for way in WAYS:
        cells = [way.label, way.formula]
        for d in widths:
            own = [row for row in rows if row["way"] == way.name and int(row["width"]) == d]
            seen = [float(r["measured_mb"]) for r in own if r["measured_mb"] is not None]
            cells.append(_mb(float(own[0]["theory_mb"])))
            cells.append(_mb(statistics.median(seen)) if seen else "–")
        lines.append(cells)
    caption = (
        "MB of 2^20 bytes, float32. Theory: the entries that the way has to hold, z a batch of"
        f" {BATCH} states of size d, F two linear layers d → d with tanh, θ their weights and"
        " biases, a and b inputs (with the bias) and outputs of a layer. Measured: peak of the"
        " resident memory of a process of its own less that at its start, after a run on a tiny"
        " system; medians over seeds, resolution about 0.3 MB. dopri5 keeps a copy of what it"
        " integrates for each of its 7 stages and some 10 more (states, error, products). Of the"
        " adjoint of the adjoint two rows were run beside the whole matrix. The Kronecker row"
        f" includes eigenbases and second moment. –: not run, above {LIMIT_MB:g} MB in theory."
    )
    return Table(header, lines, caption, text_columns=2)


def _mb(value: float) -> str:
    if value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
