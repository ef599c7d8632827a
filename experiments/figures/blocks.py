"""The data sets of the paper's overview, by task: what figure 6 shows and table 3 lists.

The profile ``paper`` has the nine of the paper, ``embedded`` six that need no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.figures.figure_1 import Panel


@dataclass(frozen=True)
class Block:
    """One task with its data sets.

    Attributes:
        task: task name in records.
        title: what figures call it.
        metric: validation metric: ``accuracy`` or ``nll``.
        panels: its data sets by profile.
    """

    task: str
    title: str
    metric: str
    panels: Mapping[str, tuple[Panel, ...]]


BLOCKS = (
    Block(
        "image",
        "Image classification",
        "accuracy",
        {
            "embedded": (Panel("digits", "Digits", "figure-1"),),
            "paper": (
                Panel("mnist", "MNIST", "paper"),
                Panel("svhn", "SVHN", "paper"),
                Panel("cifar10", "CIFAR-10", "paper"),
            ),
        },
    ),
    Block(
        "time_series",
        "Time series",
        "accuracy",
        {
            "embedded": (
                Panel("japanese_vowels", "JapaneseVowels", "figure-1"),
                Panel("basic_motions", "BasicMotions"),
            ),
            "paper": (
                Panel("character_trajectories", "CharacterTrajectories", "paper"),
                Panel("articulary_word_recognition", "ArticularyWordRecognition", "paper"),
                Panel("spoken_arabic_digits", "SpokenArabicDigits", "paper"),
            ),
        },
    ),
    Block(
        "cnf",
        "Continuous normalizing flows",
        "nll",
        {
            "embedded": (
                Panel("circle", "Circle"),
                Panel("pinwheel", "Pinwheel"),
                Panel("moons", "Moons"),
            ),
            "paper": (
                Panel("circle", "Circle", "paper"),
                Panel("gas", "GAS", "paper"),
                Panel("miniboone", "MINIBOONE", "paper"),
            ),
        },
    ),
)

PROFILES: dict[str, tuple[Panel, ...]] = {
    profile: tuple(panel for block in BLOCKS for panel in block.panels[profile])
    for profile in ("embedded", "paper")
}
"""What each profile shows."""
