"""Table 3: numbers of loaded data, absent data sets, agreement with the paper's numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from experiments.data.splits import DataInfo, Splits
from experiments.figures import datasets
from experiments.figures.datasets import Row, agrees, cells, data_sets, measure, table
from experiments.figures.reproduce import reproduce
from experiments.publish.names import published
from experiments.run.config import options
from tests.experiments.figures.asking import asked

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("SNOPT_DATA_DIR", REPOSITORY / ".." / "shared" / "data"))


def row(**changes: object) -> Row:
    return {
        **{"title": "CharacterTrajectories", "train": 1995, "val": 427, "test": 428},
        **{"inputs": "7", "classes": 20, "steps": 187},
        **{"paper_inputs": "7", "paper_classes": 20, "paper_steps": 187},
        **changes,
    }


def numbers(row: Row, *names: str) -> tuple[object, ...]:
    return tuple(row[name] for name in names or ("inputs", "classes", "steps"))


def test_numbers_of_embedded_data(tmp_path):
    digits = measure("digits", "image", tmp_path)
    assert numbers(digits, "train", "val", "test") == (1257, 270, 270)
    assert numbers(digits) == ("1 × 8 × 8", 10, None)
    vowels = measure("japanese_vowels", "time_series", tmp_path)
    assert sum(numbers(vowels, "train", "val", "test")) == 640
    # Time, 12 channels, 12 observation masks.
    assert numbers(vowels) == ("25", 9, 29)
    moons = measure("moons", "cnf", tmp_path, ["dataset.train_size=50"])
    assert numbers(moons, "train", "inputs", "classes") == (50, "2", None)


def test_steps_are_those_of_the_longest_series_not_of_the_padding(tmp_path, monkeypatch):
    def load(**options: object) -> Splits:
        def part(longest: int) -> tuple[torch.Tensor, ...]:
            return torch.zeros(3, 93, 27), torch.tensor([2, longest, 5]), torch.tensor([0, 1, 2])

        info = DataInfo("spoken_arabic_digits", "time_series", (93, 27), 10, "made up")
        return Splits(info, part(40), part(93), part(7))

    monkeypatch.setattr(datasets, "get_method", lambda name: load)
    found = measure("spoken_arabic_digits", "time_series", tmp_path)
    assert numbers(found) == ("27", 10, 93)
    assert agrees(found) is True


def test_absent_data_is_listed_with_the_papers_numbers(tmp_path):
    found = measure("gas", "cnf", tmp_path)
    assert found["train"] is None
    assert agrees(found) is None
    assert cells(found) == ["GAS", "not present", "–", "–", "–", "–", "–", "8"]
    assert str(tmp_path) not in found["source"]


def test_a_disagreement_is_marked():
    assert cells(row())[-1] == "7 / 20 / 187"
    assert cells(row(steps=182))[-1] == "7 / 20 / 187 (differs)"
    assert agrees(row(paper_inputs=None)) is None


def test_every_data_set_is_listed_once():
    names = [name for name, _ in data_sets("embedded")]
    assert len(names) == len(set(names)) == 16
    stated = {name for name, _ in data_sets("paper")}
    assert stated == {name for name in options("dataset") if published(name)} < set(names)


def test_writes_all_files(tmp_path, monkeypatch):
    wanted = [("digits", "image"), ("svhn", "image")]
    monkeypatch.setattr(datasets, "data_sets", lambda profile: wanted)
    lines: list[str] = []
    folder = reproduce(asked(tmp_path, "table-3"), lines.append)
    assert lines[0] == "digits"
    assert lines[1].startswith("svhn: not present (svhn: not found")
    _, first, second = (line.split(",") for line in (folder / "data.csv").read_text().splitlines())
    assert (first[3], first[6], first[8]) == ("1257", "1 × 8 × 8", "")
    assert (second[3], second[9]) == ("", "3 × 32 × 32")
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["target"] == "table-3"
    assert "Data: Digits." in origin["caption"]
    text = (folder / "table.md").read_text().splitlines()
    assert text[2] == "| Digits | 1 257 | 270 | 270 | 1 × 8 × 8 | 10 | – | – |"
    assert {line.count("|") for line in text[:4]} == {9}


def test_latex_keeps_the_words_of_a_cell_together():
    rows = [row(), row(title="GAS", train=None, val=None, test=None)]
    tex = [line for line in table(rows).latex().splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in tex} == {7}
    assert tex[1].startswith(r"CharacterTrajectories & 1~995 & 427 & 428 & 7 & 20 & 187 & 7~/~20")


@pytest.mark.parametrize(("dataset", "task"), data_sets("paper"))
def test_real_data_agrees_with_the_paper(dataset, task):
    found = measure(dataset, task, DATA)
    if found["train"] is None:
        pytest.skip(found["source"])
    assert agrees(found), found
