"""Where the files of a data set come from, where they lie, and how they get there.

What is downloaded is checked before it is used: against a published checksum where there is one.
Where there is none, a person has to allow the download (``allow_unverified``), and the SHA-256 of
what came is written beside it into ``SHA256SUMS``: from then on it has to stay what it was.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.base.errors import DataError, RecordError
from experiments.base.files import write_whole
from experiments.data.checksum import Checksum, check, digest
from experiments.data.download import Progress, download
from experiments.data.extract import extract

SUMS = "SHA256SUMS"
"""Name of the file with recorded checksums, in the format of ``sha256sum``."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A file on the network.

    Attributes:
        name: Name of the file on this machine.
        urls: Mirrors, in order.
        checksum: The published one, ``None`` where none is known.
        size: Bytes; approximate unless ``checksum`` is known; ``None`` where unknown.
    """

    name: str
    urls: tuple[str, ...]
    checksum: Checksum | None = None
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        name: What it is called in messages.
        folders: Where the files may lie below the data folder; downloads go into the first.
        files: Names of what the loader reads.
        remotes: What is downloaded: the files themselves, or one archive with them.
        members: For an archive: where the files lie in it, in the order of ``files``; empty where
            the files are downloaded as they are.
        checksums: Known checksums of unpacked files, by name.
        unpacked: Bytes that the files take when unpacked, about; 0 where nothing is unpacked.
        archive_folder: Where the archive stays after unpacking, below the data folder; ``None``: it
            is removed.
    """

    name: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    remotes: tuple[Remote, ...]
    members: tuple[str, ...] = ()
    checksums: dict[str, Checksum] | None = None
    unpacked: int = 0
    archive_folder: str | None = None

    def known(self) -> dict[str, Checksum]:
        """Published checksums by name of the file that the loader reads."""
        own = {r.name: r.checksum for r in self.remotes if r.checksum and r.name in self.files}
        return own | (self.checksums or {})

    def verified(self) -> bool:
        """Whether everything that is downloaded can be compared with something published."""
        known = self.known()
        return all(r.checksum for r in self.remotes) or all(f in known for f in self.files)

    def find(self, data_dir: Path) -> Path | None:
        """The first folder that has all files, or ``None``."""
        for relative in self.folders:
            folder = data_dir / relative
            if all((folder / file).is_file() for file in self.files):
                return folder
        return None


def locate(
    source: Source, data_dir: Path, *, download: bool = True, allow_unverified: bool = False
) -> Path:
    """Return the folder with the files of a data set; get them where they are missing.

    What is found is not read; that it is right, :func:`verify` says.

    Args:
        source: The data set's files.
        data_dir: The data folder.
        download: Whether missing files may be downloaded.
        allow_unverified: Whether a download without a known checksum is accepted.

    Returns:
        The folder.

    Raises:
        DataError: Files are missing and cannot or must not be downloaded.
    """
    folder = source.find(data_dir)
    if folder is not None:
        return folder
    if not download and _archive_here(source, data_dir) is None:
        hint = by_hand(source, data_dir)
        raise DataError(f"{source.name}: not found, and download=false; {hint}")
    return obtain(source, data_dir, allow_unverified=allow_unverified)


def verify(source: Source, folder: Path) -> None:
    """Compare the files in a folder with their published or recorded checksums.

    Raises:
        DataError: A file is not the right one.
    """
    known, recorded = source.known(), recorded_sums(folder)
    for file in source.files:
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


def obtain(
    source: Source,
    data_dir: Path,
    *,
    allow_unverified: bool = False,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Download what is missing of a data set, check it, and unpack it.

    An archive that lies where it would be downloaded to is used instead, and stays. A second
    process that wants the same waits for the first one.

    Args:
        source: The data set's files.
        data_dir: The data folder.
        allow_unverified: Whether a download without a known checksum is accepted.
        progress: Told how far each download is.
        say: Told in a line what happens.

    Returns:
        The folder with the files.

    Raises:
        DataError: The download is refused or fails, or what came is damaged.
    """
    folder = data_dir / source.folders[0]
    here = _archive_here(source, data_dir) is not None
    if not here and not allow_unverified and not source.verified():
        raise DataError(
            f"{source.name}: not in {folder}, and a download could not be verified because no "
            f"checksum is known; {by_hand(source, data_dir)}, or accept the download as it comes "
            "with dataset.allow_unverified=true (scripts/data.py: --allow-unverified)"
        )
    with _alone(_place(source, data_dir)):
        there = source.find(data_dir)
        if there is None:  # else another process was faster
            _fill(source, data_dir, progress, say)
    return there or folder


def _fill(source: Source, data_dir: Path, progress: Progress | None, say: Say) -> None:
    folder = data_dir / source.folders[0]
    hint = by_hand(source, data_dir)
    archive = _archive_here(source, data_dir)
    for remote in source.remotes:
        target = _place(source, data_dir) / remote.name
        if target.is_file():
            if remote.checksum is not None:
                say(f"checking {target}")
                check(target, remote.checksum)
            continue
        say(f"downloading {remote.urls[0]} to {target}")
        largest = None if remote.size is None else 2 * remote.size + (1 << 24)
        wanted = (remote.urls, target, remote.checksum)
        download(*wanted, instead=hint, largest=largest, progress=progress)
    if source.members:
        packed = _place(source, data_dir) / source.remotes[0].name
        say(f"unpacking {', '.join(source.files)} into {folder}")
        try:
            extract(packed, folder, source.members, source.known())
        finally:
            if archive is None and source.archive_folder is None:
                packed.unlink(missing_ok=True)
    record(source, folder)


def record(source: Source, folder: Path) -> None:
    """Write the SHA-256 of the files that have no published checksum of their own.

    Raises:
        DataError: The record cannot be written.
    """
    files = [file for file in source.files if file not in source.known()]
    if not files:
        return
    sums = {file: digest(folder / file, "sha256") for file in files}
    kept = {file: old.value for file, old in recorded_sums(folder).items()}
    lines = [f"{value}  {file}\n" for file, value in sorted((kept | sums).items())]
    try:
        write_whole(folder / SUMS, "".join(lines))
    except RecordError as error:
        raise DataError(str(error)) from error


def recorded_sums(folder: Path) -> dict[str, Checksum]:
    """The checksums that an earlier download wrote into a folder, by name of the file.

    Raises:
        DataError: The record cannot be read.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    sums = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            value, _, file = line.partition("  ")
            if len(value) != 64 or not file:
                raise ValueError(line)
            sums[file] = Checksum("sha256", value)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a list of SHA-256 sums; delete it") from error
    return sums


def by_hand(source: Source, data_dir: Path) -> str:
    """What a person can do without the network."""
    *rest, last = source.files
    files = f"{', '.join(rest)} and {last}" if rest else last
    return f"put {files} into {data_dir / source.folders[0]}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder and lock it against other processes, which wait here."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}; choose another data_dir"
        ) from error
    try:
        with suppress(OSError):  # some network file systems cannot lock a folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()  # where nothing came, nothing is left


def _place(source: Source, data_dir: Path) -> Path:
    """The folder that downloads go into."""
    relative = source.folders[0] if source.archive_folder is None else source.archive_folder
    return data_dir / relative


def _archive_here(source: Source, data_dir: Path) -> Path | None:
    """An archive that is there already, from an earlier download or put there by hand."""
    path = _place(source, data_dir) / source.remotes[0].name
    return path if source.members and path.is_file() else None
