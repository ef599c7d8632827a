"""Downloads of the UEA archive: verified, or allowed by hand and recorded, or refused."""

from __future__ import annotations

import hashlib
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.base.errors import DataError
from experiments.data import uea_archive
from experiments.data.checksum import Checksum
from experiments.data.sources import obtain, verify

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


def fetch(root: Path, allow_unverified: bool) -> Path:
    return obtain(uea_archive.source("Made"), root, allow_unverified=allow_unverified)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def know(monkeypatch, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        value = Checksum("sha256", hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(uea_archive.CHECKSUMS, name, value)


def test_known_files_are_unpacked_and_verified(archive, tmp_path: Path, monkeypatch) -> None:
    archive.bodies["/Made.zip"] = zipped({"readme.txt": b"no", **FILES})
    know(monkeypatch, FILES)
    folder = fetch(tmp_path, allow_unverified=False)
    assert [(folder / name).read_bytes() for name in FILES] == list(FILES.values())
    assert files_below(tmp_path) == ["uea/Made/Made_TEST.ts", "uea/Made/Made_TRAIN.ts"]


def test_an_unknown_problem_is_refused_before_a_byte_is_asked_for(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped(FILES)
    with pytest.raises(DataError, match=r"no checksum is known.*dataset\.allow_unverified=true"):
        fetch(tmp_path, allow_unverified=False)
    assert not archive.hits


def test_what_was_trusted_once_has_to_stay_what_it_was(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped(FILES)
    folder = fetch(tmp_path, allow_unverified=True)
    sums = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES))
    assert (folder / "SHA256SUMS").read_text() == sums
    assert sorted(p.name for p in folder.iterdir()) == [
        "Made_TEST.ts",
        "Made_TRAIN.ts",
        "SHA256SUMS",
    ]
    verify(uea_archive.source("Made"), folder)
    (folder / "Made_TEST.ts").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"Made_TEST\.ts: wrong sha256 .*delete its line in .*SUMS"):
        verify(uea_archive.source("Made"), folder)
    (folder / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(DataError, match="SHA256SUMS: cannot be read"):
        verify(uea_archive.source("Made"), folder)


def test_two_processes_that_want_the_same(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped(FILES)
    with ThreadPoolExecutor(4) as pool:
        both = [pool.submit(fetch, tmp_path, True) for _ in range(4)]
        assert {future.result(20) for future in both} == {tmp_path / "uea" / "Made"}
    names = ["uea/Made/Made_TEST.ts", "uea/Made/Made_TRAIN.ts", "uea/Made/SHA256SUMS"]
    assert files_below(tmp_path) == names


def test_a_wrong_checksum_leaves_nothing_behind(archive, tmp_path: Path, monkeypatch) -> None:
    know(monkeypatch, FILES)
    archive.bodies["/Made.zip"] = zipped({name: content + b"!" for name, content in FILES.items()})
    with pytest.raises(DataError, match="wrong sha256 checksum"):
        fetch(tmp_path, allow_unverified=False)
    assert files_below(tmp_path) == []


def test_a_hostile_archive_leaves_nothing_behind(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = zipped(FILES | {"../../evil.txt": b"evil"})
    with pytest.raises(DataError, match=r"'\.\./\.\./evil\.txt', which would lie outside"):
        fetch(tmp_path / "deep" / "root", allow_unverified=True)
    assert files_below(tmp_path) == []


def test_an_archive_put_there_by_hand_is_used_and_stays(archive, tmp_path: Path) -> None:
    place = tmp_path / "uea" / "Made" / "Made.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(zipped(FILES))
    fetch(tmp_path, allow_unverified=False)
    assert not archive.hits
    assert (place.parent / "Made_TEST.ts").read_bytes() == FILES["Made_TEST.ts"]
    assert place.is_file()


def test_no_network_says_what_to_do_instead(archive, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put Made_TRAIN\.ts and Made_TEST\.ts into .*Made$"):
        fetch(tmp_path, allow_unverified=True)
    assert files_below(tmp_path) == []


def test_damaged_archives(archive, tmp_path: Path) -> None:
    archive.bodies["/Made.zip"] = b"<html>not found</html>"
    with pytest.raises(DataError, match=r"Made\.zip: the archive is damaged"):
        fetch(tmp_path, allow_unverified=True)
    whole = zipped(FILES)
    archive.bodies["/Made.zip"] = whole.replace(b"train train", b"train drain", 1)
    with pytest.raises(DataError, match=r"damaged .*Bad CRC-32"):
        fetch(tmp_path, allow_unverified=True)
    assert files_below(tmp_path) == []


def test_the_published_checksums_are_used(tmp_path: Path) -> None:
    for split in ("TRAIN", "TEST"):
        path = tmp_path / f"ArticularyWordRecognition_{split}.ts"
        path.write_bytes(b"something else")
    with pytest.raises(DataError, match="expected 1e1ac46ddbdec567de40601957b2a8a8"):
        verify(uea_archive.source("ArticularyWordRecognition"), tmp_path)
