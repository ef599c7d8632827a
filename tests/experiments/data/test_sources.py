"""Archives and data folders: known files come out whole; what could do harm is refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from data_files import files_below, put, tarred, zipped

from experiments.base.errors import DataError
from experiments.data import sources as module
from experiments.data import uea
from experiments.data.sources import extract

FILES = {"data/gas/a.bin": b"first " * 500, "data/b.txt": b"second " * 500}
WANTED = ("gas/a.bin", "b.txt")


KINDS: dict[str, Callable[..., bytes]] = {"tar": tarred, "zip": zipped}


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def unpack(tmp_path: Path, content: bytes, checksums: dict[str, str] | None = None) -> Path:
    """Write an archive and take WANTED out of it; return the folder."""
    put(tmp_path, {"archive": content})
    extract(tmp_path / "archive", tmp_path / "deep" / "folder", WANTED, checksums or {})
    return tmp_path / "deep" / "folder"


def refused(tmp_path: Path, content: bytes, message: str, **more: Any) -> None:
    """Check that an archive is refused with this message and leaves nothing behind."""
    with pytest.raises(DataError, match=message):
        unpack(tmp_path, content, **more)
    assert files_below(tmp_path) == ["archive"]


@pytest.mark.parametrize(
    "content", [tarred(FILES), tarred(FILES, mode="w"), zipped(FILES)], ids=["gz", "tar", "zip"]
)
def test_wanted_members_come_out_by_their_names(tmp_path, content):
    folder = unpack(tmp_path, content)
    assert [(folder / name).read_bytes() for name in ("a.bin", "b.txt")] == list(FILES.values())
    assert files_below(folder) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/etc/evil", "..\\evil", "C:/evil"])
def test_a_member_outside_the_folder(tmp_path, kind, name):
    content = KINDS[kind](FILES | {name: b"evil"})
    refused(tmp_path, content, "outside its folder; nothing was unpacked")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "special file"),
        (tarfile.BLKTYPE, "special file"),
        (tarfile.FIFOTYPE, "special file"),
    ],
)
def test_a_tar_member_that_is_no_file(tmp_path, kind, what):
    entry = tarfile.TarInfo("data/b.txt")
    entry.type, entry.linkname = kind, "/etc/passwd"
    content = tarred({"data/gas/a.bin": b"a"}, entry)
    refused(tmp_path, content, f"'data/b.txt', which is a {what}; nothing was unpacked")


def test_a_zip_member_that_is_a_link(tmp_path):
    entry = zipfile.ZipInfo("data/link")
    entry.external_attr = 0o120777 << 16
    refused(tmp_path, zipped(FILES, entry), "'data/link', which is a link")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_truncated_archives(tmp_path, kind, share):
    whole = KINDS[kind]({name: content * 40 for name, content in FILES.items()})
    refused(tmp_path, whole[: int(share * len(whole))], r"damaged or truncated .*get it again")


def test_a_flipped_bit_is_found_by_the_archives_own_sum(tmp_path):
    packed = bytearray(gzip.compress(gzip.decompress(tarred(FILES)), compresslevel=0))
    packed[packed.index(b"first first")] ^= 1
    refused(tmp_path, bytes(packed), r"damaged .*CRC")
    content = zipped(FILES, packed=False).replace(b"first first", b"first fjrst", 1)
    refused(tmp_path, content, r"damaged .*Bad CRC-32")


@pytest.mark.parametrize("content", [b"", b"<html>no such file</html>"])
def test_what_is_no_archive(tmp_path, content):
    refused(tmp_path, content, "damaged or truncated")


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_missing_ambiguous_or_too_large(tmp_path, monkeypatch, kind):
    other = {"data/other/a.bin": b"", "data/b.txt": b"", "xb.txt": b""}
    refused(tmp_path, KINDS[kind](other), r"gas/a\.bin is not in the archive")
    refused(tmp_path, KINDS[kind](FILES | {"copy/b.txt": b""}), r"holds more than one b\.txt")
    monkeypatch.setattr(module, "LARGEST", 100)
    refused(tmp_path, KINDS[kind](FILES), "would unpack to 3000 bytes, more than 100")


def test_all_or_none_where_a_checksum_is_wrong(tmp_path):
    right = {"a.bin": sha256(FILES["data/gas/a.bin"])}
    wrong = right | {"b.txt": "md5:" + "0" * 32}
    refused(tmp_path, tarred(FILES), r"b\.txt: wrong md5 checksum", checksums=wrong)
    assert files_below(unpack(tmp_path, tarred(FILES), right)) == ["a.bin", "b.txt"]


def test_a_full_disk(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shutil, "copyfileobj", Mock(side_effect=full))
    refused(tmp_path, tarred(FILES), r"cannot unpack .*No space left on device; free space")


def test_no_archive(tmp_path):
    with pytest.raises(DataError, match="archive: no such file"):
        extract(tmp_path / "archive", tmp_path / "folder", WANTED, {})


MADE = {"Made_TRAIN.ts": b"train " * 50, "Made_TEST.ts": b"test " * 50}
BELOW = ["uea/Made/Made_TEST.ts", "uea/Made/Made_TRAIN.ts"]


@pytest.fixture
def archive(server, monkeypatch):
    """The server as the only mirror of an archive whose problem Made has MADE in ``/Made.zip``."""
    monkeypatch.setattr(uea, "MIRRORS", (server.url + "/{name}.zip",))
    server.bodies["/Made.zip"] = zipped({"readme.txt": b"no", **MADE})
    return server


def fetch(root: Path, allow_unverified: bool = True) -> Path:
    return uea.sources(uea_name="Made")["uea"].locate(root, allow_unverified=allow_unverified)


def know(monkeypatch) -> None:
    """Make the checksums of MADE the published ones."""
    for name, content in MADE.items():
        monkeypatch.setitem(uea.CHECKSUMS, name, sha256(content))


def test_known_files_are_unpacked_and_verified(archive, tmp_path, monkeypatch):
    know(monkeypatch)
    folder = fetch(tmp_path, allow_unverified=False)
    assert [(folder / name).read_bytes() for name in MADE] == list(MADE.values())
    assert files_below(tmp_path) == BELOW


def test_an_unknown_problem_is_refused_before_a_byte_is_asked_for(archive, tmp_path):
    with pytest.raises(DataError, match=r"no checksum is known.*dataset\.allow_unverified=true"):
        fetch(tmp_path, allow_unverified=False)
    assert not archive.hits


def test_what_was_trusted_once_has_to_stay_what_it_was(archive, tmp_path):
    folder, source = fetch(tmp_path), uea.sources(uea_name="Made")["uea"]
    sums = [f"{sha256(MADE[name])[7:]}  {name}\n" for name in sorted(MADE)]
    assert (folder / "SHA256SUMS").read_text() == "".join(sums)
    assert files_below(tmp_path) == [*BELOW, "uea/Made/SHA256SUMS"]
    source.verify(folder)
    (folder / "Made_TEST.ts").write_bytes(b"other")
    with pytest.raises(DataError, match=r"wrong sha256 .*delete its line in .*SHA256SUMS"):
        source.verify(folder)
    (folder / "SHA256SUMS").write_text("no sums\n")
    with pytest.raises(DataError, match="SHA256SUMS: cannot be read"):
        source.verify(folder)


def test_processes_that_want_the_same_wait_for_the_first(archive, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(fetch, tmp_path) for _ in range(4)]
        assert {future.result() for future in waiting} == {tmp_path / "uea" / "Made"}
    assert archive.hits == {"/Made.zip": 1}
    assert files_below(tmp_path) == [*BELOW, "uea/Made/SHA256SUMS"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (zipped({name: content + b"!" for name, content in MADE.items()}), "wrong sha256 checksum"),
        (zipped(MADE | {"../../evil.txt": b"evil"}), r"'\.\./\.\./evil\.txt', which would lie out"),
        (b"<html>not found</html>", r"Made\.zip: the archive is damaged"),
        (None, r"put Made_TRAIN\.ts and Made_TEST\.ts into .*Made$"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(archive, tmp_path, monkeypatch, body, message):
    know(monkeypatch)
    archive.bodies = {} if body is None else {"/Made.zip": body}
    with pytest.raises(DataError, match=message):
        fetch(tmp_path / "deep" / "root")
    assert files_below(tmp_path) == []


def test_an_archive_put_there_by_hand_is_used_and_stays(archive, tmp_path):
    place = tmp_path / "uea" / "Made"
    put(place, {"Made.zip": zipped(MADE)})
    fetch(tmp_path, allow_unverified=False)
    assert not archive.hits
    assert (place / "Made_TEST.ts").read_bytes() == MADE["Made_TEST.ts"]
    assert (place / "Made.zip").is_file()
