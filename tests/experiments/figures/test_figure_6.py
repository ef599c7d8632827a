"""Figure 6 from synthetic run records: blocks, axes, empty panels, and its command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from experiments.base.errors import ConfigError, RecordError
from experiments.figures import figure_6
from experiments.figures.blocks import BLOCKS, PROFILES
from experiments.figures.curves import COLUMNS, read_curves
from experiments.figures.reproduce import Request, plan
from experiments.publish.style import RC
from tests.experiments.figures.synthetic import training_rows, write_record


def write_runs(
    output: Path, profile: str, *, without: tuple[str, ...] = (), seeds: tuple[int, ...] = (0, 1)
) -> dict[str, Path]:
    """Records of a profile's data sets; Circle's SGD run of seed 1 diverged."""
    folders = {}
    for block in BLOCKS:
        for panel in block.panels[profile]:
            for optimizer in figure_6.OPTIMIZERS:
                for seed in seeds:
                    if panel.dataset in without:
                        continue
                    rows = training_rows(optimizer, seed, steps=300)
                    if block.metric == "nll":
                        rows = [
                            {("val/nll" if k == "val/accuracy" else k): v for k, v in row.items()}
                            for row in rows
                        ]
                    lost = (panel.dataset, optimizer, seed) == ("circle", "sgd", 1)
                    folders[f"{panel.dataset} {optimizer} {seed}"] = write_record(
                        *(output, panel.dataset, optimizer, seed),
                        task=block.task,
                        rows=rows[:90] if lost else rows,
                        state="diverged" if lost else "done",
                    )
    return folders


def make(folders: dict[str, Path], target: Path, profile: str, **options: str) -> None:
    runs = figure_6.collect(folders)
    commands = [f"train {name}" for name in folders]
    figure_6.make(runs, target, profile=profile, command="make", run_commands=commands, **options)


def test_writes_pictures_data_and_provenance(tmp_path: Path) -> None:
    target = tmp_path / "figure-6"
    folders = write_runs(tmp_path / "outputs", "embedded")
    make(folders, target, "embedded")
    make(folders, target, "embedded", x="steps")
    figure_6.redraw(target, "nfe")
    assert sorted(path.name for path in target.iterdir()) == [
        "data.csv",
        "figure-nfe.png",
        "figure-steps.png",
        "figure.png",
        "provenance.json",
    ]
    with Image.open(target / "figure.png") as picture:
        assert min(picture.size) > 1000
    assert (target / "figure.png").read_bytes() != (target / "figure-steps.png").read_bytes()
    curves = read_curves(target / "data.csv")
    assert len(curves) == 6 * 3 * 2
    origin = json.loads((target / "provenance.json").read_text())
    assert len(origin["runs"]) == 36
    assert origin["caption"].startswith("CPU, 2 threads. Seeds 0, 1: median and range.")


def test_three_blocks_with_their_units(tmp_path: Path) -> None:
    target = tmp_path / "figure-6"
    make(write_runs(tmp_path / "outputs", "embedded"), target, "embedded")
    with mpl.rc_context(RC):
        figure = figure_6.draw(read_curves(target / "data.csv"), "embedded", "caption", "nfe")
    parts = figure.subfigs
    assert [part.get_suptitle() for part in parts] == [block.title for block in BLOCKS]
    titles = [[ax.get_title() for ax in part.axes if ax.axison][::2] for part in parts]
    shown = [[ax for ax in part.axes if ax.axison] for part in parts]
    assert [len(axes) for axes in shown] == [2, 4, 6]
    assert titles[0] == ["Digits"]
    for axes, labels in zip(
        shown,
        (
            ["Training loss", "Val. accuracy (%)"],
            ["Training loss", "Val. accuracy (%)"],
            ["Train. NLL (nats)", "Val. NLL (nats)"],
        ),
        strict=True,
    ):
        assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == labels
        assert axes[-1].get_xlabel() == "Evaluations of the vector field"
    # One line and one band an optimizer; accuracy in percent; the diverged run is named.
    digits = shown[0]
    assert [len(digits[0].lines), len(digits[0].collections)] == [3, 3]
    assert 90.0 < digits[1].lines[0].get_ydata()[-1] <= 100.0
    assert [ax.get_yscale() for ax in digits] == ["log", "linear"]
    circle = shown[2][0]
    assert circle.texts[0].get_text() == "SGD: 1 of 2 diverged (×)"
    # 14 evaluations a step, 300 steps.
    assert max(digits[0].lines[0].get_xdata()) == 14 * 300


def test_panels_without_data_say_so(tmp_path: Path) -> None:
    target = tmp_path / "figure-6-paper"
    absent = ("svhn", "cifar10", "character_trajectories", "spoken_arabic_digits", "gas")
    make(write_runs(tmp_path / "outputs", "paper", without=absent), target, "paper")
    with mpl.rc_context(RC):
        figure = figure_6.draw(read_curves(target / "data.csv"), "paper")
    empty = [
        ax.get_title()
        for part in figure.subfigs
        for ax in part.axes
        if any("no runs" in text.get_text() for text in ax.texts)
    ]
    assert empty == ["SVHN", "CIFAR-10", "CharacterTrajectories", "SpokenArabicDigits", "GAS"]
    caption = json.loads((target / "provenance.json").read_text())["caption"]
    assert "Epochs as published" in caption


def test_seeds_of_each_data_set_are_named_where_they_differ(tmp_path: Path) -> None:
    folders = write_runs(tmp_path, "embedded", without=("digits", "moons"), seeds=(0, 1))
    folders["digits"] = write_record(tmp_path, "digits", "adam", 0)
    curves = [figure_6.curve_of(run) for run in figure_6.collect(folders)]
    line = figure_6.caption(curves, "CPU", "embedded")
    others = "JapaneseVowels, BasicMotions, Circle, Pinwheel: seeds 0, 1"
    assert line.startswith(f"CPU. Digits: seed 0; {others}: median and range.")


def test_nothing_overlaps(tmp_path: Path) -> None:
    target = tmp_path / "figure-6"
    make(write_runs(tmp_path / "outputs", "embedded"), target, "embedded")
    line = json.loads((target / "provenance.json").read_text())["caption"]
    with mpl.rc_context(RC):
        figure = figure_6.draw(read_curves(target / "data.csv"), "embedded", line)
        figure.draw_without_rendering()
        boxes = [ax.get_tightbbox() for part in figure.subfigs for ax in part.axes if ax.axison]
        boxes += [figure.legends[0].get_window_extent(), figure.texts[-1].get_window_extent()]
    for place, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0
        assert one.x1 <= figure.bbox.x1
        for other in boxes[place + 1 :]:
            assert not one.overlaps(other)


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run of any of its data sets"):
        figure_6.draw([], "embedded")
    with pytest.raises(ConfigError, match="unknown axis x='epochs'; valid: time, steps, nfe"):
        figure_6.redraw(tmp_path, "epochs")
    folders = {
        "a": write_record(tmp_path, "digits", "sgd", 0, state="failed", error="no memory"),
        "b": tmp_path / "image/digits/snopt/abc123/seed-0",
    }
    with pytest.raises(RecordError) as caught:
        figure_6.collect(folders)
    assert "digits · sgd · seed 0 is failed: no memory" in str(caught.value)
    assert "\n  b: there is no run record in" in str(caught.value)
    (tmp_path / "data.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(RecordError, match=r"provenance\.json cannot be read"):
        figure_6.redraw(tmp_path)


def test_plan_takes_each_run_from_where_it_is_described(tmp_path: Path) -> None:
    request = Request("figure-6", seeds=(0,), output_dir=tmp_path)
    runs = [run for group in plan(request).values() for run in group]
    assert len(runs) == 18
    assert {run.overrides[0].partition("/")[0] for run in runs if run.dataset == "digits"} == {
        "experiment=figure-1"
    }
    # digits and JapaneseVowels are figure 1's own runs: nothing is trained twice.
    ours = {run.folder for run in runs if run.dataset in ("digits", "japanese_vowels")}
    theirs = plan(replace(request, target="figure-1"))
    assert ours == {run.folder for group in theirs.values() for run in group}
    paper = plan(replace(request, profile="paper"))
    assert list(paper) == [panel.dataset for panel in PROFILES["paper"]]
    assert all(len(group) == 3 for group in paper.values())


def test_the_axis_is_part_of_the_command_and_checked(tmp_path: Path) -> None:
    request = Request("figure-6", output_dir=tmp_path, x="steps")
    assert request.command == "make reproduce-figure-6 PROFILE=embedded SEEDS=0,1,2 X=steps"
    with pytest.raises(
        ConfigError, match="figure-6 has no axis x='epochs'; valid: time, steps, nf"
    ):
        plan(replace(request, x="epochs"))
    with pytest.raises(ConfigError, match="figure-1 has no axis x='steps'; valid: time"):
        plan(replace(request, target="figure-1"))
