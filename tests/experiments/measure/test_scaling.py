"""The model of N ranks by hand, a tiny measurement on two ranks, the tables, the documentation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from experiments.base.environment import REPOSITORY
from experiments.measure import scaling
from experiments.measure.harness import entries, origin, save
from experiments.measure.scaling import Compute, Link, efficiency, volume
from experiments.measure.workloads import TRAINING
from snopt import SNOpt
from tests.experiments.measure.tiny import CPU, ONCE

DOCS = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
BY_NAME = {workload.name: workload for workload in TRAINING}


def test_volume_by_hand_and_as_the_optimizer_has_it():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Conv2d(4, 6, 1, groups=2))
    shapes = [(1, 2, 4), (2, 3, 3)]  # the bias is a column
    sent = volume(sum(p.numel() for p in net.parameters()), shapes)
    assert sent.gradients == 4 * (8 + 18)
    assert sent.factors == 4 * (4 + 16 + 2 * (9 + 9))
    assert sent.bases == sent.factors + 4 * (2 + 4 + 2 * (3 + 3))
    assert sorted(sent.costs) == [8.0, 54.0, 54.0, 64.0]
    assert sent.largest_share(1) == 1
    assert sent.largest_share(2) == pytest.approx(108 / 180)
    assert sent.largest_share(50) == pytest.approx(64 / 180)
    linear = torch.nn.Linear(3, 2)
    optimizer = SNOpt(linear)
    linear(torch.randn(5, 3)).pow(2).mean().backward()
    optimizer.step()
    assert [state.shape for state in optimizer.curvature.values()] == [shapes[0]]


def test_efficiency_by_hand():
    sent = volume(250, [(1, 2, 2)])  # 1000 bytes of gradients, 32 of factors, 48 of bases
    link = Link(1000.0, 0.01)
    assert link.ring(1000, 2) == pytest.approx(2 * (0.5 + 0.01))
    assert link.relay(48, 4) == pytest.approx(3 * (0.012 + 0.01))
    compute = Compute(step=1.0, collect=0.5, decompose=2.0)
    alone = 1.0 + 2.5 / 10
    refresh = 0.5 + 2 * (0.016 + 0.01) + 2.0 * 0.5 + (0.024 + 0.01)
    together = 1.0 + 1.02 + refresh / 10
    assert efficiency(compute, sent, link, 2, update_freq=10) == pytest.approx(alone / together)
    assert efficiency(compute, sent, link, 1, update_freq=10) == pytest.approx(1.0)


@pytest.mark.slow
def test_a_tiny_measurement_and_its_tables(tmp_path):
    # the processes look the workload up by name: only their number of rows can be small
    small = replace(BY_NAME["digits"], shape={**BY_NAME["digits"].shape, "batch": 4})
    entry = {"origin": origin(CPU, 1), **scaling.measure_scaling(small, ONCE)}
    assert set(entry["runs"]["one"]["seconds"]) == {"ordinary", "refresh", "bases"}
    for way, rows in (("strong", 2), ("weak", 4)):
        run = entry["runs"][way]
        assert (run["ranks"], run["rows"]) == (2, rows)
        parts = {"ordinary", "refresh", "gradients", "factors", "bases"}
        assert set(run["seconds"]) == parts
    save(tmp_path, "scaling", "digits", entry)
    text = scaling.write_tables(tmp_path)[0].read_text()
    assert "| digits net | 2 × 2 |" in text
    assert "| digits net | 10 Gbit/s |" in text
    assert "1 × 4: ordinary 100 %, refresh 100 %" in scaling.headline(entry)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_volumes_in_the_documentation(name):
    case = replace(BY_NAME[name], shape={**BY_NAME[name].shape, "batch": 1}).build(CPU)
    optimizer = SNOpt(case.model)
    case.loss().backward()
    optimizer.step()
    parameters = sum(p.numel() for p in case.model.parameters())
    sent = volume(parameters, [state.shape for state in optimizer.curvature.values()])
    title = "digits net (width 16)" if name == "digits" else "MNIST net (width 64)"
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| {title}"))
    cells = [cell.strip().removesuffix(" MB").replace(" ", "") for cell in row.split("|")[2:-1]]
    average = sent.gradients + (sent.factors + sent.bases) / 100
    expected = [sent.gradients, sent.factors, sent.bases, average]
    assert int(cells[0]) == parameters
    for cell, size in zip(cells[1:], expected, strict=True):
        assert float(cell) == pytest.approx(size / 1e6, rel=0.02)
    assert sent.largest_share(4) == pytest.approx({"digits": 0.50, "mnist": 0.42}[name], abs=0.005)


def test_the_documented_numbers_are_those_of_the_measurement():
    measured = entries(REPOSITORY / "results" / "benchmarks", "scaling")
    section = DOCS.partition("## Two processes, measured")[2].partition("\n## ")[0]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines()]
    found = {row[0]: row[1:] for row in rows if row and row[0].endswith(" net")}
    kinds = ("ordinary", "refresh")
    for workload in measured.values():
        one, strong, weak = (
            {kind: workload["runs"][name]["seconds"][kind]["median"] for kind in kinds}
            for name in ("one", "strong", "weak")
        )
        ordinary, refresh = (f"{one[kind] / strong[kind]:.2f} ×" for kind in kinds)
        expected = [f"{ordinary} as fast", refresh]
        expected += [f"{100 * one[kind] / weak[kind]:.0f} %" for kind in kinds]
        assert found.pop(workload["title"]) == expected
    assert not found
    text, runs = re.sub(r"\s+", " ", DOCS), measured["mnist"]["runs"]
    one, two = (1e3 * runs[name]["seconds"]["bases"]["median"] for name in ("one", "strong"))
    assert f"from {one:.0f} to {two:.0f} ms" in text
    mnist, digits = (
        f"{100 * measured[name]['modelled']['efficiency']['1 Gbit/s']['64']:.0f} %"
        for name in ("mnist", "digits")
    )
    assert f"keep {mnist} of their speed on the MNIST net" in text
    assert f"and {digits} on the digits net" in text
