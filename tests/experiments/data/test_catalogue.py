"""The data sets of ``configs/dataset``, and what ``scripts/data.py`` does with them."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from data_files import files_below, md5, zipped
from hydra.utils import get_method, instantiate

from experiments.data import catalogue
from experiments.data.files import Remote
from experiments.data.images import ImageOptions
from experiments.data.sources import Source
from experiments.data.splits import TASKS
from experiments.run.config import load_config, options, resolve

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "data.py"
PAPER = {
    *("mnist", "svhn", "cifar10", "character_trajectories", "articulary_word_recognition"),
    *("spoken_arabic_digits", "miniboone", "gas", "power", "hepmass"),
}
BODY = b"content " * 50_000


@pytest.fixture
def main() -> Callable[[list[str]], int]:
    """The command line of ``scripts/data.py``."""
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture
def sources(monkeypatch, server) -> None:
    """A small catalogue: a file with a checksum, a zip file without one, and an embedded one."""
    server.bodies["/one.bin"] = BODY
    server.bodies["/two.zip"] = zipped({"inside/two.txt": b"two"})
    remote = Remote("one.bin", (f"{server.url}/one.bin",), md5(BODY), len(BODY))
    one = Source("one", ("one", "."), ("one.bin",), (remote,))
    remote = Remote("two.zip", (f"{server.url}/two.zip",))
    two = Source("two", ("two",), ("two.txt",), (remote,), ("two.txt",), unpacked=3_000_000)
    other = replace(two, folders=("other",))
    made = {"one": {"file": one}, "two": {"zip": two, "other": other}, "circle": {}}
    monkeypatch.setattr(catalogue, "forms", lambda: made)


def test_all_names_the_data_sets_of_the_paper_once():
    assert set(catalogue.chosen("all")) == PAPER
    assert set(catalogue.sources()) - PAPER == {
        "cifar10_binary",
        "character_trajectories_uci",
        "spoken_arabic_digits_uci",
    }
    for name in ("digits", "japanese_vowels", "circle"):
        assert catalogue.chosen(name) == {}


@pytest.mark.parametrize("name", sorted(catalogue.sources()))
def test_every_source_is_complete(name, tmp_path):
    source = catalogue.sources()[name]
    assert source.files
    assert all(url.startswith("http") for remote in source.remotes for url in remote.urls)
    assert len(source.members) in (0, len(source.files))
    for relative in source.folders:
        assert not Path(relative).is_absolute()
        assert ".." not in Path(relative).parts
    assert source.find(tmp_path) is None
    assert source.verified() == (source.name not in ("CharacterTrajectories", "SpokenArabicDigits"))


def test_a_dry_run_says_size_and_place_and_asks_nobody(main, sources, server, tmp_path, capsys):
    assert main(["all", "--data-dir", str(tmp_path / "d"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"one: 400.0 kB to download, into {tmp_path / 'd' / 'one'}" in out
    assert "two: a download of unknown size, about 3.0 MB unpacked, no checksum is published" in out
    assert "in all about 3.4 MB and what is of unknown size, " in out
    assert " free; nothing was downloaded" in out
    assert not server.hits
    assert not (tmp_path / "d").exists()


def test_all_goes_on_after_a_refusal_and_says_so(main, sources, server, tmp_path, capsys):
    assert main(["all", "--data-dir", str(tmp_path)]) == 2
    caught = capsys.readouterr()
    assert "two: error: two: not in" in caught.out
    assert "one: 400.0 kB of 400.0 kB" in caught.out
    assert caught.err == "error: not there: two (reasons above)\n"
    assert files_below(tmp_path) == ["one/one.bin"]
    assert main(["all", "--data-dir", str(tmp_path), "--allow-unverified"]) == 0
    assert server.hits == {"/one.bin": 1, "/two.zip": 1}
    assert files_below(tmp_path) == ["one/one.bin", "two/SHA256SUMS", "two/two.txt"]
    assert main(["two", "--data-dir", str(tmp_path), "--dry-run"]) == 0
    assert f"two: there, in {tmp_path / 'two'}" in capsys.readouterr().out
    (tmp_path / "two" / "two.txt").write_text("changed")
    assert main(["two", "--data-dir", str(tmp_path)]) == 2
    assert "wrong sha256 checksum" in capsys.readouterr().err


def test_names(main, sources, tmp_path, capsys):
    assert main(["oen"]) == 2
    assert "unknown data set 'oen' (did you mean one?); valid: all, one, two, two_other" in (
        capsys.readouterr().err
    )
    assert main(["circle"]) == 0
    assert "circle needs no download" in capsys.readouterr().out


def resolved(name: str) -> dict:
    more = ["dataset.uea_name=Handwriting"] if name == "uea" else []
    return resolve(load_config([f"dataset={name}", *more]))["dataset"]


@pytest.mark.parametrize("name", options("dataset"))
def test_options_fit_the_loader(name):
    config = resolved(name)
    target, task = config.pop("_target_"), config.pop("task")
    assert task in TASKS
    given = inspect.signature(get_method(target)).bind(**config)
    assert set(given.arguments.get("options", ())) <= set(ImageOptions._fields)
    assert config["name"] == ("Handwriting" if name == "uea" else name)


@pytest.mark.parametrize("name", ["digits", "circle", "japanese_vowels", "basic_motions"])
def test_embedded_data_loads_from_its_config(name):
    config = resolved(name)
    task = config.pop("task")
    info = instantiate(config).info
    assert (info.name, info.task) == (name, task)
