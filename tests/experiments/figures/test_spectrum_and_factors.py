"""The spectrum and the factor figure: from tiny settings to files, and from records to a panel."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from PIL import Image

from experiments.figures import factors, spectrum
from experiments.figures.factors import COLUMNS, VARIANTS
from experiments.figures.request import in_turn, obtain
from experiments.measure import path_factors
from experiments.measure import spectrum as measured
from experiments.run.config import load_config, resolve
from tests.experiments.figures.asking import asked, quiet, write_planned

TINY = ("model.width=2", "solver=rk4", "solver.options.step_size=0.5")


def check_files(folder, target):
    origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert origin["target"] == target
    assert TINY[0] in origin["command"]
    assert origin["seeds"] == [0]
    assert "CPU" in origin["caption"]
    assert "Seeds 0" in origin["caption"]
    with Image.open(folder / "figure.png") as picture:
        assert picture.width > 1000
    return origin


def test_the_spectrum_is_measured_drawn_and_redrawn(tmp_path):
    pytest.importorskip("curvlinops")
    settings = measured.Settings(
        steps=(0, 1), samples=2, probes=2, lanczos=4, adjoint_steps=(1,), adjoint_rtol=1e-3
    )
    request = asked(tmp_path, "figure-spectrum", seeds=(0,), overrides=TINY)
    spectrum.reproduce(request, quiet, settings=settings)
    folder = request.folder
    origin = check_files(folder, "figure-spectrum")
    assert origin["damping"] == pytest.approx(0.0338)
    table = pd.read_csv(folder / "data.csv")
    shares = table.groupby(["step", "matrix"])["share"].sum()
    assert shares.to_numpy() == pytest.approx(1.0, abs=1e-5)
    exact = {"gauss-newton", "kronecker-ggn", "kronecker-empirical"}
    assert set(table[table["step"] == 0]["matrix"]) == {*exact, "hessian"}
    later = set(table[table["step"] == 1]["matrix"])
    assert later == {*exact, "hessian", "hessian-adjoint", "moment"}


def test_the_factors_are_measured_and_drawn_without_the_timed_panel(tmp_path):
    rules = {"gauss_legendre": (1, 2), "uniform": (1,), "tolerances": (1e-2,)}
    settings = path_factors.Settings((0, 1), samples=2, times=3, pieces=2, tight=1e-4, **rules)
    request = asked(tmp_path, "figure-factors", seeds=(0,), overrides=TINY[:1])
    factors.reproduce(request, quiet, settings=settings, timed=False)
    folder = request.folder
    origin = check_files(folder, "figure-factors")
    assert origin["runs"] == []
    assert "Time to" not in origin["caption"]
    table = pd.read_csv(folder / "data.csv")
    assert set(table["panel"]) == {"along", "nodes"}
    assert list(table.columns) == list(COLUMNS)


def test_runs_to_the_target_become_the_last_panel(tmp_path):
    request = asked(tmp_path, "figure-factors", seeds=(0, 1))
    wanted = in_turn(factors.plan(request))
    assert len({run.folder for _, run in wanted}) == 2 * len(VARIANTS)
    # The variants take turns in coming first.
    assert [wanted[0][0], wanted[5][0]] == [VARIANTS[0], VARIANTS[1]]
    for (_, n), run in wanted:
        missed = n == 100 and run.seed == 1
        rows = [{"step": 0, "time/train_s": 0.0, "val/accuracy": 0.1}]
        rows.append({"step": 40, "time/train_s": 2.0 + n, "val/accuracy": 0.8})
        if not missed:
            rows.append({"step": 80, "time/train_s": 5.0 + n, "val/accuracy": 0.9})
        write_planned(run, rows)
    found = [factors.row_of(made) for made in obtain(request, wanted, quiet)]
    assert found[0] == {"seed": 0, "rule": "gauss_legendre", "n": 1, "seconds": 6.0, "steps": 80}
    lost = [row for row in found if not math.isfinite(row["seconds"])]
    assert [(row["seed"], row["rule"], row["n"]) for row in lost] == [(1, "uniform", 100)]
    assert math.isinf(lost[0]["steps"])
    rows = factors.long("time", found, ("seconds", "steps"))
    path = {"panel": "along", "seed": 0, "step": 0, "layer": "conv1", "factor": "A", "t": 0.5}
    rows.append({**path, "quantity": "trace", "value": 1.0})
    folder = tmp_path / "drawn"
    folder.mkdir()
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "data.csv", index=False)
    factors.redraw(folder)
    assert (folder / "figure.png").is_file()


def test_the_paper_rule_is_another_group_with_the_tuned_settings(tmp_path):
    runs = factors.plan(asked(tmp_path, "figure-factors", seeds=(0,)))
    (uniform,), (first,) = runs["uniform", 100], runs["gauss_legendre", 1]
    theirs = resolve(load_config(uniform.overrides))["optimizer"]
    own = resolve(load_config(first.overrides))["optimizer"]
    assert theirs.pop("quadrature") == {"_target_": "snopt.uniform", "step": 0.01}
    assert own.pop("quadrature") == {"_target_": "snopt.gauss_legendre", "n": 1}
    assert theirs == own
    assert "trainer.stop_at=0.85" in uniform.command
