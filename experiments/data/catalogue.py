"""All data sets that ``scripts/data.py`` can put into a data folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from experiments.base.errors import DataError, suggestion
from experiments.data import cifar10, maf, mnist, svhn, uci, uea
from experiments.data.sources import Source

SOURCES: dict[str, Callable[[], Source]] = {
    "mnist": mnist.source,
    "svhn": svhn.source,
    "cifar10": cifar10.source,
    "cifar10_binary": partial(cifar10.source, "binary"),
    "character_trajectories": partial(uea.source, "CharacterTrajectories"),
    "character_trajectories_uci": partial(uci.source, "CharacterTrajectories"),
    "articulary_word_recognition": partial(uea.source, "ArticularyWordRecognition"),
    "spoken_arabic_digits": partial(uea.source, "SpokenArabicDigits"),
    "spoken_arabic_digits_uci": partial(uci.source, "SpokenArabicDigits"),
    "miniboone": partial(maf.source, "miniboone"),
    "gas": partial(maf.source, "gas"),
    "power": partial(maf.source, "power"),
    "hepmass": partial(maf.source, "hepmass"),
}
"""What is downloaded, by the name of the data set."""

OTHER_FORMS = ("cifar10_binary", "character_trajectories_uci", "spoken_arabic_digits_uci")
"""The same data in another form: not among ``all``."""

EMBEDDED = ("digits", "japanese_vowels", "basic_motions", "circle")
"""Data sets that are part of a package or are generated."""


def chosen(name: str) -> list[str]:
    """Return the data sets that a name stands for.

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
