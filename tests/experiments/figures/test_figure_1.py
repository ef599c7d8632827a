"""Figure 1 from synthetic run records: files, panels, and runs that are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from experiments.base.errors import RecordError
from experiments.figures import figure_1
from experiments.figures.curves import COLUMNS, read_curves
from experiments.publish.style import RC
from tests.experiments.figures.synthetic import training_rows, write_figure_1, write_record


def make(folders: dict[str, Path], target: Path) -> None:
    runs = figure_1.collect(folders)
    commands = [f"train {name}" for name in folders]
    figure_1.make(
        runs, target, profile="embedded", command="make reproduce-figure-1", run_commands=commands
    )


def test_writes_picture_data_and_provenance(tmp_path: Path) -> None:
    folders = write_figure_1(tmp_path / "outputs")
    target = tmp_path / "results" / "figure-1"
    make(folders, target)
    assert sorted(path.name for path in target.iterdir()) == [
        "data.csv",
        "figure.png",
        "provenance.json",
    ]
    lines = (target / "data.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    # 17 runs of 401 steps; one diverged after 90 of them: 91 rows and the closing one.
    assert len(lines) - 1 == 17 * 401 + 92
    with Image.open(target / "figure.png") as picture:
        assert min(picture.size) > 800
    origin = json.loads((target / "provenance.json").read_text())
    assert origin["profile"] == "embedded"
    assert origin["seeds"] == [0, 1, 2]
    assert origin["device"] == "CPU, 2 threads"
    assert len(origin["runs"]) == 18
    assert origin["runs"][0]["command"] == "train digits adam 0"
    assert origin["runs"][5]["state"] == "diverged"
    for word in ("CPU, 2 threads", "Digits", "JapaneseVowels", "Seeds 0, 1, 2"):
        assert word in origin["caption"]


def test_is_redrawn_from_its_own_files_alone(tmp_path: Path) -> None:
    target = tmp_path / "figure-1"
    make(write_figure_1(tmp_path / "outputs"), target)
    first = (target / "figure.png").read_bytes()
    shutil.rmtree(tmp_path / "outputs")
    (target / "figure.png").unlink()
    figure_1.redraw(target)
    assert (target / "figure.png").read_bytes() == first
    (target / "provenance.json").unlink()
    figure_1.redraw(target)
    assert (target / "figure.png").stat().st_size > 10_000


def test_panels_hold_one_median_and_band_an_optimizer(tmp_path: Path) -> None:
    target = tmp_path / "figure-1"
    make(write_figure_1(tmp_path / "outputs"), target)
    curves = read_curves(target / "data.csv")
    with mpl.rc_context(RC):
        axes = figure_1.draw(curves, "caption").axes
    assert [ax.get_title() for ax in axes] == [
        "Digits (images)",
        "JapaneseVowels (time series)",
        "",
        "",
    ]
    assert [ax.get_ylabel() for ax in axes] == ["Training loss", "", "Validation accuracy (%)", ""]
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "linear", "linear"]
    assert axes[2].get_xlabel() == "Wall-clock training time (s)"
    assert [len(ax.collections) for ax in axes] == [3, 3, 3, 3]
    # The diverged run adds a thin line and a cross to the panels of its data set, and is named.
    assert [len(ax.lines) for ax in axes] == [5, 3, 5, 3]
    assert axes[0].texts[0].get_text() == "SGD: 1 of 3 diverged (×)"
    assert not axes[1].texts
    # Accuracy is in percent.
    assert 90.0 < axes[2].lines[0].get_ydata()[-1] <= 100.0


def test_labels_legend_and_caption_do_not_overlap(tmp_path: Path) -> None:
    target = tmp_path / "figure-1"
    make(write_figure_1(tmp_path / "outputs"), target)
    line = json.loads((target / "provenance.json").read_text())["caption"]
    with mpl.rc_context(RC):
        figure = figure_1.draw(read_curves(target / "data.csv"), line)
        figure.canvas.draw()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        boxes += [figure.legends[0].get_window_extent(), figure.texts[0].get_window_extent()]
    for place, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0
        assert one.x1 <= figure.bbox.x1
        for other in boxes[place + 1 :]:
            assert not one.overlaps(other)


def test_all_runs_of_an_optimizer_may_diverge(tmp_path: Path) -> None:
    folders = {}
    for seed in (0, 1):
        rows = [row for row in training_rows("sgd", seed) if row["step"] <= 30]
        folder = write_record(tmp_path, "digits", "sgd", seed, rows=rows, state="diverged")
        folders[f"sgd {seed}"] = folder
    with mpl.rc_context(RC):
        runs = figure_1.collect(folders)
        figure = figure_1.draw([figure_1.curve_from_run(run, "accuracy") for run in runs])
    assert len(figure.axes) == 2
    assert figure.axes[0].texts[0].get_text() == "SGD: 2 of 2 diverged (×)"


def test_missing_failed_and_damaged_runs_are_all_named(tmp_path: Path) -> None:
    folders = {
        "figure-1/digits-adam seed 0": write_record(tmp_path, "digits", "adam", 0),
        "figure-1/digits-sgd seed 0": write_record(
            tmp_path, "digits", "sgd", 0, state="failed", error="no memory"
        ),
        "figure-1/digits-snopt seed 0": tmp_path / "image/digits/snopt/abc123/seed-0",
    }
    with pytest.raises(RecordError) as caught:
        figure_1.collect(folders)
    message = str(caught.value)
    assert "digits-adam" not in message
    assert "\n  digits · sgd · seed 0 is failed: no memory" in message
    assert "figure-1/digits-snopt seed 0: there is no run record in" in message


def test_drawing_nothing_is_refused() -> None:
    with pytest.raises(RecordError, match="no run of any of its data sets"):
        figure_1.draw([])
