"""A whole comparison: what is trained, what a second call adds, what is drawn from one file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from synthetic_protocol import SMALL, rows_of, tiny, tiny_request
from synthetic_runs import whole_comparison

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, RecordError
from experiments.studies.comparison.report import FILES, draw
from experiments.studies.comparison.rows import read_rows, table_of, write_rows
from experiments.studies.comparison.session import Request, compare, set_targets
from tests.experiments.figures.asking import quiet

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "compare.py")]


def test_a_comparison_is_trained_once_and_summarised(tmp_path, training):
    request = tiny_request(tmp_path)
    training.rows = rows_of
    set_targets(request, quiet)
    assert len(training.trained) == 4
    assert compare(request, quiet).folder == request.folder == tmp_path / "results" / "protocol"
    table = read_rows(request.folder / "runs.csv")
    rows = [SimpleNamespace(**row) for row in table.to_dict("records")]
    assert len(training.trained) == 4 + 4 + 4  # two optimizers: two trials, two fresh seeds
    assert [(r.optimizer, r.role, r.study, r.trial, r.seed) for r in rows[:4]] == [
        ("adam", "search", 0, 0, 300),
        ("adam", "search", 0, 1, 300),
        ("sgd", "search", 0, 0, 300),
        ("sgd", "search", 0, 1, 300),
    ]
    for name in ("adam", "sgd"):
        own = [r for r in rows if r.optimizer == name]
        best = min(own[:2], key=lambda r: (r.seconds, r.last))
        again = [r for r in own if r.role == "fresh"]
        assert [r.seed for r in again] == [400, 401]
        assert all(r.settings == best.settings for r in again)
    path = request.folder / "runs.csv"
    assert len(read_rows(path)) == 8
    before = path.read_bytes()
    # a record that was lost is made again, nothing else is
    lost = next(request.output_dir.glob("*/*/sgd/*/seed-400"))
    shutil.rmtree(lost)
    compare(request, quiet)
    assert len(training.trained) == 13
    assert path.read_bytes() == before
    # a run that fails is named, and nothing is summarised
    shutil.rmtree(lost)
    training.state = "failed"
    said = r"nothing is compared, 1 of 4 runs failed:\n.*seed 400: no"
    with pytest.raises(RecordError, match=said):
        compare(request, quiet)
    assert path.read_bytes() == before


def test_data_sets_can_be_chosen_and_wrong_requests_are_named(tmp_path, training):
    request = tiny_request(tmp_path)
    with pytest.raises(ConfigError, match="first set the targets"):
        compare(request, quiet)
    with pytest.raises(ConfigError, match="--jobs must be at least 1"):
        Request(jobs=0)
    assert training.trained == []
    assert Request().folder == Path("results/protocol")
    assert Request(budget="full").folder == Path("results/protocol-full")


def test_a_part_of_the_data_sets_does_not_replace_the_whole(tmp_path, training):
    parts = Path("results/parts")
    assert Request(datasets=("digits",)).folder == parts / "protocol-digits"
    assert Request(datasets=("circle", "digits", "japanese_vowels")).folder.name == "protocol"
    mnist = Request(budget="full", datasets=("mnist",))
    assert mnist.folder == parts / "protocol-full-mnist"
    assert mnist.command == "python scripts/compare.py run mnist --budget full --jobs 1"
    # nor does what is there while another data set is missing
    request, training.rows = tiny_request(tmp_path), rows_of
    absent = {"mnist": {"overrides": ["dataset.download=false"]}}
    changed = {"datasets": ["circle", "mnist"], "workloads": {**SMALL["workloads"], **absent}}
    (request.configs / "small.yaml").write_text(yaml.safe_dump({**SMALL, **changed}))
    training.rows = rows_of
    set_targets(request, quiet)
    assert compare(request, quiet).folder == request.results_dir / "parts" / "protocol-circle"
    assert not request.folder.exists()


def test_everything_is_drawn_from_one_file(tmp_path):
    rows = whole_comparison(["snopt", "adam", "sgd", "kfac"], ["digits", "circle"])
    folders = [tmp_path / name for name in ("first", "second")]
    said: list[str] = []
    for folder in folders:
        folder.mkdir()
        write_rows(folder / "runs.csv", table_of(rows))
        draw(folder, "a command", said.append)
        assert {path.name for path in folder.iterdir()} == {*FILES, "runs.csv"}
    for name in FILES:
        first, second = ((folder / name).read_bytes() for folder in folders)
        if name == "provenance.json":
            kept = [json.loads(text) for text in (first, second)]
            for one in kept:
                one.pop("drawn")
            assert kept[0] == kept[1]
            assert kept[0]["runs"]["number"] == len(rows)
            assert kept[0]["seeds"] == [300, 301, 302, 400, 401, 402]
            assert kept[0]["fresh_seeds"] == [400, 401, 402]
            assert kept[0]["runs"]["commits"] == [{"commit": "0" * 40, "runs": len(rows)}]
        else:
            assert first == second, name
    assert said[0] == (
        "warning: best setting on the border of its search space:"
        " Circle · SGD: lr at its upper end (0.03)"
    )
    table = (folders[0] / "table.md").read_text()
    assert "(!) On the border of its space: SGD: lr at its upper end (0.03)." in table
    assert "| SGD | missed | 0 of 3 |" in table
    assert "CPU, 1 thread, 2 runs at a time; 3 studies of 3 trials each." in table
    pictures = [(folders[0] / name).stat().st_size for name in ("profile.png", "speedup.png")]
    assert min(pictures) > 20_000


def test_a_comparison_that_all_missed_can_be_drawn(tmp_path):
    rows = whole_comparison(["sgd"], ["digits"])
    write_rows(tmp_path / "runs.csv", table_of(rows))
    draw(tmp_path, "a command", quiet)
    table = (tmp_path / "table.md").read_text()
    assert "| SGD | 0.00 | 0.00 | 0.00 | 0.00 | 1.00 (1.00 to 1.00) | – |" in table
    assert "1 of 1 | 3 of 3 |" in table


def test_the_committed_results_come_from_the_committed_file(tmp_path):
    folder = REPOSITORY / "results" / "protocol"
    if not (folder / "runs.csv").is_file():
        pytest.skip("results/protocol is not there")
    shutil.copy(folder / "runs.csv", tmp_path)
    draw(tmp_path, "a command", quiet)
    for name in ("table.md", "data.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name


def run_script(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    """The script itself on a tiny Circle: kill -9 in the middle, then the same command again."""
    configs, outputs = tiny(tmp_path / "configs"), tmp_path / "outputs"
    places = ["--configs", configs, "--output-dir", outputs, "--results-dir", tmp_path / "results"]
    arguments = [str(place) for place in places]
    refused = run_script(["run", *arguments])
    assert refused.returncode == 2
    assert "first set the targets" in refused.stderr
    done = run_script(["targets", *arguments])
    assert done.returncode == 0, done.stderr
    with subprocess.Popen([*SCRIPT, "run", *arguments], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(outputs.glob("*/*/*/*/seed-300/metrics.jsonl"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    done = run_script(["run", *arguments])
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "results" / "protocol" / "runs.csv")
    assert len(rows) == 8
    assert (rows["state"] == "done").all()
    assert (rows["total_steps"] > 0).all()
    for status in outputs.glob("*/*/*/*/*/status.json"):
        assert json.loads(status.read_text())["starts"] == 1  # orphans were waited for
    assert set(FILES) <= {path.name for path in (tmp_path / "results" / "protocol").iterdir()}
    again = run_script(["run", *arguments])
    assert "4 of 4 trials are done already" in again.stdout
    assert again.returncode == 0
