"""Downloads of the UEA archive: verified, taken apart by file name only, and refused otherwise."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from experiments.data import uea_archive
from experiments.data.download import Checksum
from experiments.errors import DataError

FILES = {"Made_TRAIN.ts": b"train " * 50, "Made_TEST.ts": b"test " * 50}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def archive(server, monkeypatch):
    """The server as the archive's only mirror."""
    monkeypatch.setattr(uea_archive, "MIRRORS", (server.url + "/{name}.zip",))
    return server


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def know(monkeypatch, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        value = Checksum("sha256", hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(uea_archive.CHECKSUMS, name, value)


def test_known_files_are_unpacked_and_verified(archive, tmp_path: Path, monkeypatch) -> None:
    archive.bodies["/Made.zip"] = zipped({"readme.txt": b"no", **FILES})
    know(monkeypatch, FILES)
    paths = uea_archive.fetch("Made", tmp_path, allow_unverified=False)
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert files_below(tmp_path) == ["Made/Made_TEST.ts", "Made/Made_TRAIN.ts"]


def test_an_unknown_problem_is_refused_before_a_byte_is_asked_for(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped(FILES)
    with pytest.raises(DataError, match=r"no checksum is known.*dataset\.allow_unverified=true"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=False)
    assert not archive.hits
    uea_archive.fetch("Made", tmp_path, allow_unverified=True)
    assert len(files_below(tmp_path)) == 2


def test_a_wrong_checksum_leaves_nothing_behind(archive, tmp_path: Path, monkeypatch) -> None:
    know(monkeypatch, FILES)
    archive.bodies["/Made.zip"] = zipped({name: content + b"!" for name, content in FILES.items()})
    with pytest.raises(DataError, match="wrong sha256 checksum"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=False)
    assert files_below(tmp_path) == []


def test_a_member_outside_its_folder_goes_where_it_belongs(archive, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    hostile = {"../../evil.txt": b"evil", "/etc/../Made_TRAIN.ts": FILES["Made_TRAIN.ts"]}
    archive.bodies["/Made.zip"] = zipped(hostile | {"../Made_TEST.ts": FILES["Made_TEST.ts"]})
    uea_archive.fetch("Made", root, allow_unverified=True)
    assert files_below(tmp_path) == [
        "deep/root/Made/Made_TEST.ts",
        "deep/root/Made/Made_TRAIN.ts",
    ]


def test_a_member_that_is_too_large(archive, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(uea_archive, "LARGEST", 10)
    archive.bodies["/Made.zip"] = zipped(FILES)
    with pytest.raises(DataError, match="would unpack to 300 bytes"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=True)


def test_no_network_says_what_to_do_instead(archive, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put Made_TRAIN\.ts and Made_TEST\.ts into .*Made$"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=True)
    assert files_below(tmp_path) == []


def test_an_archive_without_the_files(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped({"Made_TRAIN.ts": b"x", "Made_TEST.arff": b"x"})
    with pytest.raises(DataError, match=r"Made_TEST\.ts is not in the downloaded archive"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=True)


def test_damaged_archives(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = b"<html>not found</html>"
    with pytest.raises(DataError, match=r"archive downloaded for Made_TRAIN\.ts is damaged"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=True)
    whole = zipped(FILES)
    archive.bodies["/Made.zip"] = whole.replace(b"train train", b"train drain", 1)
    with pytest.raises(DataError, match="damaged: Bad CRC-32"):
        uea_archive.fetch("Made", tmp_path, allow_unverified=True)
    assert files_below(tmp_path) == []


def test_the_published_checksums_are_used(tmp_path: Path) -> None:
    path = tmp_path / "ArticularyWordRecognition_TEST.ts"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="expected 0a559bc59ec12ed786d4096ff6f17701"):
        uea_archive.verify((path.with_name("Unknown_TRAIN.ts"), path))
