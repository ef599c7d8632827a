"""``deferral.json``: the two ways agree, and a workload with rejections is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from experiments.measure import deferral, plot_deferral, store
from snopt.solve import backward_engine
from tests.experiments.measure.synthetic import ORIGIN
from tests.experiments.measure.tiny import CPU, SHAPES

WORKLOADS = {workload.name: workload for workload in deferral.WORKLOADS}


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_both_ways_give_the_same_gradient(name: str) -> None:
    shape = SHAPES[name.partition("_")[0]]
    tiny = replace(WORKLOADS[name], shape=shape, repeat_factor=1)
    entry = deferral.measure_deferral(tiny, CPU, 1)
    json.dumps(entry, allow_nan=False)
    assert entry["gradient_difference"] < 1e-5
    assert 0 < entry["accepted"] <= entry["attempts"]
    assert entry["rounds"] == 1
    if "pulsed" in name:
        assert entry["rejected_share"] > 0
    assert "attempts rejected" in deferral.headline(entry)


def test_it_has_its_picture(tmp_path: Path) -> None:
    linear = replace(WORKLOADS["linear"], shape=SHAPES["linear"], repeat_factor=1)
    entry = deferral.measure_deferral(linear, CPU, 1)
    for name in ("linear", "linear_pulsed"):
        store.save(tmp_path, "deferral", name, {"origin": ORIGIN, **entry})
    plot_deferral.draw(tmp_path)
    with Image.open(tmp_path / "deferral.png") as picture:
        assert min(picture.size) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deferral.json", "deferral.png"]


def test_the_original_is_put_back() -> None:
    original = backward_engine._BackwardSolve
    with deferral.deferred():
        assert backward_engine._BackwardSolve is deferral.DeferredSolve
    assert backward_engine._BackwardSolve is original
