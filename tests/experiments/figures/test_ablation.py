"""The ablation: times to a target worked out by hand, and variants that can be built."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import ablation
from experiments.figures.ablation import COLUMNS, Ablation, score
from experiments.figures.reproduce import reproduce
from experiments.run.build import build
from experiments.run.config import load_config, resolve
from experiments.run.records import Summary
from tests.experiments.figures.asking import asked, quiet


def run(values: list[float], *, seed: int = 0, metric: str = "accuracy") -> Summary:
    rows: list[dict[str, Any]] = [
        {"step": 10 * k, "time/train_s": 2.0 * k, f"val/{metric}": v} for k, v in enumerate(values)
    ]
    rows.append({"step": 10 * len(values), "time/train_s": 2.0 * len(values), "test/accuracy": 0.0})
    return Summary(Path("x"), "image", "digits", "adam", "0", seed, {"state": "done"}, tuple(rows))


def variants_of(dataset: str) -> dict[str, Any]:
    request = asked(Path("nowhere"), "ablation", seeds=(0,))
    plans = Ablation.load().variant_runs(request, dataset, 0.5)
    return {name: run for name, (run,) in plans.items()}


def entries(times: dict[str, tuple[float, ...]], *datasets: str) -> pd.DataFrame:
    rows = [
        (dataset, name, seed, 0.9, seconds, 0.9, "done", 9.0, 100)
        for dataset in datasets
        for name, of_seeds in times.items()
        for seed, seconds in enumerate(of_seeds)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_a_run_is_scored():
    found = score(run([0.1, 0.9], seed=2), "SNOpt", 0.8, "accuracy")
    assert tuple(found) == tuple(COLUMNS)
    assert tuple(found.values()) == ("digits", "SNOpt", 2, 0.8, 2.0, 0.9, "done", 4.0, 20)


def test_a_miss_is_infinite_and_stays_in_the_median():
    times = {
        "adam": (4.0, 6.0, 5.0),
        "SNOpt": (math.inf, 2.0, math.inf),
        "snopt_plus": (2.0, math.inf, 3.0),
    }
    text = ablation.table(entries(times, "digits")).markdown()
    assert "| target | 90.0 % |" in text
    assert "| Adam, tuned | 5.0 s, 1.00× (3 of 3) |" in text
    assert "| SNOpt | missed (1 of 3) |" in text
    assert "| snopt_plus | 3.0 s, 0.60× (2 of 3) |" in text


@pytest.mark.parametrize("dataset", ["digits", "japanese_vowels", "circle"])
def test_every_variant_is_a_valid_run_of_its_own_and_builds_its_optimizer(dataset):
    plans = variants_of(dataset)
    assert len(plans) >= 15
    base = {name: plans[name].folder for name in ("SNOpt", "snopt_plus")}
    others = [run.folder for name, run in plans.items() if name not in base]
    # A change to what a data set's tuned settings say already is no change: one run serves both.
    changed = [folder for folder in others if folder not in base.values()]
    assert len(set(changed)) == len(changed) >= 13
    seen = set()
    for name, run in plans.items():
        parts = build(resolve(load_config(run.overrides)), torch.device("cpu"))
        optimizer = getattr(parts.optimizer, "ode", parts.optimizer)
        seen.add((name, optimizer.curvature_type, optimizer.param_groups[0]["exponent"]))
    kinds = {curvature for _, curvature, _ in seen}
    assert kinds == ({"empirical"} if dataset == "circle" else {"empirical", "mc", "ggn"})
    assert ("snopt_plus", "empirical", 0.5) in seen
    assert ("− momentum before", "empirical", 0.5) in seen


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no description of an ablation"):
        Ablation.load(tmp_path / "missing.yaml")
    request = asked(tmp_path, "ablation", overrides=["mnist"])
    with pytest.raises(ConfigError, match="names of data sets, digits, japanese_vowels, circle"):
        reproduce(request, quiet)
    with pytest.raises(RecordError, match=r"the ablation stops, 2 of 2 runs failed:\n  circle"):
        reproduce(replace(request, overrides=["circle"], seeds=(0,)), quiet)
