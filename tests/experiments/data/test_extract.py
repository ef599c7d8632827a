"""Archives: wanted files come out whole, anything that could leave the folder is refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.base.errors import DataError
from experiments.data import extract as module
from experiments.data.checksum import Checksum
from experiments.data.extract import extract

FILES = {"data/gas/a.bin": b"first " * 500, "data/b.txt": b"second " * 500}
WANTED = ("gas/a.bin", "b.txt")


def tarred(contents: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        folder = tarfile.TarInfo("data")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra:
            archive.addfile(entry)
    return buffer.getvalue()


def zipped(contents: dict[str, bytes], *extra: zipfile.ZipInfo) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/", b"")
        for name, content in contents.items():
            archive.writestr(name, content)
        for entry in extra:
            archive.writestr(entry, b"target")
    return buffer.getvalue()


KINDS: dict[str, Callable[..., bytes]] = {"tar": tarred, "zip": zipped}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "folder"


def everything(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("kind", ["tar", "zip", "plain tar"])
def test_wanted_members_come_out_by_their_names(archive: Path, folder: Path, kind: str) -> None:
    content = tarred(FILES, mode="w") if kind == "plain tar" else KINDS[kind](FILES)
    archive.write_bytes(content)
    paths = extract(archive, folder, WANTED)
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/etc/evil", "..\\evil", "C:/evil"])
def test_a_member_outside_the_folder(tmp_path, archive, folder, kind: str, name: str) -> None:
    archive.write_bytes(KINDS[kind](FILES | {name: b"evil"}))
    with pytest.raises(DataError, match="outside its folder; nothing was unpacked"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


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
def test_a_tar_member_that_is_no_file(tmp_path, archive, folder, kind: bytes, what: str) -> None:
    entry = tarfile.TarInfo("data/b.txt")
    entry.type, entry.linkname = kind, "/etc/passwd"
    archive.write_bytes(tarred({"data/gas/a.bin": b"a"}, entry))
    with pytest.raises(DataError, match=f"'data/b.txt', which is a {what}; nothing was unpacked"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


def test_a_zip_member_that_is_a_link(tmp_path: Path, archive: Path, folder: Path) -> None:
    entry = zipfile.ZipInfo("data/link")
    entry.external_attr = 0o120777 << 16
    archive.write_bytes(zipped(FILES, entry))
    with pytest.raises(DataError, match="'data/link', which is a link"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_truncated_archives(tmp_path, archive, folder, kind: str, share: float) -> None:
    whole = KINDS[kind]({name: content * 40 for name, content in FILES.items()})
    archive.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"damaged or truncated .*get it again"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


def test_a_flipped_bit_is_found_by_the_archives_own_sum(archive: Path, folder: Path) -> None:
    plain = bytearray(gzip.decompress(tarred(FILES)))
    packed = bytearray(gzip.compress(bytes(plain), compresslevel=0))
    packed[packed.index(b"first first")] ^= 1
    archive.write_bytes(packed)
    with pytest.raises(DataError, match=r"damaged .*CRC"):
        extract(archive, folder, WANTED)


@pytest.mark.parametrize("content", [b"", b"<html>no such file</html>"])
def test_what_is_no_archive(archive: Path, folder: Path, content: bytes) -> None:
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged or truncated"):
        extract(archive, folder, WANTED)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_ambiguous_members(tmp_path, archive, folder, kind: str) -> None:
    archive.write_bytes(KINDS[kind]({"data/other/a.bin": b"", "data/b.txt": b"", "xb.txt": b""}))
    with pytest.raises(DataError, match=r"gas/a\.bin is not in the archive"):
        extract(archive, folder, WANTED)
    archive.write_bytes(KINDS[kind](FILES | {"copy/b.txt": b""}))
    with pytest.raises(DataError, match=r"holds more than one b\.txt"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_is_too_large(archive, folder, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(module, "LARGEST", 100)
    archive.write_bytes(KINDS[kind](FILES))
    with pytest.raises(DataError, match="would unpack to 3000 bytes, more than 100"):
        extract(archive, folder, WANTED)


def test_all_or_none_where_a_checksum_is_wrong(tmp_path, archive: Path, folder: Path) -> None:
    archive.write_bytes(tarred(FILES))
    right = Checksum("sha256", hashlib.sha256(FILES["data/gas/a.bin"]).hexdigest())
    with pytest.raises(DataError, match=r"b\.txt: wrong md5 checksum"):
        extract(archive, folder, WANTED, {"a.bin": right, "b.txt": Checksum("md5", "0" * 32)})
    assert everything(tmp_path) == ["archive"]
    assert len(extract(archive, folder, WANTED, {"a.bin": right})) == 2


def test_a_full_disk(tmp_path: Path, archive: Path, folder: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive.write_bytes(tarred(FILES))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"cannot unpack .*No space left on device; free space"):
        extract(archive, folder, WANTED)
    assert everything(tmp_path) == ["archive"]


def test_no_archive(archive: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="archive: no such file"):
        extract(archive, folder, WANTED)
