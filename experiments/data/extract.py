"""Take known files out of a tar or zip archive, never a byte outside their folder.

An archive with a member that would leave the folder, or that is no plain file, is refused as a
whole, even where that member is not asked for: nobody publishes such data.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum, check

LARGEST = 4 << 30
"""Bytes beyond which a file in an archive is not unpacked (the largest known one has 0.6 GB)."""


class _Member(NamedTuple):
    """One entry of an archive: its name, what it is, its size, and how to read it."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes]]


def extract(
    archive: Path,
    folder: Path,
    members: Sequence[str],
    checksums: Mapping[str, Checksum] | None = None,
) -> list[Path]:
    """Unpack some members of an archive: all of them or none.

    Args:
        archive: A zip file or a tar file, gzipped or not; told apart by content.
        folder: Where the files go, by their names alone; it is made.
        members: The ends of the members' paths, such as ``gas/ethylene_CO.pickle``: whole
            components. Each has to fit exactly one member.
        checksums: What some of them have to be, by name of the file.

    Returns:
        The unpacked files, in the order of ``members``.

    Raises:
        DataError: The archive is damaged, truncated or hostile, lacks a member, one has the wrong
            checksum or is too large, or the disk is full.
    """
    found: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
            with _opened(archive) as entries:
                for entry in entries:
                    _refuse_hostile(archive, entry)
                    wanted = [end for end in members if _ends(entry.name, end)]
                    if entry.kind == "file" and wanted:
                        if wanted[0] in found:
                            raise DataError(f"{archive}: holds more than one {wanted[0]}")
                        target = Path(scratch) / PurePosixPath(wanted[0]).name
                        _copy(archive, entry, target)
                        found[wanted[0]] = target
            for end in members:
                if end not in found:
                    raise DataError(f"{end} is not in the archive {archive}")
            for target in found.values():
                if checksums and target.name in checksums:
                    check(target, checksums[target.name])
            for target in found.values():
                target.chmod(0o644)
                target.replace(folder / target.name)
    except _DAMAGED as error:
        raise DataError(
            f"{archive}: the archive is damaged or truncated ({error}): delete it and get it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive} into {folder}: {error.strerror or error}; "
            "free space or choose another data_dir"
        ) from error
    return [folder / found[end].name for end in members]


# gzip.BadGzipFile is an OSError without a number; RuntimeError: an encrypted or unknown zip member.
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    *(EOFError, zlib.error, RuntimeError),
)


def _refuse_hostile(archive: Path, entry: _Member) -> None:
    path = PurePosixPath(entry.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise DataError(
            f"{archive}: holds '{entry.name}', which would lie outside its folder; "
            "nothing was unpacked"
        )
    if entry.kind not in ("file", "folder"):
        raise DataError(
            f"{archive}: holds '{entry.name}', which is a {entry.kind}; nothing was unpacked"
        )


def _ends(name: str, end: str) -> bool:
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(end).parts
    return parts[-len(wanted) :] == wanted


def _copy(archive: Path, entry: _Member, target: Path) -> None:
    if entry.size > LARGEST:
        raise DataError(
            f"{archive}: '{entry.name}' would unpack to {entry.size} bytes, more than {LARGEST}"
        )
    with entry.open() as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)  # gives no more than the size checked above
    if target.stat().st_size != entry.size:
        raise EOFError(f"'{entry.name}' has {target.stat().st_size} of {entry.size} bytes")


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    """Open an archive of whichever kind and go through its members once, in their order."""
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            yield _zip_members(content)
        return
    with archive.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with archive.open("rb") as raw:
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        with tarfile.open(fileobj=stream, mode="r:") as content:
            yield _tar_members(content, stream)


def _zip_members(content: zipfile.ZipFile) -> Iterator[_Member]:
    for info in content.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            kind = "folder"
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            kind = "file"
        else:
            kind = "link" if stat.S_ISLNK(mode) else "special file"
        yield _Member(info.filename, kind, info.file_size, lambda info=info: content.open(info))  # type: ignore[misc]


def _tar_members(content: tarfile.TarFile, stream: IO[bytes]) -> Iterator[_Member]:
    for info in content:
        if info.isdir():
            kind = "folder"
        elif info.isreg():
            kind = "file"
        else:
            kind = "link" if info.issym() or info.islnk() else "special file"
        yield _Member(info.name, kind, info.size, lambda info=info: _tar_file(content, info))  # type: ignore[misc]
    while stream.read(1 << 20):  # gzip compares its checksum at the very end
        pass


def _tar_file(content: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = content.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"'{info.name}' cannot be read")
    return stream
