"""The files of a data set: where they lie, how they get there, and whether they are the right ones.

Files from outside are not trusted:

- Files with a published checksum are compared with it. Where nothing is published, a person has to
  allow the download (``allow_unverified``); the SHA-256 of what came is written beside it into
  ``SHA256SUMS``, and from then on it has to stay what it was.
- From an archive come the known files alone. One with a member that would leave its folder, or that
  is no plain file, is refused as a whole: nobody publishes such data.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from experiments.base.errors import DataError, RecordError
from experiments.base.files import locked, write_whole
from experiments.data.files import Progress, Remote, check, digest, download

SUMS = "SHA256SUMS"  # in the format of the program sha256sum
LARGEST = 4 << 30  # bytes of a file in an archive; the largest known one has 0.6 GB

Say = Callable[[str], None]
"""Told in a line what happens."""


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        name: What it is called in messages.
        folders: Where the files may lie below the data folder; downloads go into the first.
        files: Names of what the loader reads.
        remotes: What is downloaded: the files themselves, or one archive with them.
        members: Where the files lie in the archive, in the order of ``files``.
        checksums: Known checksums of unpacked files, by name.
        unpacked: Approximate bytes of the unpacked files.
        archive_folder: Where the archive stays, below the data folder; None: it is removed.
    """

    name: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    remotes: tuple[Remote, ...]
    members: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    unpacked: int = 0
    archive_folder: str | None = None

    def known(self) -> dict[str, str]:
        """Return the published checksums by name of the file that the loader reads."""
        own = {r.name: r.checksum for r in self.remotes if r.checksum and r.name in self.files}
        return own | dict(self.checksums)

    def verified(self) -> bool:
        """Return whether everything that is downloaded has a published checksum."""
        known = self.known()
        return all(r.checksum for r in self.remotes) or all(f in known for f in self.files)

    def find(self, data_dir: Path) -> Path | None:
        """Return the first folder that has all files."""
        for folder in (data_dir / relative for relative in self.folders):
            if all((folder / file).is_file() for file in self.files):
                return folder
        return None

    def place(self, data_dir: Path) -> Path:
        """Return the folder that downloads go into."""
        return data_dir / (self.archive_folder or self.folders[0])

    def missing(self, data_dir: Path) -> list[Remote]:
        """Return what would have to be downloaded."""
        place = self.place(data_dir)
        return [remote for remote in self.remotes if not (place / remote.name).is_file()]

    def by_hand(self, data_dir: Path) -> str:
        """Return what a person can do without the network."""
        *rest, last = self.files
        files = f"{', '.join(rest)} and {last}" if rest else last
        return f"put {files} into {data_dir / self.folders[0]}"

    def locate(
        self,
        data_dir: Path,
        *,
        download: bool = True,
        allow_unverified: bool = False,
        progress: Progress | None = None,
        say: Say = lambda _: None,
    ) -> Path:
        """Return the folder with the files; download, check and unpack what is missing.

        Files that are there are not read: :meth:`verify` says whether they are right. An archive
        that lies where it would be downloaded to is used, and stays. A second process that wants
        the same waits for the first one. ``allow_unverified`` accepts downloads without a checksum.

        Raises:
            DataError: Files are missing and must not be downloaded, the download fails, or what
                came is damaged.
        """
        folder = self.find(data_dir)
        if folder is not None:
            return folder
        archive_here = bool(self.members) and not self.missing(data_dir)
        if not download and not archive_here:
            hint = self.by_hand(data_dir)
            raise DataError(f"{self.name}: not found, and download=false; {hint}")
        if not archive_here and not allow_unverified and not self.verified():
            raise DataError(
                f"{self.name}: not in {data_dir / self.folders[0]}, and a download could not be "
                f"verified because no checksum is known; {self.by_hand(data_dir)}, or accept the "
                "download as it comes with dataset.allow_unverified=true (scripts/data.py: "
                "--allow-unverified)"
            )
        place = self.place(data_dir)
        try:
            with locked(place / ".lock"):
                folder = self.find(data_dir)
                if folder is None:  # else another process was faster
                    folder = data_dir / self.folders[0]
                    self._fill(data_dir, folder, archive_here, progress, say)
        except OSError as error:
            raise DataError(
                f"cannot write to {place}: {error.strerror or error}; choose another data_dir"
            ) from error
        finally:
            with suppress(OSError):
                place.rmdir()  # where nothing came, nothing is left
        return folder

    def _fill(
        self, data_dir: Path, folder: Path, keep_archive: bool, progress: Progress | None, say: Say
    ) -> None:
        place = self.place(data_dir)
        for remote in self.remotes:
            target = place / remote.name
            if not target.is_file():
                say(f"downloading {remote.urls[0]} to {target}")
                download(remote, target, instead=self.by_hand(data_dir), progress=progress)
            elif remote.checksum is not None:
                say(f"checking {target}")
                check(target, remote.checksum)
        if self.members:
            archive = place / self.remotes[0].name
            say(f"unpacking {', '.join(self.files)} into {folder}")
            try:
                extract(archive, folder, self.members, self.known())
            finally:
                if not keep_archive and self.archive_folder is None:
                    archive.unlink(missing_ok=True)
        self.record(folder)

    def verify(self, folder: Path) -> None:
        """Raise DataError where a file differs from its published or recorded checksum."""
        known, recorded = self.known(), recorded_sums(folder)
        for file in self.files:
            if file in known:
                check(folder / file, known[file])
            elif file in recorded:
                try:
                    check(folder / file, recorded[file])
                except DataError as error:
                    raise DataError(
                        f"{error} (or, if you replaced it on purpose, delete its line in "
                        f"{folder / SUMS})"
                    ) from error

    def record(self, folder: Path) -> None:
        """Write the SHA-256 of all files without a published checksum into ``SHA256SUMS``."""
        known = self.known()
        files = [file for file in self.files if file not in known]
        if not files:
            return
        sums = recorded_sums(folder) | {file: f"sha256:{digest(folder / file)}" for file in files}
        lines = [f"{sums[file].removeprefix('sha256:')}  {file}\n" for file in sorted(sums)]
        try:
            write_whole(folder / SUMS, "".join(lines))
        except RecordError as error:
            raise DataError(str(error)) from error


def recorded_sums(folder: Path) -> dict[str, str]:
    """Return the checksums that an earlier download wrote into a folder, by name of the file."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    sums = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            value, _, file = line.partition("  ")
            if len(value) != 64 or not file:
                raise ValueError(line)
            sums[file] = f"sha256:{value}"
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of SHA-256 sums; delete it") from error
    return sums


class _Member(NamedTuple):
    """A member of an archive; ``kind`` is file, folder, link or special file."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    RuntimeError,
)
"""What reading a damaged archive raises; RuntimeError: an encrypted or unknown zip member."""


def extract(
    archive: Path, folder: Path, members: Sequence[str], checksums: Mapping[str, str]
) -> None:
    """Unpack some members of an archive: all of them or none.

    Args:
        archive: A zip file or a tar file, gzipped or not.
        folder: Where the files go, by their names alone.
        members: The ends of the members' paths, such as ``gas/ethylene_CO.pickle``; each has to
            fit exactly one member.
        checksums: What some of them have to be, by name of the file.

    Raises:
        DataError: The archive is damaged, truncated or hostile, lacks a member, one has the wrong
            checksum or is too large, or the disk is full.
    """
    found: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
            with _members(archive) as entries:
                for entry in entries:
                    _refuse_hostile(archive, entry)
                    wanted = next(filter(PurePosixPath(entry.name).match, members), None)
                    if entry.kind != "file" or wanted is None:
                        continue
                    if wanted in found:
                        raise DataError(f"{archive}: holds more than one {wanted}")
                    found[wanted] = Path(scratch) / PurePosixPath(wanted).name
                    _copy(archive, entry, found[wanted])
            for end in members:
                if end not in found:
                    raise DataError(f"{end} is not in the archive {archive}")
            for path in found.values():
                if path.name in checksums:
                    check(path, checksums[path.name])
            for path in found.values():
                path.replace(folder / path.name)
    except DAMAGED as error:
        raise DataError(
            f"{archive}: the archive is damaged or truncated ({error}): delete it and get it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive} into {folder}: {error.strerror or error}; "
            "free space or choose another data_dir"
        ) from error


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


def _copy(archive: Path, entry: _Member, target: Path) -> None:
    if entry.size > LARGEST:
        raise DataError(
            f"{archive}: '{entry.name}' would unpack to {entry.size} bytes, more than {LARGEST}"
        )
    source = entry.open()
    if source is None:
        raise tarfile.ReadError(f"'{entry.name}' cannot be read")
    with source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)  # gives no more than the size checked above
    if target.stat().st_size != entry.size:
        raise EOFError(f"'{entry.name}' has {target.stat().st_size} of {entry.size} bytes")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Open an archive of whichever kind and go through its members once, in their order."""
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield (_zip_member(packed, info) for info in packed.infolist())
        return
    with archive.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if gzipped else raw
        with tarfile.open(fileobj=stream, mode="r:") as content:
            yield (_tar_member(content, info) for info in content)
            while stream.read(1 << 20):  # gzip compares its checksum at the very end
                pass


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    kind = _kind(info.is_dir(), stat.S_IFMT(mode) in (0, stat.S_IFREG), stat.S_ISLNK(mode))
    return _Member(info.filename, kind, info.file_size, lambda: archive.open(info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind = _kind(info.isdir(), info.isreg(), info.issym() or info.islnk())
    return _Member(info.name, kind, info.size, lambda: archive.extractfile(info))


def _kind(folder: bool, file: bool, link: bool) -> str:
    return "folder" if folder else "file" if file else "link" if link else "special file"
