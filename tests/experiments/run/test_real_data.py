"""The published data sets train with every optimizer: a few steps lower the training loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.run.config import load_config
from experiments.run.records import Record
from experiments.run.run import run

DATA = Path(
    os.environ.get("SNOPT_DATA_DIR", Path(__file__).resolve().parents[3] / ".." / "shared" / "data")
)

# Euler steps and small nets, so that a step takes milliseconds.
EULER = ["solver=rk4", "solver.method=euler", "solver.gradient=direct"]
CASES = {
    "mnist": [
        "task=image",
        "dataset=mnist",
        "dataset.limit_train=256",
        "dataset.val_size=64",
        "model=conv_ode_small",
        "trainer.batch_size=32",
        "trainer.max_steps=120",
        *EULER,
        "solver.options.step_size=0.5",
    ],
    "articulary_word_recognition": [
        "task=time_series",
        "dataset=articulary_word_recognition",
        "trainer.batch_size=64",
        "trainer.max_steps=20",
        *EULER,
        "solver.options.step_size=1.0",
    ],
}
FILES = {"mnist": "mnist", "articulary_word_recognition": "uea/ArticularyWordRecognition"}
RATES = {
    ("mnist", "adam"): 0.003,
    ("mnist", "sgd"): 0.1,
    ("mnist", "snopt"): 0.05,
    ("articulary_word_recognition", "adam"): 0.01,
    ("articulary_word_recognition", "sgd"): 0.02,
    ("articulary_word_recognition", "snopt"): 0.02,
}


@pytest.mark.parametrize(("dataset", "optimizer"), RATES)
def test_a_few_steps_lower_the_loss(tmp_path, dataset, optimizer):
    if not (DATA / FILES[dataset]).is_dir():
        pytest.skip(f"{DATA / FILES[dataset]} is absent; set SNOPT_DATA_DIR to where it lies")
    config = load_config(
        [
            *CASES[dataset],
            f"optimizer={optimizer}",
            f"optimizer.lr={RATES[dataset, optimizer]}",
            f"data_dir={DATA}",
            f"output_dir={tmp_path}",
            "dataset.download=false",
            "tracking=none",
            "trainer.epochs=null",
            "trainer.eval_every=1000",
        ]
    )
    result = run(config)
    assert result.state == "done"
    losses = [row["train/loss"] for row in Record(result.folder).rows() if "train/loss" in row]
    assert sum(losses[-5:]) < 0.96 * sum(losses[:5])
