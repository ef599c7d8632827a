"""What a loader returns: a description of the data set and three splits of tensors.

Layout, by task (N examples):

- ``image``: ``(x, y)``; x float32 (N, C, H, W), y int64 (N,).
- ``time_series``: ``(x, lengths, y)``; x float32 (N, L, 2D + 1) for D channels, lengths int64 (N,),
  y int64 (N,). The last axis of x is ``[time (1) | values (D) | observed mask (D)]``. Time counts
  observations, 0, 1, 2, ... Values are standardised and 0 where the mask is 0. Everything from step
  ``lengths[n]`` on is padding and 0.
- ``cnf``: ``(x,)``; x float32 (N, dim).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TASKS = ("image", "time_series", "cnf")
"""The kinds of data that a loader can return."""

SPLIT_NAMES = ("train", "val", "test")
"""The splits of every data set, in order."""


@dataclass(frozen=True)
class DataInfo:
    """What a model has to know about a data set before it sees it.

    Attributes:
        name: Name of the data set, as it appears in run folders and figures.
        task: One of :data:`TASKS`.
        input_shape: Shape of one example: (C, H, W), (L, 2D + 1) or (dim,).
        num_classes: Number of classes, ``None`` where there are no labels.
        source: Where the numbers came from: package and version, or file checksums.
    """

    name: str
    task: str
    input_shape: tuple[int, ...]
    num_classes: int | None
    source: str


@dataclass(frozen=True)
class Splits:
    """A data set in three parts, in the layout that the module docstring gives.

    Attributes:
        info: Description of the data set.
        train: Tensors that parameters are fitted to.
        val: Tensors that choices between runs are made on.
        test: Tensors that are evaluated once, at the end.
    """

    info: DataInfo
    train: tuple[Tensor, ...]
    val: tuple[Tensor, ...]
    test: tuple[Tensor, ...]

    def items(self) -> tuple[tuple[str, tuple[Tensor, ...]], ...]:
        """The splits with their names, in the order of :data:`SPLIT_NAMES`."""
        return (("train", self.train), ("val", self.val), ("test", self.test))

    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {name: len(tensors[0]) for name, tensors in self.items()}
