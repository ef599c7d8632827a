"""Records: written whole or not at all, one process at a time, readable after a crash."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.run.records import DIVERGED, DONE, RUNNING, Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (tmp_path / "run").mkdir()
    return Record(tmp_path / "run")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let the kernel refuse to write more than 1000 bytes to any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_status_keeps_fields_and_names_its_states(record):
    assert record.status() is None
    assert record.state is None
    record.write_status(RUNNING, device="cpu")
    record.write_status(DONE, wall_s=1.5)
    assert record.status() == {"state": "done", "device": "cpu", "wall_s": 1.5}
    with pytest.raises(ValueError, match="unknown state"):
        record.write_status("finished")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"state": "finished"}',
        b'{"state": "don\xff"}',
        b'{"state": "done", "starts": "two"}',
        b'{"state": "done", "history": 3}',
    ],
)
def test_a_damaged_status_is_named(record, content):
    record.status_path.write_bytes(content)
    with pytest.raises(RecordError, match=r"status\.json"):
        record.status()


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    record = Record(tmp_path / "file" / "run")
    with pytest.raises(RecordError, match="cannot be a folder: a file is in its way"):
        record.status()
    with pytest.raises(RecordError, match="cannot use"), record.locked():
        pass


def test_a_full_disk_leaves_the_previous_file(tmp_path, full_disk):
    path = tmp_path / "checkpoint.pt"
    write_whole(path, b"old")
    with pytest.raises(RecordError, match=r"cannot write .*checkpoint\.pt: .*previous version"):
        write_whole(path, b"n" * 2000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_on_a_full_disk_are_a_record_error(record, full_disk):
    record.append({"step": 0})
    with pytest.raises(RecordError, match=r"cannot write .*metrics\.jsonl"):
        record.append({"step": 1, "note": "x" * 2000})
    assert record.rows() == [{"step": 0}]


def test_rows_must_be_json(record):
    with pytest.raises(ValueError, match="not finite: val/nll"):
        record.append({"step": 0, "val/nll": float("inf")})
    assert record.rows() == []


def test_a_last_line_that_was_cut_off_is_dropped(record):
    record.append({"step": 0})
    record.append({"step": 1})
    with record.metrics_path.open("a") as file:
        file.write('{"step": 2, "train/l')
    assert [row["step"] for row in record.rows()] == [0, 1]
    assert [row["step"] for row in record.truncate(1)] == [0, 1]
    assert record.metrics_path.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"st', "Unterminated"),
        (b'{"step": 0, "note": "\xff"}', "utf-8"),
        (b'{"step": "0"}', "no step"),
        (b'{"step": 0, "val/loss": "low"}', "val/loss is 'low'"),
        (b'{"step": 0, "val/loss": NaN}', "val/loss is nan"),
        (b"[0]", "no step"),
    ],
)
def test_a_line_that_no_run_writes_is_an_error(record, line, reason):
    record.metrics_path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(RecordError, match=rf"line 2 is damaged \(.*{reason}.*trainer.restart=true"):
        record.rows()


def test_metrics_that_are_a_folder_are_an_error(record):
    record.metrics_path.mkdir()
    with pytest.raises(RecordError, match=r"cannot read .*metrics.jsonl: Is a directory"):
        record.rows()


def test_lines_that_a_checkpoint_goes_on_from_must_be_there(record):
    with pytest.raises(RecordError, match=r"end with step 4, it has none\); put the file back, or"):
        record.truncate(5, 4)
    record.append({"step": 0})
    record.append({"step": 2})
    with pytest.raises(RecordError, match="end with step 4, its last line is of step 2"):
        record.truncate(5, 4)
    assert [row["step"] for row in record.rows()] == [0, 2]
    record.append({"step": 4})
    assert [row["step"] for row in record.truncate(5, 4)] == [0, 2, 4]


def test_results_of_a_record_that_is_not_whole(record):
    record.write_status(DONE)
    with pytest.raises(RecordError, match=r"is done, but its metrics.jsonl is gone"):
        record.results()
    record.append({"step": 0, "val/loss": 1.0})
    with pytest.raises(RecordError, match=r"is done, but its metrics.jsonl does not end in test"):
        record.results()
    record.write_status(DIVERGED)
    assert record.results() == {}
    record.write_status(DONE)
    record.append({"step": 0, "test/loss": 1.0})
    assert record.results() == {"test/loss": 1.0}


def test_truncate_forgets_what_the_resumed_run_writes_again(record):
    rows = [{"step": 0}, {"step": 5}, {"step": 5, "test/loss": 1.0}, {"step": 6}]
    record.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert record.truncate(5) == [{"step": 0}, {"step": 5}]
    assert record.rows() == [{"step": 0}, {"step": 5}]
    assert record.truncate(None) == []
    assert record.rows() == []


def test_only_one_process_holds_a_run(record):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from experiments.run.records import Record\n"
            "with Record(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)",
            str(record.folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        expected = f"being trained by process {holder.pid}"
        with pytest.raises(RecordError, match=expected), record.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with record.locked():  # kill -9 leaves the file, not the lock
        assert f"process {os.getpid()} " in record.lock_path.read_text()
    assert not record.lock_path.exists()


def test_a_lock_removes_leftovers_and_clear_all_but_the_lock(record):
    leftover = record.folder / ".checkpoint.pt.123.tmp"
    leftover.write_text("half")
    record.write_status(DONE)
    (record.folder / "wandb" / "offline").mkdir(parents=True)
    with record.locked():
        assert not leftover.exists()
        record.clear()
        assert list(record.folder.iterdir()) == [record.lock_path]
