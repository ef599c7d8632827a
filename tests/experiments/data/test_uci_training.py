"""Data put into the data folder by hand, in the UCI originals' form, trains as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from uci_files import make_strokes, write_digits, write_strokes

from experiments.data import uci
from experiments.run.config import load_config
from experiments.run.records import Record
from experiments.run.run import run

EULER = ["solver=rk4", "solver.method=euler", "solver.gradient=direct"]


@pytest.mark.parametrize("dataset", ["spoken_arabic_digits", "character_trajectories"])
def test_two_steps(tmp_path: Path, dataset: str) -> None:
    data_dir = tmp_path / "data"
    if dataset == "spoken_arabic_digits":
        # As many series as published: 660 and 220 for each digit.
        write_digits(data_dir / "uci" / "SpokenArabicDigits", 660, 220)
    else:
        write_strokes(data_dir / "uci" / "CharacterTrajectories" / uci.MAT, make_strokes(400))
    config = load_config(
        [
            *("task=time_series", f"dataset={dataset}", "optimizer=snopt_ode", "tracking=none"),
            *("trainer.batch_size=32", "trainer.max_steps=2", "trainer.epochs=null"),
            *("trainer.eval_every=1000", *EULER, "solver.options.step_size=1.0"),
            *(f"data_dir={data_dir}", f"output_dir={tmp_path / 'out'}", "device=cpu"),
        ]
    )
    result = run(config)
    assert result.state == "done"
    rows = [row for row in Record(result.folder).rows() if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["train/loss"] < 20 for row in rows)
