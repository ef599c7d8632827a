"""Factor figure: A_ℓ(t) and B_ℓ(t) along the path, and how many nodes their integrals need.

Two rows before and after training: trace, largest eigenvalue, distance to the time mean. Last row:
error of the integrals against the number of nodes, for the ReLU field and for the same weights with
tanh, and the training time to a target. The first parts do not depend on the machine; the last one
is a measurement of time. Everything is drawn from ``data.csv`` alone, see
:mod:`experiments.figures.factor_panels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from experiments.base.files import write_whole
from experiments.figures.factor_panels import ALONG, COLUMNS, NODES, TIME, draw
from experiments.figures.node_runs import TARGET, NodeRun, obtain, plan
from experiments.measure.path_factors import Settings, along_path, node_errors, smooth
from experiments.measure.snapshots import EXPERIMENT, snapshots
from experiments.publish.provenance import caption_of, devices, machine
from experiments.publish.style import RC, finish
from experiments.publish.tables import check_request, csv_text, read, write_provenance

NAME = "figure-factors"
PROFILES = ("embedded",)

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
    settings: Settings | None = None,
    timed: bool = True,
    train: Sequence[str] | None = None,
) -> None:
    """Measure, train what is missing, then write ``data.csv``, ``provenance.json``, ``figure.png``.

    Args:
        profile: ``"embedded"``, the only one.
        seeds: of weights and batches.
        overrides: changes to the training configuration.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        folder: where the figure goes.
        command: the command that makes it.
        say: prints one line.
        settings: what is measured along the path; None means all of it.
        timed: whether to make the runs of the last panel; without, it stays empty.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: another profile or a wrong override, or seeds that are not all different.
        RecordError: runs failed.
    """
    check_request(NAME, profile, PROFILES, seeds)
    chosen = settings or Settings()
    wanted = plan(seeds, overrides, data_dir, output_dir) if timed else []
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        taken = snapshots(
            *(seed, chosen.states, chosen.samples), overrides=overrides, data_dir=data_dir
        )
        for snapshot in taken:
            say(f"{NAME}: factors along the path, seed {seed}, step {snapshot.step}")
            rows += long(ALONG, along_path(snapshot, chosen), ("trace", "top", "distance"))
        trained = taken[-1].double()
        for field, snapshot in (("relu", trained), ("tanh", smooth(trained))):
            say(f"{NAME}: errors of quadratures, seed {seed}, {field}")
            rows += long(NODES, node_errors(snapshot, field, chosen), ("error",))
    runs = obtain(wanted, say, train)
    rows += long(TIME, (run.row() for run in runs), ("seconds", "steps"))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.csv", csv_text(COLUMNS, rows))
    write_provenance(folder, NAME, command, _facts(seeds, overrides, chosen, runs))
    redraw(folder)


def long(
    panel: str, rows: Iterable[Mapping[str, Any]], quantities: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row of ``data.csv`` for each quantity of each row."""
    found = []
    for row in rows:
        keys = {name: row.get(name) for name in COLUMNS[1:-2]}
        found += [
            {"panel": panel, **keys, "quantity": name, "value": row[name]} for name in quantities
        ]
    return found


def _facts(
    seeds: Sequence[int], overrides: Sequence[str], settings: Settings, runs: Sequence[NodeRun]
) -> dict[str, Any]:
    device = devices([{"device": "cpu", "threads": torch.get_num_threads()}])
    where = machine([run.summary for run in runs]) if runs else device
    timed = (
        f" Time to {100 * TARGET:g} % validation accuracy on {where}: medians, dots are seeds, ×"
        " missed it."
    )
    return {
        "device": device,
        "seeds": list(seeds),
        "experiment": EXPERIMENT,
        "overrides": list(overrides),
        "settings": settings.facts(),
        "caption": (
            f"{device}. Digits, {settings.samples} images, SNOpt with tuned settings, empirical"
            f" curvature. Seeds {', '.join(map(str, seeds))}: medians and ranges. Distances and"
            " errors relative, in the Frobenius norm; errors of the worse layer after training,"
            " against many nodes on the same solve (tolerance 1e-3; for the rule of step ends"
            " 1e-2 to 1e-5). Grey: error of the solve itself." + (timed if runs else "")
        ),
        "runs": [run.entry() for run in runs],
    }


def redraw(folder: Path) -> None:
    """Draw ``figure.png`` again from ``data.csv`` and the caption in ``provenance.json``.

    Raises:
        RecordError: ``data.csv`` is missing or damaged.
    """
    table = read(folder, COLUMNS)
    line = caption_of(folder)
    with mpl.rc_context(RC):
        figure = draw(table)
        finish(figure, line, folder / "figure.png", top=1 - 0.52 / figure.get_figheight())
