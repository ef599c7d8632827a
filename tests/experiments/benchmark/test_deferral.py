"""``deferral.json``: the two ways agree, and a workload with rejections is one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.benchmark import deferral
from snopt import path_integral
from tests.experiments.benchmark.tiny import CPU, SHAPES

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


def test_the_original_is_put_back() -> None:
    original = path_integral._BackwardSolve
    with deferral.deferred():
        assert path_integral._BackwardSolve is deferral.DeferredSolve
    assert path_integral._BackwardSolve is original
