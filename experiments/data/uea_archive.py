"""Checksums and downloads of the UEA archive.

The archive publishes no checksums. Those known here were taken from files that were looked at; any
other download has to be allowed by hand, and its SHA-256 goes into the run record.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from experiments.data.download import Checksum, check, download
from experiments.errors import DataError

MIRRORS = (
    "https://timeseriesclassification.com/aeon-toolkit/{name}.zip",
    "https://github.com/sktime/sktime-datasets/raw/main/TSC/{name}.zip",
)
"""Where sktime downloads from, too."""

CHECKSUMS = {
    "ArticularyWordRecognition_TRAIN.ts": Checksum("md5", "1e1ac46ddbdec567de40601957b2a8a8"),
    "ArticularyWordRecognition_TEST.ts": Checksum("md5", "0a559bc59ec12ed786d4096ff6f17701"),
}
"""Known checksums of files of the archive."""

LARGEST = 4 << 30
"""Bytes beyond which a file in a downloaded archive is not unpacked (the largest has 0.6 GB)."""


def verify(paths: tuple[Path, Path]) -> None:
    """Compare files with their checksums, where those are known.

    Args:
        paths: Training and test file.

    Raises:
        DataError: A file is not the known one.
    """
    for path in paths:
        if path.name in CHECKSUMS:
            check(path, CHECKSUMS[path.name])


def fetch(uea_name: str, root: Path, allow_unverified: bool) -> tuple[Path, Path]:
    """Download a problem into ``<root>/<uea_name>/``.

    Args:
        uea_name: Name in the archive.
        root: Folder for the whole archive.
        allow_unverified: Whether files without a known checksum are accepted.

    Returns:
        Paths of the training and the test file.

    Raises:
        DataError: No checksum is known and ``allow_unverified`` is false; the download failed; or
            the archive is damaged or lacks the files.
    """
    folder = root / uea_name
    paths = (folder / f"{uea_name}_TRAIN.ts", folder / f"{uea_name}_TEST.ts")
    if not allow_unverified and any(path.name not in CHECKSUMS for path in paths):
        raise DataError(
            f"{uea_name}: not in {folder}, and a download could not be verified because no "
            "checksum is known; put both .ts files there, or accept the download as it comes "
            "with dataset.allow_unverified=true"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            archive = Path(scratch) / f"{uea_name}.zip"
            urls = [mirror.format(name=uea_name) for mirror in MIRRORS]
            by_hand = f"put {paths[0].name} and {paths[1].name} into {folder}"
            download(urls, archive, None, instead=by_hand)
            parts = [_unpack(archive, path.name) for path in paths]
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    return paths


def _unpack(archive: Path, file: str) -> Path:
    """Take the one member with this file name out of a zip file, beside it, and verify it.

    The folder of the name inside the archive never decides where a byte is written.
    """
    target = archive.with_name(file)
    try:
        with zipfile.ZipFile(archive) as content:
            members = [m for m in content.infolist() if Path(m.filename).name == file]
            if not members:
                raise DataError(f"{file} is not in the downloaded archive {archive.name}")
            if members[0].file_size > LARGEST:
                raise DataError(f"{file} would unpack to {members[0].file_size} bytes")
            with content.open(members[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)  # never gives more than the size checked above
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"the archive downloaded for {file} is damaged: {error}") from error
    if file in CHECKSUMS:
        check(target, CHECKSUMS[file])
    return target
