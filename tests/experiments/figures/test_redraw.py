"""What is committed under ``results/`` is drawn again from its own numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.base.environment import REPOSITORY
from experiments.base.errors import RecordError
from experiments.figures import (
    ablation,
    derivatives,
    factors,
    integration_time,
    loss_curves,
    paper_runs,
    refresh,
    sensitivity,
    spectrum,
    step_cost,
)
from experiments.figures import datasets as data_sets
from experiments.figures.report.contents import listings, sections
from experiments.figures.report.page import readme
from experiments.figures.reproduce import FIGURES
from experiments.publish.runs import csv_of_runs, read_runs
from experiments.publish.tables import csv_of, read_table

RESULTS = REPOSITORY / "results"
FOLDERS = sorted(
    path.name for path in RESULTS.iterdir() if path.name.removesuffix("-paper") in FIGURES
)
TABLES = ("table.md", "table.tex")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "figure-density"])
def test_tables_are_the_same_to_the_byte_and_pictures_are_drawn(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(RESULTS / name, tmp_path / name)
    shutil.copytree(RESULTS / "protocol", tmp_path / "protocol")
    made = [path for path in folder.iterdir() if path.suffix in (".png", ".md", ".tex")]
    assert made
    for path in made:
        path.unlink()
    FIGURES[name.removesuffix("-paper")].redraw(folder)
    for path in made:
        # Fonts differ between machines, so that pictures do.
        assert path.stat().st_size > 10_000 or path.suffix != ".png"
        if path.name in TABLES:
            assert path.read_bytes() == (RESULTS / name / path.name).read_bytes()


def test_pictures_of_flows_need_their_records(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="make reproduce-figure-density draws it again"):
        FIGURES["figure-density"].redraw(tmp_path)


@pytest.mark.parametrize(
    ("name", "columns", "options"),
    [
        ("ablation", ablation.COLUMNS, {}),
        ("figure-7", step_cost.COLUMNS, {"digits": 6}),
        ("figure-8", sensitivity.COLUMNS, {"missing": "nan"}),
        ("figure-factors", factors.COLUMNS, {"digits": 6}),
        ("figure-refresh", refresh.COLUMNS, {"digits": 6}),
        ("figure-spectrum", spectrum.TYPES, {"digits": 6}),
        ("table-1", derivatives.ERRORS, {"digits": 6}),
        ("table-2", derivatives.MEMORY, {"digits": 6}),
        ("table-3", data_sets.COLUMNS, {}),
        ("table-5", integration_time.ENTRY, {"digits": 6, "missing": "nan"}),
    ],
)
def test_the_format_of_the_numbers_is_that_of_the_committed_ones(
    name: str, columns: dict, options: dict
) -> None:
    path = RESULTS / name / "data.csv"
    assert csv_of(read_table(path, columns), **options) == path.read_text()


def test_curves_are_written_as_the_committed_ones_are(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "paper", tmp_path / "paper")
    for folder in paper_runs.draw(tmp_path):
        expected = RESULTS / folder.name / "data.csv"
        assert (folder / "data.csv").read_bytes() == expected.read_bytes()
    path = RESULTS / loss_curves.FIGURE_6 / "data.csv"
    assert csv_of_runs(read_runs(path)) == path.read_text()


def test_the_readme_of_the_results_is_that_of_make_report() -> None:
    assert (RESULTS / "README.md").read_text() == readme([*sections(RESULTS), *listings(RESULTS)])
