"""The density figure: what is drawn of a flow, its files, and runs that cannot be drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.base.errors import ConfigError, RecordError
from experiments.data.splits import DataInfo
from experiments.figures import density
from experiments.figures.request import Made
from experiments.models.cnf import ConcatSquashCNF, HyperCNF
from experiments.models.solver import SolverSettings
from experiments.run.checkpoint import load_checkpoint
from experiments.run.config import load_config
from experiments.run.records import summarise
from experiments.run.run import run

INFO = DataInfo("tiny", "cnf", (2,), None, "made up")
QUICK = ["tracking=none", "device=cpu", "trainer.max_steps=3", "solver=dopri5"]


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on moons."""
    output = tmp_path_factory.mktemp("density")
    overrides = ["experiment=figure-6/moons-snopt", *QUICK, f"output_dir={output}"]
    return run(load_config([*overrides, "solver.rtol=1e-4", "solver.atol=1e-4"])).folder


def test_the_path_of_a_flow_ends_at_its_samples():
    torch.manual_seed(0)
    flow = ConcatSquashCNF(INFO, SolverSettings(rtol=1e-6, atol=1e-6), width=8, blocks=2)
    base = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    start, quarter, half, end = flow.path(base, [0.0, 0.25, 0.5, 1.0])
    assert torch.equal(start, base)
    sampled = flow.sample(50, torch.Generator().manual_seed(3))
    torch.testing.assert_close(end, sampled, atol=1e-4, rtol=1e-4)
    # Up to half of the time the points are in the first of the two flows on their way, the last
    # of the list.
    one = ConcatSquashCNF(INFO, SolverSettings(rtol=1e-6, atol=1e-6), width=8, blocks=1)
    one.flows[0].load_state_dict(flow.flows[1].state_dict())
    torch.testing.assert_close(half, one.path(base, [1.0])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(quarter, one.path(base, [0.5])[0], atol=1e-4, rtol=1e-4)
    for fractions in ([0.5, 0.25], [1.5]):
        with pytest.raises(ConfigError, match="fractions must rise from 0 to 1"):
            flow.path(base, fractions)


def test_density_and_path_of_a_run(flow_run):
    row = density.learned(summarise(flow_run), points=500, grid=60)
    # Nearly a standard normal after three steps: its mass within the square, by its own samples.
    inside = np.abs(row.path[-1]).max(axis=1) < row.extent
    assert row.mass == pytest.approx(inside.mean(), abs=0.03)
    assert row.density.shape == (60, 60)
    assert [points.shape for points in row.path] == [(500, 2)] * 5
    assert (row.dataset, row.optimizer, row.seed) == ("moons", "snopt", 0)
    last = json.loads((flow_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row.test_nll == last["test/nll"]


def test_rows_of_the_density_go_up(flow_run):
    """The picture's origin is below: row 0 has the lowest y."""
    record = summarise(flow_run)
    row = density.learned(record, points=10, grid=3)
    checkpoint = load_checkpoint(flow_run / "checkpoint.pt", f"{record.digest}-{record.seed}")
    flow = HyperCNF(INFO, SolverSettings(rtol=1e-4, atol=1e-4))
    flow.load_state_dict(checkpoint["model"])
    step = 2 * row.extent / 3
    with torch.no_grad():
        below = flow.log_prob(torch.tensor([[step, -step]])).exp()
    assert row.density[0, 2] == pytest.approx(float(below), rel=1e-3)


def test_files_of_several_runs(flow_run, tmp_path):
    made = [Made("moons", summarise(flow_run), name) for name in "ab"]
    density.write(made, tmp_path / "out", command="make")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["data.csv", "figure.png", "provenance.json"]
    assert pd.read_csv(tmp_path / "out" / "data.csv").dataset.tolist() == ["moons", "moons"]
    caption = json.loads((tmp_path / "out" / "provenance.json").read_text())["caption"]
    assert "seed 0" in caption


def test_one_row_of_seven_pictures(flow_run):
    row = density.learned(summarise(flow_run), points=100, grid=density.GRID)
    figure = density.draw([row], "caption")
    titles = [ax.get_title() for ax in figure.axes]
    expected = ["test points", "density", "t = 0", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1"]
    assert titles == expected
    assert figure.axes[0].get_ylabel() == "Moons"


def test_runs_that_cannot_be_drawn_are_named(flow_run, tmp_path):
    with pytest.raises(RecordError, match="there is no run to draw"):
        density.draw([])
    copy = tmp_path / "/".join(flow_run.parts[-5:])
    shutil.copytree(flow_run, copy)
    (copy / "checkpoint.pt").unlink()
    with pytest.raises(RecordError, match=r"has no checkpoint\.pt"):
        density.learned(summarise(copy))
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps({**status, "state": "diverged"}))
    with pytest.raises(RecordError, match="is diverged: a density needs a run that is done"):
        density.learned(summarise(copy))
    image = tmp_path / "image" / "digits" / "sgd" / copy.parent.name
    shutil.copytree(copy.parent, image)
    with pytest.raises(ConfigError, match="is a run of task image; a density needs task cnf"):
        density.learned(summarise(image / "seed-0"))
