"""Figures 1 and 6 from synthetic records: files, panels, axes, empty panels, diverged runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import loss_curves
from experiments.figures.loss_curves import BLOCKS, FIGURE_1, FIGURE_6, OPTIMIZERS
from experiments.figures.request import Request
from experiments.publish.runs import TYPES, each_run, read_runs, runs_table
from experiments.publish.style import styled
from experiments.run.config import load_config, resolve
from experiments.run.records import summarise
from experiments.tasks import METRICS
from tests.experiments.figures.asking import (
    asked,
    quiet,
    training_rows,
    write_planned,
    write_record,
)

Made = tuple[Request, dict[str, Any]]


def write_runs(request: Request) -> None:
    """Records of all runs; SGD's last seed on digits and on Circle diverged after 90 lines."""
    for dataset, plans in loss_curves.plan(request).items():
        for optimizer, runs in plans.items():
            for run in runs:
                rows = training_rows(optimizer, run.seed)
                if METRICS[run.folder.parts[-5]] == "nll":
                    rows = [{k.replace("accuracy", "nll"): v for k, v in r.items()} for r in rows]
                lost = optimizer == "sgd" and dataset in ("digits", "circle")
                lost = lost and run.seed == request.seeds[-1]
                state = "diverged" if lost else "done"
                write_planned(run, rows[:91] if lost else rows, state=state)


def make(request: Request) -> dict[str, Any]:
    """Make a figure of which all runs are there; return its provenance."""
    write_runs(request)
    loss_curves.reproduce(request, quiet)
    return json.loads((request.folder / "provenance.json").read_text())


def drawn(draw: Any, *arguments: Any, **options: Any) -> Any:
    figure = draw(*arguments, **options)
    styled(figure.draw_without_rendering)()
    return figure


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Made:
    request = asked(tmp_path_factory.mktemp("one"), FIGURE_1)
    return request, make(request)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Made:
    request = asked(tmp_path_factory.mktemp("six"), FIGURE_6, seeds=(0, 1))
    return request, make(request)


def test_figure_1_writes_picture_data_and_provenance(one: Made) -> None:
    request, origin = one
    names = sorted(path.name for path in request.folder.iterdir())
    assert names == ["data.csv", "figure.png", "provenance.json"]
    lines = (request.folder / "data.csv").read_text().splitlines()
    assert lines[0] == ",".join(TYPES)
    # 17 runs of 401 steps; one diverged after 90 of them: 91 rows and the closing one.
    assert len(lines) - 1 == 17 * 401 + 92
    with Image.open(request.folder / "figure.png") as picture:
        assert min(picture.size) > 800
    assert (origin["profile"], origin["seeds"]) == ("embedded", [0, 1, 2])
    assert origin["device"] == "CPU, 2 threads"
    assert origin["command"] == request.command
    assert len(origin["runs"]) == 18
    first = "python scripts/train.py experiment=figure-1/digits-adam seed=0"
    assert origin["runs"][0]["command"] == first
    assert [run["state"] for run in origin["runs"]].count("diverged") == 1
    words = (
        "CPU, 2 threads",
        "Digits",
        "JapaneseVowels",
        "Seeds 0, 1, 2",
        "CPU time: 1.25 to 1.25",
    )
    for word in words:
        assert word in origin["caption"]


def test_figure_1_is_redrawn_from_its_own_files_alone(one: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(one[0].folder, tmp_path / "figure")
    (folder / "provenance.json").unlink()
    for x, name in (("time", "figure.png"), ("cpu", "figure-cpu.png")):
        loss_curves.redraw_1(folder, x)
        assert (folder / name).stat().st_size > 10_000
    table = pd.read_csv(folder / "data.csv").drop(columns="cpu_s")  # as before there was one
    table.to_csv(folder / "data.csv", index=False)
    loss_curves.redraw_1(folder)
    with pytest.raises(RecordError, match=r"has CPU seconds of training: leave out x=cpu"):
        loss_curves.redraw_1(folder, "cpu")


def test_panels_hold_one_median_and_band_an_optimizer(one: Made) -> None:
    table = read_runs(one[0].folder / "data.csv")
    axes = drawn(loss_curves.draw_1, table, "caption", x="cpu").axes
    ends = [axes[2].lines[0].get_xdata()[-1], axes[2].get_xlabel()]
    axes = drawn(loss_curves.draw_1, table, "caption").axes
    assert ends == [
        pytest.approx(0.8 * axes[2].lines[0].get_xdata()[-1]),
        "CPU seconds of training",
    ]
    titles = ["Digits (images)", "JapaneseVowels (time series)", "", ""]
    assert [ax.get_title() for ax in axes] == titles
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


def test_figure_6_has_three_pictures_of_thinned_runs(six: Made) -> None:
    request, origin = six
    loss_curves.reproduce(replace(request, x="steps"), quiet)
    loss_curves.redraw_6(request.folder, "nfe")
    names = sorted(path.name for path in request.folder.iterdir())
    pictures = ["figure-nfe.png", "figure-steps.png", "figure.png"]
    assert names == ["data.csv", *pictures, "provenance.json"]
    with Image.open(request.folder / "figure.png") as picture:
        assert min(picture.size) > 1000
    assert len({(request.folder / name).read_bytes() for name in pictures}) == 3
    table = read_runs(request.folder / "data.csv")
    assert sum(1 for _ in each_run(table)) == 6 * 3 * 2
    assert table.train_loss.notna().sum() <= 36 * 250
    assert len(origin["runs"]) == 36
    assert origin["caption"].startswith("CPU, 2 threads. Seeds 0, 1: median and range.")


def test_three_blocks_with_their_units(six: Made) -> None:
    table = read_runs(six[0].folder / "data.csv")
    parts = drawn(loss_curves.draw_6, table, "embedded", "caption", "nfe").subfigs
    assert [part.get_suptitle() for part in parts] == [block.title for block in BLOCKS]
    shown = [[ax for ax in part.axes if ax.axison] for part in parts]
    assert [len(axes) for axes in shown] == [2, 4, 6]
    accuracy = ["Training loss", "Val. accuracy (%)"]
    nll = ["Train. NLL (nats)", "Val. NLL (nats)"]
    for axes, labels in zip(shown, (accuracy, accuracy, nll), strict=True):
        assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == labels
        assert axes[-1].get_xlabel() == "Evaluations of the vector field"
    vowels, circle = shown[1], shown[2][0]
    assert vowels[0].get_title() == "JapaneseVowels"
    assert [len(vowels[0].lines), len(vowels[0].collections)] == [3, 3]
    assert 90.0 < vowels[2].lines[0].get_ydata()[-1] <= 100.0
    assert [ax.get_yscale() for ax in vowels] == ["log", "log", "linear", "linear"]
    assert circle.texts[0].get_text() == "SGD: 1 of 2 diverged (×)"
    # 14 evaluations a step, 400 steps.
    assert max(vowels[0].lines[0].get_xdata()) == 14 * 400


def test_labels_legends_and_captions_do_not_overlap(one: Made, six: Made) -> None:
    first = drawn(loss_curves.draw_1, read_runs(one[0].folder / "data.csv"), one[1]["caption"])
    table = read_runs(six[0].folder / "data.csv")
    second = drawn(loss_curves.draw_6, table, "embedded", six[1]["caption"])
    inner = [ax for part in second.subfigs for ax in part.axes if ax.axison]
    for figure, axes in ((first, first.axes), (second, inner)):
        boxes = [ax.get_tightbbox() for ax in axes]
        boxes += [figure.legends[0].get_window_extent(), figure.texts[-1].get_window_extent()]
        for place, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def table_of(folder: Path, runs: Mapping[tuple[str, str, int], str]) -> pd.DataFrame:
    """A table of short runs, by data set, optimizer and seed with their state."""
    found = []
    for (dataset, optimizer, seed), state in runs.items():
        rows = training_rows(optimizer, seed, steps=30)
        found.append(write_record(folder, dataset, optimizer, seed, rows=rows, state=state))
    return runs_table(map(summarise, found))


def test_panels_without_data_say_so(tmp_path: Path) -> None:
    present = ("mnist", "articulary_word_recognition", "circle", "miniboone")
    table = table_of(tmp_path, {(name, "adam", 0): "done" for name in present})
    assert "Epochs as published" in loss_curves.caption_6(table, "CPU", "paper")
    figure = drawn(loss_curves.draw_6, table, "paper")
    inner = [ax for part in figure.subfigs for ax in part.axes]
    empty = [ax.get_title() for ax in inner if any("no runs" in t.get_text() for t in ax.texts)]
    assert empty == ["SVHN", "CIFAR-10", "CharacterTrajectories", "SpokenArabicDigits", "GAS"]


def test_seeds_of_each_data_set_are_named_where_they_differ(tmp_path: Path) -> None:
    runs = {("digits", "adam", 0): "done", ("moons", "adam", 0): "done"}
    runs |= {("basic_motions", "adam", seed): "done" for seed in (0, 1)}
    line = loss_curves.caption_6(table_of(tmp_path, runs), "CPU", "embedded")
    others = "BasicMotions: seeds 0, 1"
    assert line.startswith(f"CPU. Digits, Moons: seed 0; {others}: median and range.")


def test_all_runs_of_an_optimizer_may_diverge(tmp_path: Path) -> None:
    runs = {("digits", "sgd", seed): "diverged" for seed in (0, 1)}
    figure = drawn(loss_curves.draw_1, table_of(tmp_path, runs))
    assert len(figure.axes) == 2
    assert figure.axes[0].texts[0].get_text() == "SGD: 2 of 2 diverged (×)"


def test_wrong_input_is_named(tmp_path: Path) -> None:
    for draw in (loss_curves.draw_1, lambda table: loss_curves.draw_6(table, "embedded")):
        with pytest.raises(RecordError, match="no run of any of its data sets"):
            draw(runs_table([]))
    with pytest.raises(ConfigError, match="unknown axis x='epochs'; valid: time, cpu, steps, nfe"):
        loss_curves.redraw_6(tmp_path, "epochs")
    with pytest.raises(RecordError, match=r"provenance\.json is missing or names no profile"):
        loss_curves.redraw_6(tmp_path)


def test_both_figures_show_the_same_runs(tmp_path: Path) -> None:
    def folders(target: str, profile: str = "embedded") -> dict[str, set[Path]]:
        plans = loss_curves.plan(asked(tmp_path, target, seeds=(0,), profile=profile))
        return {name: {run.folder for (run,) in own.values()} for name, own in plans.items()}

    one, six = folders(FIGURE_1), folders(FIGURE_6)
    assert {dataset: len(runs) for dataset, runs in six.items()} == dict.fromkeys(six, 3)
    assert len(six) == 6
    assert all(six[dataset] == runs for dataset, runs in one.items())
    paper = folders(FIGURE_6, "paper")
    assert set(paper) == {name for block in BLOCKS for name in block.datasets["paper"]}
    assert folders(FIGURE_1, "paper").items() <= paper.items()


@pytest.mark.parametrize("dataset", loss_curves.datasets_of(FIGURE_1, "embedded"))
def test_optimizers_differ_in_nothing_but_the_optimizer(dataset: str) -> None:
    names = [f"experiment=figure-1/{dataset}-{optimizer}" for optimizer in OPTIMIZERS]
    one, *others = ({**resolve(load_config([name])), "optimizer": None} for name in names)
    assert others == [one, one]
