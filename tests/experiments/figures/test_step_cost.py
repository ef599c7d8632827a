"""Figure 7: from measurements to picture; what is measured, what is skipped, what is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from experiments.base.errors import ConfigError, DataError, RecordError
from experiments.figures import step_cost
from experiments.figures.step_cost import COLUMNS, DATASETS, rows_of, table
from experiments.measure import step_cost as measure
from experiments.measure.step_cost import Measurement, plan
from experiments.publish.tables import read_table
from experiments.run.config import description_of
from tests.experiments.figures.asking import asked
from tests.experiments.measure.synthetic import ORIGIN

SEEDS = (0, 1)
TINY = ["device=cpu", "trainer.batch_size=4", "model.width=2"]


def measurement(dataset: str, seed: int, kind: str) -> Measurement:
    arguments = {"overrides": [f"experiment=figure-7/{dataset}", "data_dir=/somewhere"]}
    return Measurement(dataset, seed, kind, Path("none"), "module:function", arguments, {})


def result(kind: str, seed: int) -> dict[str, Any]:
    if kind == "time":
        adam = [0.1, 0.2, 0.4] if seed == 0 else [1.0, 2.0, 4.0]
        factors = {"adam": 1.0, "snopt": 1.02, "snopt_refresh": 3.02}
        samples = {name: [f * s for s in adam] for name, f in factors.items()}
        return {"samples_s": samples, "update_freq": 100, "origin": ORIGIN}
    extra = {"memory-adam": 20.0, "memory-snopt": 22.0}[kind]
    return {"start_mb": 180.0, "peak_mb": 180.0 + extra, "extra_mb": extra, "origin": ORIGIN}


def measured(*datasets: str) -> list[tuple[Measurement, Mapping[str, Any]]]:
    return [
        (measurement(dataset, seed, kind), result(kind, seed))
        for dataset in datasets
        for seed in SEEDS
        for kind in ("time", "memory-adam", "memory-snopt")
    ]


def test_writes_picture_data_and_provenance(tmp_path: Path) -> None:
    request = asked(tmp_path, "figure-7", seeds=SEEDS)
    folder = request.folder
    step_cost.make(measured("digits", "circle"), request)
    assert sorted(p.name for p in folder.iterdir()) == ["data.csv", "figure.png", "provenance.json"]
    with Image.open(folder / "figure.png") as picture:
        assert min(picture.size) > 500
    lines = (folder / "data.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert "digits,snopt,refresh_step,0,2,1.208,s" in lines
    assert "circle,adam,memory,1,0,20,MB" in lines
    assert len(lines) - 1 == 2 * 2 * (3 * 3 + 1 + 4)
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["command"] == "make reproduce-figure-7 PROFILE=embedded SEEDS=0,1"
    assert (origin["profile"], origin["seeds"]) == ("embedded", [0, 1])
    assert origin["device"] == "CPU (A Processor), 2 threads"
    assert len(origin["measurements"]) == 12
    assert origin["measurements"][0]["origin"] == ORIGIN
    # Nothing in it depends on where this machine keeps its data.
    assert origin["measurements"][0]["arguments"] == {"overrides": ["experiment=figure-7/digits"]}
    assert "Seeds 0, 1" in origin["caption"]


def test_rows_are_medians_of_pairs_over_all_seeds() -> None:
    (row,) = rows_of(table(measured("digits")))
    assert (row.dataset, row.update_freq) == ("digits", 100)
    assert row.average.median == pytest.approx(1.04)
    assert row.average.count == 6
    assert row.refresh.median == pytest.approx(3.02)
    assert row.adam_s == pytest.approx(0.7)
    assert row.memory.median == pytest.approx(1.1)
    assert row.process_memory.median == pytest.approx(202.0 / 200.0)
    assert row.adam_mb == 20.0


def test_panels_show_one_group_of_bars_a_data_set() -> None:
    figure = step_cost.draw(rows_of(table(measured("digits", "circle"))))
    time, memory = figure.axes
    assert [len(axes.patches) for axes in (time, memory)] == [4, 4]
    labels = [label.get_text() for label in time.get_yticklabels()]
    assert labels == ["Digits\n(1 = 700 ms)", "Circle\n(1 = 700 ms)"]
    assert [text.get_text() for text in time.texts] == ["1.04", "1.04", "3.02", "3.02"]
    assert [text.get_text() for text in memory.texts] == ["1.01", "1.01", "1.10", "1.10"]
    assert len(figure.legends[0].get_texts()) == 4


def test_incomplete_or_damaged_tables_are_named() -> None:
    numbers = table(measured("digits"))
    which = (numbers["optimizer"] == "adam") & (numbers["seed"] == 1)
    with pytest.raises(RecordError, match=r"digits has no measurement .*'adam', 'memory', 1"):
        rows_of(numbers[~(which & (numbers["quantity"] == "memory"))])
    short = which & (numbers["quantity"] == "step") & (numbers["sample"] > 0)
    with pytest.raises(RecordError, match="measurements of digits do not fit"):
        rows_of(numbers[~short])
    with pytest.raises(RecordError, match="no data set"):
        step_cost.draw([])


def reproduce(tmp_path: Path, said: list[str], **changes: Any) -> Path:
    request = asked(tmp_path, "figure-7", **{"seeds": (0,), "overrides": ["device=cpu"], **changes})
    step_cost.reproduce(request, said.append, rounds=1)
    return request.folder


def test_missing_measurements_are_made_and_present_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def call(target: str, arguments: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        calls.append((target, arguments))
        overrides = arguments["overrides"]
        if "experiment=figure-7/basic_motions" in overrides:
            raise DataError("the file is damaged")
        kind = "time" if "rounds" in arguments else f"memory-{arguments['optimizer']}"
        return result(kind, 0)

    monkeypatch.setattr(measure, "call", call)
    said: list[str] = []
    folder = reproduce(tmp_path, said)
    # Three measurements a data set; the one that cannot be read is left out at its first.
    assert len(calls) == 3 * 3 + 1
    assert "left out: basic_motions: the file is damaged" in said
    shown = read_table(folder / "data.csv", COLUMNS)["dataset"]
    assert set(shown) == {"digits", "japanese_vowels", "circle"}
    calls.clear()
    reproduce(tmp_path, said)
    assert len(calls) == 1
    assert sum("there already" in line for line in said) == 9
    # Another number of rounds, batch or seed is another measurement.
    calls.clear()
    reproduce(tmp_path, said, seeds=(1,))
    assert len(calls) == 10


def test_requests_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"trainer\.batchsize"):
        reproduce(tmp_path, said, overrides=["trainer.batchsize=3"])
    monkeypatch.setattr(measure, "call", Mock(side_effect=DataError("not here")))
    with pytest.raises(DataError, match=r"none of the data sets is available:\n  mnist: not here"):
        reproduce(tmp_path, said, profile="paper", output_dir=tmp_path / "o")


def test_tiny_measurements_of_a_configured_run_in_their_process(tmp_path: Path) -> None:
    todo = plan("figure-7", "digits", [3], TINY, [], tmp_path, rounds=1)
    one, _, memory = todo
    found = one.run()
    counts = {name: len(values) for name, values in found["samples_s"].items()}
    assert counts == {"adam": 1, "snopt": 1, "snopt_refresh": 1}
    assert (found["update_freq"], found["batch_size"]) == (100, 4)
    assert found["origin"]["device"] == "cpu"
    assert memory.result() is None
    found = memory.run()
    assert found["peak_mb"] > found["start_mb"] > 50.0
    assert memory.result() == found
    memory.file.write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        memory.result()


def test_every_experiment_file_belongs_to_a_panel() -> None:
    files = set(description_of("tuned", "figure-7"))
    assert set(DATASETS["embedded"]) <= files <= {name for own in DATASETS.values() for name in own}
