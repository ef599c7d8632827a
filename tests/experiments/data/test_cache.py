"""Cached tensors: for the same sources and options only, and never from a damaged file."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.base.errors import RecordError
from experiments.data import cache as module
from experiments.data import uea
from experiments.data.cache import cache_folder, cached
from experiments.data.splits import DataInfo, Splits


def made(offset: float = 0.0) -> Splits:
    info = DataInfo("made", "time_series", (2, 3), 2, "a test")
    x = torch.arange(12).reshape(2, 2, 3) + offset
    part = (x, torch.tensor([2, 1]), torch.tensor([0, 1]))
    return Splits(info, part, part, part)


class Builder:
    """Counts how often it is asked to build."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Splits:
        self.calls += 1
        return made()


def same(a: Splits, b: Splits) -> bool:
    pairs = zip(a.items(), b.items(), strict=True)
    return a.info == b.info and all(
        torch.equal(x, y) and x.dtype == y.dtype
        for (_, left), (_, right) in pairs
        for x, y in zip(left, right, strict=True)
    )


def test_built_once_and_given_back_exactly(cache: Path) -> None:
    build = Builder()
    first, second = (cached("made", {"files": ["a"], "seed": 0}, build) for _ in range(2))
    assert build.calls == 1
    assert same(first, made())
    assert same(second, made())
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "key"), [("made", {"files": ["b"]}), ("made", {"seed": 1}), ("other", {})]
)
def test_other_sources_options_or_names_are_other_data(name: str, key: dict) -> None:
    build = Builder()
    usual = {"files": ["a"], "seed": 0}
    cached("made", usual, build)
    cached(name, usual | key, build)
    assert build.calls == 2


def test_other_code_is_other_data(monkeypatch) -> None:
    build = Builder()
    cached("made", {}, build)
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda package: "0")
        module.code.cache_clear()
        cached("made", {}, build)
    module.code.cache_clear()
    assert build.calls == 2
    cached("made", {}, build)
    assert build.calls == 2


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "garbage", "folder"])
def test_a_damaged_file_is_made_again(cache: Path, damage: str) -> None:
    build = Builder()
    cached("made", {}, build)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        # Half a tensor's bytes are as good as any others to a reader that does not check.
        bit = bytearray(content)
        bit[len(content) // 2] ^= 1
        path.write_bytes(
            {"truncated": content[:-9], "bit": bytes(bit), "empty": b"", "garbage": b"x\ny"}[damage]
        )
    assert same(cached("made", {}, build), made())
    assert build.calls == 2
    if damage != "folder":
        assert path.read_bytes() == content
        cached("made", {}, build)
        assert build.calls == 2


def test_the_file_of_another_key_is_not_believed(cache: Path) -> None:
    build = Builder()
    cached("made", {"seed": 0}, build)
    (first,) = cache.iterdir()
    cached("made", {"seed": 1}, build)
    (second,) = set(cache.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    cached("made", {"seed": 1}, build)
    assert build.calls == 3


def test_a_full_disk_costs_time_only(monkeypatch, cache: Path) -> None:
    def full(path: Path, content: bytes) -> None:
        raise RecordError(f"cannot write {path}: No space left on device")

    build = Builder()
    monkeypatch.setattr(module, "write_whole", full)
    assert same(cached("made", {}, build), made())
    assert list(cache.iterdir()) == []

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert same(cached("made", {}, build), made())


def test_where_it_lies(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNOPT_CACHE_DIR", "")
    build = Builder()
    for _ in range(2):
        cached("made", {}, build)
    assert (build.calls, cache_folder()) == (2, None)
    monkeypatch.delenv("SNOPT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "snopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "snopt"


def test_a_loader_uses_it_and_notices_a_changed_file(monkeypatch, write_problem) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    series = [generator.normal(size=(2, 4)) for _ in range(40)]
    labels = ["ab"[n % 2] for n in range(40)]
    folder = write_problem("Made", series, labels)
    first = uea.load(uea_name="Made", data_dir=folder)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patch:
        patch.setattr(uea, "read_ts", fail)
        assert same(uea.load(uea_name="Made", data_dir=folder), first)
        with pytest.raises(AssertionError, match="parsed again"):
            uea.load(uea_name="Made", data_dir=folder, split_seed=1)
        path = folder / "uea" / "Made" / "Made_TEST.ts"
        path.write_text(path.read_text() + "\n")
        with pytest.raises(AssertionError, match="parsed again"):
            uea.load(uea_name="Made", data_dir=folder)
    again = uea.load(uea_name="Made", data_dir=folder)
    assert same(replace(again, info=first.info), first)
    assert again.info.source != first.info.source
