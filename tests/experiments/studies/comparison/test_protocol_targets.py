"""Targets: what they are, what the file keeps, and when they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from synthetic_protocol import rows_of, tiny_request

from experiments.base.errors import ConfigError
from experiments.studies.comparison.planning import target_runs
from experiments.studies.comparison.session import (
    HEADER,
    TARGETS,
    Request,
    load_targets,
    set_targets,
)
from experiments.studies.comparison.settings import load


@pytest.fixture
def request_(tmp_path: Path, training) -> Request:
    training.rows = rows_of
    return tiny_request(tmp_path)


def check(request: Request, **changes: object) -> dict:
    protocol = replace(load("small", request.configs), **changes)
    runs = {w.dataset: target_runs(protocol, w, request.where) for w in protocol.of(())}
    return load_targets(protocol, runs)


def test_a_target_is_the_median_of_the_bests_and_says_where_it_comes_from(request_):
    path = set_targets(request_, lambda line: None)
    text = path.read_text()
    assert text.startswith(HEADER)
    entry = yaml.safe_load(text)["circle"]
    bests = [value for own in entry["best"].values() for value in own]
    assert len(bests) == 4
    middle = sorted(bests)[1:3]
    assert entry["target"] == pytest.approx(sum(middle) / 2, abs=1e-4)
    assert check(request_)["circle"].value == entry["target"]
    assert entry["seconds"] == 1.5
    assert entry["seeds"] == [500, 501]
    assert set(entry["experiments"].values()) == {"figure-6/circle-adam", "figure-6/circle-sgd"}
    folders = {path.parent.name for path in request_.output_dir.glob("*/*/*/*/seed-500")}
    assert set(entry["records"].values()) == folders
    assert entry["device"] == "CPU, 2 threads"
    assert len(entry["commit"]) == 40


def test_other_data_sets_keep_their_targets_and_a_target_is_a_number(request_):
    path = set_targets(request_, lambda line: None)
    other = {"moons": {"target": 1.0}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **other}))
    set_targets(request_, lambda line: None)
    content = yaml.safe_load(path.read_text())
    assert content["moons"] == {"target": 1.0}
    content["circle"]["target"] = "high"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="circle has no numbers target and stop_at"):
        check(request_)


def test_without_targets_nothing_is_compared(request_):
    with pytest.raises(
        ConfigError, match=r"targets.yaml is missing; first set the targets: python"
    ):
        check(request_)
    (request_.configs / TARGETS).write_text("moons: {target: 1.0}\n")
    with pytest.raises(ConfigError, match=r"has no target for circle; set it: .* circle"):
        check(request_)
    (request_.configs / TARGETS).write_text("- circle\n")
    with pytest.raises(ConfigError, match="holds no targets"):
        check(request_)


@pytest.mark.parametrize("key", ["seconds", "eval_every_s", "overrides"])
def test_targets_of_other_settings_are_refused(request_, key):
    set_targets(request_, lambda line: None)
    check(request_)
    path = request_.configs / "small.yaml"
    content = yaml.safe_load(path.read_text())
    spec = content["workloads"]["circle"]
    spec[key] = ["trainer.batch_size=31"] if key == "overrides" else 2 * spec[key]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"target of circle came from other settings .* again"):
        check(request_)
