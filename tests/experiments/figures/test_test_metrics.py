"""Table 4 from the protocol's file: means and deviations by hand, and what is refused."""

from __future__ import annotations

import csv
import json

import pytest

from experiments.base.errors import ConfigError, RecordError
from experiments.figures.reproduce import reproduce
from experiments.studies.comparison import session
from experiments.studies.comparison.rows import fresh_of, mean_and_deviation, table_of, write_rows
from tests.experiments.figures.asking import asked, quiet
from tests.experiments.studies.comparison.synthetic_runs import Row, fresh, row, search

NAN = float("nan")


def runs() -> list[Row]:
    rows = search({("digits", "adam"): [[3.0]], ("digits", "sgd"): [[9.0]]})
    rows += fresh("digits", "adam", [3.0, 4.0, 5.0], settings={"lr": 0.011})
    rows += fresh("digits", "sgd", [9.0], border=("lr at its upper end (0.3)",), test=0.5)
    return rows


def test_it_is_made_from_the_protocol_alone(tmp_path):
    folder = tmp_path / "results" / "protocol"
    folder.mkdir(parents=True)
    write_rows(folder / "runs.csv", table_of(runs()))
    made = reproduce(asked(tmp_path, "table-4"), quiet)
    assert {path.name for path in made.iterdir()} == {
        *("table.md", "table.tex", "data.csv", "provenance.json")
    }
    text = (made / "table.md").read_text()
    assert "| Adam | 86.0 ± 1.0 |" in text  # 0.85, 0.86, 0.87
    assert "| Adam | lr 0.011 |" in text
    assert "| SGD | lr 0.01 (!) |" in text
    assert "fresh seeds 400, 401, 402" in text
    assert r"Adam & 86.0 $\pm$ 1.0 \\" in (made / "table.tex").read_text()
    with (made / "data.csv").open(newline="") as file:
        adam, sgd = csv.DictReader(file)
    assert (float(adam["mean"]), float(adam["deviation"])) == pytest.approx((0.86, 0.01))
    assert (adam["seeds"], adam["diverged"]) == ("3", "0")
    assert (sgd["mean"], sgd["deviation"]) == ("0.5", "")
    origin = json.loads((made / "provenance.json").read_text())
    assert origin["seeds"] == [400, 401, 402]
    assert [run["hash"] for run in origin["runs"]] == ["0123456789ab"] * 4


def test_where_the_protocol_was_not_run_it_runs_first(tmp_path, monkeypatch):
    called = []

    def compare(request, say):
        called.append(request)
        request.folder.mkdir(parents=True)
        write_rows(request.folder / "runs.csv", table_of(runs()))
        return request

    monkeypatch.setattr(session, "compare", compare)
    folder = reproduce(asked(tmp_path, "table-4", jobs=2), quiet)
    [request] = called
    assert (request.jobs, request.budget) == (2, "small")
    assert request.folder == tmp_path / "results" / "protocol"
    assert (request.folder / "table.md").is_file()
    assert (folder / "table.md").is_file()


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ([0.9, 0.92, 0.94], "92.0 ± 2.0 %"),
        ([0.9, NAN, 0.94], "92.0 ± 2.8 %, 1 diverged"),  # 2 · √2
        ([0.9], "90.0 %"),
        ([NAN, NAN], "diverged"),
    ],
    ids=["three", "one diverged", "one", "none"],
)
def test_mean_and_sample_standard_deviation(tests, expected):
    rows = table_of([row(role="fresh", test=value) for value in tests])
    assert mean_and_deviation(fresh_of(rows).iloc[0]) == expected


def test_nats_have_three_digits():
    rows = table_of([row(role="fresh", metric="nll", test=value) for value in (1.0, 1.2)])
    own = fresh_of(rows).iloc[0]
    assert mean_and_deviation(own) == "1.100 ± 0.141 nats"
    assert mean_and_deviation(own, short=True) == "1.100 ± 0.141"


def test_wrong_requests_are_named(tmp_path):
    request = asked(tmp_path, "table-4", overrides=["device=cpu"])
    with pytest.raises(ConfigError, match=r"takes no overrides \(configs/protocol/ says"):
        reproduce(request, quiet)
    (tmp_path / "results" / "protocol").mkdir(parents=True)
    write_rows(tmp_path / "results" / "protocol" / "runs.csv", table_of([row()]))
    with pytest.raises(RecordError, match="no runs on fresh seeds"):
        reproduce(asked(tmp_path, "table-4"), quiet)
