"""Cached tensors: for the same sources and options only, and never from a damaged file."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from experiments.base.errors import RecordError
from experiments.data import cache as module
from experiments.data import uea
from experiments.data.cache import cache_folder, cached
from experiments.data.files import noting
from experiments.data.splits import DataInfo, Splits

KEY = {"files": ["a"], "seed": 0}


@pytest.fixture
def build() -> Mock:
    """Builds a small data set, and counts how often it is asked to."""
    part = (torch.arange(12.0).reshape(2, 2, 3), torch.tensor([2, 1]), torch.tensor([0, 1]))
    info = DataInfo("made", "time_series", (2, 3), 2, "a test")
    return Mock(side_effect=lambda: Splits(info, part, part, part))


def same(a: Splits, b: Splits) -> bool:
    pairs = zip(a.items(), b.items(), strict=True)
    return a.info == b.info and all(
        torch.equal(x, y) and x.dtype == y.dtype
        for (_, left), (_, right) in pairs
        for x, y in zip(left, right, strict=True)
    )


def test_built_once_and_given_back_exactly(cache, build):
    first, second = (cached("made", KEY, build) for _ in range(2))
    assert build.call_count == 1
    assert same(first, build())
    assert same(second, first)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "key"), [("made", {"files": ["b"]}), ("made", {"seed": 1}), ("other", {})]
)
def test_other_sources_options_or_names_are_other_data(build, name, key):
    cached("made", KEY, build)
    cached(name, KEY | key, build)
    assert build.call_count == 2


def test_other_code_is_other_data(monkeypatch, build):
    cached("made", {}, build)
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda package: "0")
        module.code.cache_clear()
        cached("made", {}, build)
    module.code.cache_clear()
    assert build.call_count == 2
    cached("made", {}, build)
    assert build.call_count == 2


def flip(content: bytes) -> bytes:
    """Half a tensor's bytes are as good as any others to a reader that does not check."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damaged", [flip, lambda content: content[:-9], lambda _: b"", lambda _: b"x\ny"]
)
def test_a_damaged_file_is_made_again(cache, build, damaged):
    whole = cached("made", {}, build)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.write_bytes(damaged(content))
    assert same(cached("made", {}, build), whole)
    assert path.read_bytes() == content
    cached("made", {}, build)
    assert build.call_count == 2


def test_the_file_of_another_key_is_not_believed(cache, build):
    cached("made", {"seed": 0}, build)
    (first,) = cache.iterdir()
    cached("made", {"seed": 1}, build)
    (second,) = set(cache.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    cached("made", {"seed": 1}, build)
    assert build.call_count == 3


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, cache, build):
    whole = cached("made", {}, build)
    (path,) = cache.iterdir()
    path.unlink()
    path.mkdir()
    assert same(cached("made", {}, build), whole)
    path.rmdir()
    monkeypatch.setattr(
        module, "write_whole", Mock(side_effect=RecordError("No space left on device"))
    )
    assert same(cached("made", {}, build), whole)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(
        Path, "mkdir", Mock(side_effect=PermissionError(errno.EACCES, "no permission"))
    )
    assert same(cached("made", {}, build), whole)


def test_where_it_lies(monkeypatch, tmp_path, build):
    monkeypatch.setenv("SNOPT_CACHE_DIR", "")
    for _ in range(2):
        cached("made", {}, build)
    assert (build.call_count, cache_folder()) == (2, None)
    monkeypatch.delenv("SNOPT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "snopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "snopt"


def test_a_loader_uses_it_and_notices_a_changed_file(monkeypatch, write_problem):
    series = list(np.random.default_rng(0).normal(size=(40, 2, 4)))
    folder = write_problem("Made", series, ["ab"[n % 2] for n in range(40)])
    with noting() as parsed:
        first = uea.load(uea_name="Made", data_dir=folder)
    assert parsed.keys() == {"Made_TRAIN.ts", "Made_TEST.ts"}
    with monkeypatch.context() as patch:
        patch.setattr(uea, "read_ts", Mock(side_effect=AssertionError("parsed again")))
        with noting() as found:
            assert same(uea.load(uea_name="Made", data_dir=folder), first)
        assert found == parsed
        with pytest.raises(AssertionError, match="parsed again"):
            uea.load(uea_name="Made", data_dir=folder, split_seed=1)
        path = folder / "uea" / "Made" / "Made_TEST.ts"
        path.write_text(path.read_text() + "\n")
        with pytest.raises(AssertionError, match="parsed again"):
            uea.load(uea_name="Made", data_dir=folder)
    with noting() as other:
        again = uea.load(uea_name="Made", data_dir=folder)
    assert [name for name in parsed if other[name] != parsed[name]] == ["Made_TEST.ts"]
    assert same(replace(again, info=first.info), first)
    assert again.info.source != first.info.source
