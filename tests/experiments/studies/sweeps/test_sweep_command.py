"""scripts/sweep.py: exit statuses and messages; what it starts is a stub."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stub_sweep import Inline, attempts, make_sweep, train

from experiments.run.records import Record
from experiments.studies.sweeps import drive as driving

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "sweep.py"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Give a function that runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("sweep_command", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        status: int = module.main()
        return status

    call.module = module  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search=snop", "trials=1"], "unknown search 'snop' (did you mean snopt?)"),
        (["search=adam", "dataset=digts", "trials=1"], "did you mean digits?"),
        (["search=adam", "trials=0"], "trials must be at least 1, got 0"),
        (["status"], "there is no sweep in outputs/sweeps"),
        (["status", "nowhere"], "there is no sweep in nowhere"),
        (["export", "a", "b"], "one folder at most"),
        (["export", "a", "method=grid"], "unknown method 'grid'"),
    ],
    ids=["search", "dataset", "trials", "none", "nowhere", "folders", "method"],
)
def test_wrong_input_is_one_line_and_status_2(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_says_how(command, capsys):
    assert command("--help") == 0
    assert command() == 2
    assert "python scripts/sweep.py status" in capsys.readouterr().out


def test_failures_are_listed_with_their_first_line(command, tmp_path, monkeypatch, capsys):
    sweep = make_sweep(tmp_path / "s", [["done"], ["failed"], ["crash", "done"]])
    inline = Inline(sweep)
    monkeypatch.setattr(driving, "start", inline.start)
    monkeypatch.setattr(command.module, "obtain", lambda request: sweep)
    real = command.module.drive
    monkeypatch.setattr(
        command.module, "drive", lambda *a: real(*a, train=train(sweep), poll_s=0.02)
    )
    assert command("search=adam", "trials=3") == 2
    out, errors = capsys.readouterr()
    assert "best points" in out
    assert errors == (
        "error: 1 of 3 runs failed:\n  point 1 (lr=0.2), seed 0: OSError: disk full\n"
    )
    assert (sweep.folder / "results.csv").is_file()
    assert command("status", str(sweep.folder)) == 0
    text = capsys.readouterr().out
    assert "adam on digits: 3 runs in" in text
    assert "2 done, 1 failed" in text
    assert "failed: point 1 (lr=0.2), seed 0: OSError: disk full" in text
    assert attempts(sweep) == [1, 2, 2]  # a look at the status starts nothing


def test_status_reads_records_alone(command, tmp_path, capsys):
    sweep = make_sweep(tmp_path / "s", [["done"], ["done"]])
    record = Record(sweep.runs[0].folder)
    record.folder.mkdir(parents=True)
    record.write_status("interrupted", error="SIGINT")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert command("status", str(sweep.folder)) == 0
    assert "1 waiting, 1 interrupted; time left: unknown" in capsys.readouterr().out
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_an_interrupted_sweep_says_how_to_go_on(command, tmp_path, monkeypatch, capsys):
    sweep = make_sweep(tmp_path / "s", [["done"]])

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.module, "obtain", lambda request: sweep)
    monkeypatch.setattr(command.module, "drive", stopped)
    assert command("search=adam", "trials=1") == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_export_writes_the_spaces(command, tmp_path, capsys):
    assert command("export", "spaces", "method=bayes") == 0
    assert "W&B sweep files in spaces" in capsys.readouterr().out
    assert (tmp_path / "spaces" / "snopt.yaml").is_file()
