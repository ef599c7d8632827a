"""The step figure: rows from what optimizers report, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.figures import step_parts
from experiments.figures.reproduce import reproduce
from experiments.publish.tables import read_table
from snopt.precondition.kronecker import PARTS
from tests.experiments.figures.asking import asked, quiet, write_planned


def test_it_is_made_from_what_the_layers_inside_report(tmp_path: Path) -> None:
    request = asked(tmp_path, "figure-step", seeds=(0, 1))
    plans = step_parts.plan(request)
    assert [runs[0].command.split()[-2] for runs in plans.values()] == ["seed=0", "seed=0"]
    for dataset, runs in plans.items():
        where = "optimizer/" + "ode/" * (dataset == "japanese_vowels")
        names = [f"{where}{layer}/{part}" for layer in ("ode.func.a", "stem.0") for part in PARTS]
        for run in runs:
            rows = [
                {"step": k, "time/train_s": k, "train/loss": 1.0, f"{where}refreshes": 1.0}
                | {name: 0.1 * k + 0.01 * i for i, name in enumerate(names)}
                for k in (1, 2, 3)
            ]
            write_planned(run, rows)
    folder = reproduce(request, quiet)
    table = read_table(folder / "data.csv", step_parts.COLUMNS)
    assert len(table) == 2 * 2 * 3  # data sets, seeds, steps; the layer outside is left out
    assert set(table["layer"]) == {"ode.func.a"}
    assert table[list(PARTS)].iloc[1].tolist() == pytest.approx([0.2, 0.21, 0.22, 0.23])
    assert "Seeds 0, 1" in json.loads((folder / "provenance.json").read_text())["caption"]
    (folder / "figure.png").unlink()
    step_parts.redraw(folder)
    assert (folder / "figure.png").stat().st_size > 10_000
    [(_, runs), *_] = plans.items()
    write = runs[0].folder / "metrics.jsonl"
    write.write_text('{"step": 1, "time/train_s": 1.0, "train/loss": 1.0}\n')
    with pytest.raises(RecordError, match="seed 0 reports no steps"):
        reproduce(request, quiet)
