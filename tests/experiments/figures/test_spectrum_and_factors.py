"""The spectrum and the factor figure: from tiny settings to files, and from records to a panel."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import figure_factors, figure_spectrum, node_runs
from experiments.figures.factor_panels import COLUMNS
from experiments.figures.reproduce import MEASURED
from experiments.measure import path_factors, spectrum
from experiments.run.config import load_config, resolve
from tests.experiments.figures.synthetic import write_record

TINY = ("model.width=2", "solver=rk4", "solver.options.step_size=0.5")


def asked(tmp_path, **changes):
    return {
        "profile": "embedded",
        "seeds": (0,),
        "overrides": TINY,
        "data_dir": tmp_path,
        "output_dir": tmp_path / "outputs",
        "folder": tmp_path / "out",
        "command": "make it",
        "say": lambda line: None,
        **changes,
    }


def check_files(folder, target):
    origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert origin["target"] == target
    assert origin["command"] == "make it"
    assert origin["seeds"] == [0]
    assert "CPU" in origin["caption"]
    assert "Seeds 0" in origin["caption"]
    with Image.open(folder / "figure.png") as picture:
        assert picture.width > 1000
    return origin


def test_the_spectrum_is_measured_drawn_and_redrawn(tmp_path):
    pytest.importorskip("curvlinops")
    settings = spectrum.Settings(
        steps=(0, 1), samples=2, probes=2, lanczos=4, adjoint_steps=(1,), adjoint_rtol=1e-3
    )
    figure_spectrum.reproduce(**asked(tmp_path), settings=settings)
    folder = tmp_path / "out"
    origin = check_files(folder, "figure-spectrum")
    assert origin["damping"] == pytest.approx(0.0338)
    table = pd.read_csv(folder / "data.csv")
    shares = table.groupby(["step", "matrix"])["share"].sum()
    assert shares.to_numpy() == pytest.approx(1.0, abs=1e-5)
    exact = {"gauss-newton", "kronecker-ggn", "kronecker-empirical"}
    assert set(table[table["step"] == 0]["matrix"]) == {*exact, "hessian"}
    later = set(table[table["step"] == 1]["matrix"])
    assert later == {*exact, "hessian", "hessian-adjoint", "moment"}
    first = (folder / "figure.png").read_bytes()
    (folder / "figure.png").unlink()
    figure_spectrum.redraw(folder)
    assert (folder / "figure.png").read_bytes() == first


def test_the_factors_are_measured_and_drawn_without_the_timed_panel(tmp_path):
    settings = path_factors.Settings(
        states=(0, 1),
        samples=2,
        times=3,
        gauss_legendre=(1, 2),
        uniform=(1,),
        tolerances=(1e-2,),
        pieces=2,
        tight=1e-4,
    )
    overrides = ("model.width=2",)
    figure_factors.reproduce(**asked(tmp_path, overrides=overrides), settings=settings, timed=False)
    folder = tmp_path / "out"
    origin = check_files(folder, "figure-factors")
    assert origin["runs"] == []
    assert "Time to" not in origin["caption"]
    table = pd.read_csv(folder / "data.csv")
    assert set(table["panel"]) == {"along", "nodes"}
    assert tuple(table.columns) == COLUMNS


def test_runs_to_the_target_become_the_last_panel(tmp_path):
    wanted = node_runs.plan((0, 1), (), tmp_path, tmp_path / "outputs")
    assert len({one.run.folder for one in wanted}) == 2 * len(node_runs.VARIANTS)
    # The variants take turns in coming first.
    assert (wanted[0].rule, wanted[0].n) == node_runs.VARIANTS[0]
    assert (wanted[5].rule, wanted[5].n) == node_runs.VARIANTS[1]
    for one in wanted:
        task, dataset, optimizer, digest, _ = one.run.folder.parts[-5:]
        missed = one.n == 100 and one.run.seed == 1
        rows = [{"step": 0, "time/train_s": 0.0, "val/accuracy": 0.1}]
        rows.append({"step": 40, "time/train_s": 2.0 + one.n, "val/accuracy": 0.8})
        if not missed:
            rows.append({"step": 80, "time/train_s": 5.0 + one.n, "val/accuracy": 0.9})
        write_record(
            *(tmp_path / "outputs", dataset, optimizer, one.run.seed),
            task=task,
            digest=digest,
            rows=rows,
        )
    found = [run.row() for run in node_runs.obtain(wanted, lambda line: None)]
    assert found[0] == {"seed": 0, "rule": "gauss_legendre", "n": 1, "seconds": 6.0, "steps": 80}
    lost = [row for row in found if not math.isfinite(row["seconds"])]
    assert [(row["seed"], row["rule"], row["n"]) for row in lost] == [(1, "uniform", 100)]
    assert math.isinf(lost[0]["steps"])
    flat = figure_factors.long("time", found, ("seconds", "steps"))
    path = {"panel": "along", "seed": 0, "step": 0, "layer": "conv1", "factor": "A", "t": 0.5}
    rows = [*flat, {**dict.fromkeys(COLUMNS), **path, "quantity": "trace", "value": 1.0}]
    folder = tmp_path / "drawn"
    folder.mkdir()
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "data.csv", index=False)
    figure_factors.redraw(folder)
    assert (folder / "figure.png").is_file()


def test_the_paper_rule_is_another_group_with_the_tuned_settings():
    runs = node_runs.plan((0,), (), Path("d"), Path("o"))
    uniform = next(one for one in runs if (one.rule, one.n) == ("uniform", 100))
    theirs = resolve(load_config(uniform.run.overrides))["optimizer"]
    own = resolve(load_config(runs[0].run.overrides))["optimizer"]
    assert theirs.pop("quadrature") == {"_target_": "snopt.uniform", "step": 0.01}
    assert own.pop("quadrature") == {"_target_": "snopt.gauss_legendre", "n": 1}
    assert theirs == own
    assert "trainer.stop_at=0.85" in uniform.run.command


@pytest.mark.parametrize("name", ["figure-spectrum", "figure-factors"])
def test_what_cannot_be_asked_for_is_refused(tmp_path, name):
    target = MEASURED[name]
    with pytest.raises(ConfigError, match=f"{name} has no profile 'paper'; valid: embedded"):
        target.reproduce(**asked(tmp_path, profile="paper"))
    with pytest.raises(ConfigError, match="seeds must be different"):
        target.reproduce(**asked(tmp_path, seeds=(0, 0)))
    with pytest.raises(RecordError, match="missing or no table"):
        target.redraw(tmp_path)
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="must have rows and the columns"):
        target.redraw(tmp_path)
