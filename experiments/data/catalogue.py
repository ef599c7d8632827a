"""All data sets that ``scripts/data.py`` can put into a data folder, and what that takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiments.base.errors import DataError, suggestion
from experiments.data import cifar10, mnist, svhn, tabular, uci, uea_archive
from experiments.data.download import Progress
from experiments.data.sources import Say, Source, obtain, verify

SOURCES: dict[str, Callable[[], Source]] = {
    "mnist": mnist.source,
    "svhn": svhn.source,
    "cifar10": cifar10.source,
    "cifar10_binary": partial(cifar10.source, "binary"),
    "character_trajectories": partial(uea_archive.source, "CharacterTrajectories"),
    "character_trajectories_uci": partial(uci.source, "CharacterTrajectories"),
    "articulary_word_recognition": partial(uea_archive.source, "ArticularyWordRecognition"),
    "spoken_arabic_digits": partial(uea_archive.source, "SpokenArabicDigits"),
    "spoken_arabic_digits_uci": partial(uci.source, "SpokenArabicDigits"),
    "miniboone": partial(tabular.source, "miniboone"),
    "gas": partial(tabular.source, "gas"),
    "power": partial(tabular.source, "power"),
    "hepmass": partial(tabular.source, "hepmass"),
}
"""What is downloaded, by the name of the data set."""

OTHER_FORMS = ("cifar10_binary", "character_trajectories_uci", "spoken_arabic_digits_uci")
"""The same data in another form: not among ``all``."""

EMBEDDED = ("digits", "japanese_vowels", "basic_motions", "circle")
"""Data sets that are part of a package or are generated."""


class Plan(NamedTuple):
    """What it would take to have a data set.

    Attributes:
        name: The data set.
        present: The folder where its files lie already, or ``None``.
        folder: Where they would go.
        load: Bytes to download, ``None`` where unknown.
        unpacked: Bytes that are unpacked from that, about; 0 where nothing is.
        verified: Whether the download can be compared with published checksums.
        archive: The archive that is shared with other data sets, or that is there already.
    """

    name: str
    present: Path | None
    folder: Path
    load: int | None
    unpacked: int
    verified: bool
    archive: str | None


def chosen(name: str) -> list[str]:
    """The data sets that a name stands for.

    Args:
        name: A data set, or ``all``.

    Raises:
        DataError: The name is unknown.
    """
    if name == "all":
        return [known for known in SOURCES if known not in OTHER_FORMS]
    if name in EMBEDDED:
        return []
    if name not in SOURCES:
        known = ("all", *SOURCES)
        raise DataError(
            f"unknown data set {name!r}{suggestion(name, known)}; valid: {', '.join(known)} "
            f"({', '.join(EMBEDDED)} need no download)"
        )
    return [name]


def plan(name: str, data_dir: Path) -> Plan:
    """Say what :func:`get` would do, without the network.

    Args:
        name: A name from :data:`SOURCES`.
        data_dir: The data folder.
    """
    source = SOURCES[name]()
    where = source.folders[0] if source.archive_folder is None else source.archive_folder
    missing = [r for r in source.remotes if not (data_dir / where / r.name).is_file()]
    sizes = [remote.size for remote in missing]
    return Plan(
        name=name,
        present=source.find(data_dir),
        folder=data_dir / source.folders[0],
        load=None if None in sizes else sum(size or 0 for size in sizes),
        unpacked=source.unpacked,
        verified=source.verified(),
        archive=source.remotes[0].name if source.archive_folder is not None else None,
    )


def get(
    name: str,
    data_dir: Path,
    *,
    allow_unverified: bool = False,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Put a data set into the data folder, or check the one that is there.

    Args:
        name: A name from :data:`SOURCES`.
        data_dir: The data folder.
        allow_unverified: Whether a download without a known checksum is accepted.
        progress: Told how far each download is.
        say: Told in a line what happens.

    Returns:
        The folder with its files.

    Raises:
        DataError: The download is refused or fails, or files are not the right ones.
    """
    source = SOURCES[name]()
    folder = source.find(data_dir)
    if folder is None:
        folder = obtain(
            source, data_dir, allow_unverified=allow_unverified, progress=progress, say=say
        )
    verify(source, folder)
    return folder
