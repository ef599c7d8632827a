"""The W&B mirror: the same series as the record, also after a kill; clear errors when online."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import make_config, run_elsewhere

from experiments.base.errors import ConfigError, TrackingError
from experiments.run import tracking
from experiments.run.config import identity, run_folder
from experiments.run.records import Record
from experiments.run.run import run
from experiments.run.tracking import Tracker, make_tracker, mirror_all

wandb = pytest.importorskip("wandb")


def offline_config(tmp_path: Path, **trainer: Any) -> dict[str, Any]:
    config = make_config(tmp_path, **trainer)
    config["tracking"] = {"name": "wandb", "mode": "offline", "project": "test", "entity": None}
    return config


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the records of a .wandb file: a 7-byte header, then LevelDB's log format."""
    data, block = path.read_bytes(), 32768
    assert data[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(data):
        room = block - position % block
        if room < 7:  # too short for a chunk's header: the rest of the block is padding
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or last of several
            yield whole
            whole = b""


def mirrored(folder: Path) -> tuple[list[dict[str, Any]], Any, list[Any]]:
    """Return the logged rows, the run message and the metric definitions of an offline run."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, run_message, metrics = [], None, []
    for chunk in chunks(path):
        record = protocol.Record()
        record.ParseFromString(chunk)
        if record.HasField("history"):
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
        if record.HasField("run"):
            run_message = record.run
        if record.HasField("metric"):
            metrics.append(record.metric)
    return rows, run_message, metrics


def test_the_offline_files_hold_the_series_of_the_record(tmp_path):
    config = offline_config(tmp_path, log_every=1)
    folder = run(config).folder
    rows, message, metrics = mirrored(folder)
    assert rows == Record(folder).rows()
    assert len(rows) == 14
    assert message.run_id == f"{identity(config)}-3"
    assert (message.run_group, message.job_type, message.project) == ("tiny", "sgd", "test")
    assert any(m.glob_name == "*" and m.step_metric == "time/train_s" for m in metrics)


def test_after_a_kill_there_is_one_directory_with_the_whole_series(tmp_path):
    config = offline_config(tmp_path)
    process = run_elsewhere(config, FAULT_KILL_AT="9")
    assert process.returncode == -signal.SIGKILL, process.stderr
    folder = run_folder(config)
    (stale,) = folder.glob("wandb/offline-run-*")
    marker = stale / "marker"
    marker.write_text("of the killed process")
    run(config)
    rows, _, _ = mirrored(folder)  # unpacks exactly one file
    assert rows == Record(folder).rows()
    assert not marker.exists()


def test_two_runs_in_one_process_are_two_runs(tmp_path):
    first, second = offline_config(tmp_path), {**offline_config(tmp_path), "seed": 4}
    for config in (first, second):
        rows, message, _ = mirrored(run(config).folder)
        assert message.run_id.endswith(f"-{config['seed']}")
        assert rows == Record(run_folder(config)).rows()
    assert wandb.run is None


def test_wandb_is_quiet_and_stays_in_the_run_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run(offline_config(tmp_path / "outputs"))
    text = capfd.readouterr()
    assert "wandb" not in text.err
    assert len(text.out.splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_none_writes_nothing(tmp_path):
    config = make_config(tmp_path)
    assert type(make_tracker(config, tmp_path)) is Tracker
    assert not (run(config).folder / "wandb").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mlflow"}, "tracking.name must be one of wandb, none"),
        ({"mode": "onlin"}, "tracking.mode must be one of offline, online"),
    ],
)
def test_wrong_values_list_the_valid_ones(tmp_path, changes, message):
    config = offline_config(tmp_path)
    config["tracking"].update(changes)
    with pytest.raises(ConfigError, match=message):
        run(config)
    assert not run_folder(config).exists()


@pytest.fixture
def online(tmp_path, monkeypatch) -> dict[str, Any]:
    """An online configuration on a machine without any W&B settings or network."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refuses
    wandb.teardown()
    config = offline_config(tmp_path / "outputs")
    config["tracking"]["mode"] = "online"
    return config


def test_online_without_a_key(online, capfd):
    with pytest.raises(TrackingError, match=r"no key: run `wandb login` .*mode=offline"):
        run(online)
    assert not run_folder(online).exists()
    assert "wandb:" not in capfd.readouterr().err


def test_online_without_a_network(online, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    with pytest.raises(TrackingError, match=r"cannot be reached at http://127.0.0.1:9"):
        run(online)
    assert not run_folder(online).exists()


def test_wandb_refusing_to_start_is_a_tracking_error(tmp_path, monkeypatch):
    def refuse(**_: object) -> None:
        raise wandb.errors.CommError("no room\nat the inn")

    monkeypatch.setattr(wandb, "init", refuse)
    config = offline_config(tmp_path)
    with pytest.raises(TrackingError, match=r"start: no room; tracking=none trains"):
        run(config)
    assert Record(run_folder(config)).state == "failed"


class LostRun:
    """A W&B run whose service is gone when it ends."""

    def __init__(self) -> None:
        self.summary: dict[str, str] = {}

    def define_metric(self, *_: object, **__: object) -> None:
        pass

    def log(self, *_: object, **__: object) -> None:
        pass

    def finish(self, **_: object) -> None:
        raise OSError("the service is gone")


def test_a_mirror_that_fails_at_the_end_is_a_warning(tmp_path, monkeypatch, capsys):
    """The record is complete without it; and it does not hide what ended the run."""
    monkeypatch.setattr(wandb, "init", lambda **_: LostRun())
    assert run(offline_config(tmp_path / "done")).state == "done"
    warned = "warning: W&B lost the end of the run: the service is gone"
    assert capsys.readouterr().out.count(warned) == 1
    monkeypatch.setenv("FAULT_BUG_AT", "3")
    config = offline_config(tmp_path / "failed")
    with pytest.raises(RuntimeError, match="a bug"):
        run(config)
    assert Record(run_folder(config)).state == "failed"
    assert capsys.readouterr().out.count(warned) == 1


def test_a_run_without_mirror_is_mirrored_from_its_record(tmp_path, monkeypatch):
    """Whether W&B was off, or offline and its files half there: the same series in the end."""
    monkeypatch.setenv("WANDB_MODE", "offline")  # what would go online
    off = run(make_config(tmp_path / "off", log_every=1)).folder
    said: list[str] = []
    assert mirror_all([tmp_path / "off"], said.append) == 1
    assert said == [f"{off}: 14 lines"]
    rows, message, _ = mirrored(off)
    assert rows == Record(off).rows()
    assert (message.run_id, message.project) == (f"{off.parent.name}-3", "snopt")
    # of one that has its files already they are made again: one folder, the project of its own
    offline = run(offline_config(tmp_path / "offline")).folder
    with Record(off).locked():
        assert mirror_all([off, offline], said.append) == 1
    assert said[1] == f"{off}: is being trained, left out"
    rows, message, _ = mirrored(offline)
    assert (rows, message.project) == (Record(offline).rows(), "test")


def test_what_is_online_already_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: LostRun())
    monkeypatch.setattr(LostRun, "finish", lambda *_, **__: None)
    monkeypatch.setattr(tracking, "check_online", lambda hint: None)
    run(make_config(tmp_path / "off"))
    online = offline_config(tmp_path / "on")
    online["tracking"]["mode"] = "online"
    run(online)
    assert mirror_all([tmp_path], print) == 1
    assert mirror_all([tmp_path], print) == 0


def test_mirroring_nothing_is_an_error(online, tmp_path, monkeypatch):
    with pytest.raises(TrackingError, match=r"no run in .*absent: give the output_dir of runs"):
        mirror_all([tmp_path / "absent"], print)
    run(make_config(tmp_path / "off"))
    with pytest.raises(TrackingError, match=r"no key: run `wandb login`.*; then do this again"):
        mirror_all([tmp_path], print)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(ConfigError, match="switches W&B off: unset WANDB_DISABLED and WANDB_MODE"):
        mirror_all([tmp_path], print)


@pytest.mark.parametrize(
    ("name", "value", "tracked"),
    [
        ("WANDB_MODE", "disabled", False),
        ("WANDB_DISABLED", "true", False),
        ("WANDB_MODE", "dryrun", True),
        ("WANDB_DISABLED", "false", True),
    ],
)
def test_the_environment_goes_before_the_configuration(tmp_path, monkeypatch, name, value, tracked):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_PROJECT", "of the machine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    config = offline_config(tmp_path / "outputs")
    folder = run(config).folder
    assert not (folder / "wandb").exists()
    if tracked:
        assert mirrored(tmp_path / "elsewhere")[1].project == "of the machine"
    else:
        assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "of line")
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    with pytest.raises(ConfigError, match=r"WANDB_MODE=of line; valid: offline, online, disabled"):
        make_tracker(config, folder)
