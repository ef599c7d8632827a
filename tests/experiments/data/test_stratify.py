"""The split is disjoint, exhaustive, stratified, deterministic, and the published one."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.base.errors import ConfigError, DataError
from experiments.data.stratify import stratified_split

LABELS = np.repeat(np.arange(4), [40, 60, 100, 200])


def test_every_example_is_in_exactly_one_split() -> None:
    index = stratified_split(LABELS, 0, "tiny")
    assert [len(rows) for rows in index] == [280, 60, 60]
    assert sorted(np.concatenate(index)) == list(range(400))


def test_each_class_is_split_70_15_15() -> None:
    index = stratified_split(LABELS, 3, "tiny")
    counts = [np.bincount(LABELS[rows]).tolist() for rows in index]
    assert counts == [[28, 42, 70, 140], [6, 9, 15, 30], [6, 9, 15, 30]]


def test_the_seed_alone_decides() -> None:
    first, again = stratified_split(LABELS, 1, "tiny"), stratified_split(LABELS, 1, "tiny")
    other = stratified_split(LABELS, 2, "tiny")
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert set(first.test) != set(other.test)


def test_seed_0_is_the_published_protocol() -> None:
    """Two calls of scikit-learn with seeds 0 and 1, as the neural CDE experiments make them."""
    from sklearn.model_selection import train_test_split

    items = np.arange(400)
    train, rest, _, rest_labels = train_test_split(
        items, LABELS, train_size=0.7, random_state=0, shuffle=True, stratify=LABELS
    )
    val, test = train_test_split(
        rest, train_size=0.5, random_state=1, shuffle=True, stratify=rest_labels
    )
    for ours, theirs in zip(stratified_split(LABELS, 0, "tiny"), (train, val, test), strict=True):
        assert (ours == theirs).all()


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny: split_seed must not be negative, but is -1"):
        stratified_split(LABELS, -1, "tiny")


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1], []])
def test_too_small_a_set_is_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="tiny: too small for a stratified 70/15/15 split"):
        stratified_split(np.asarray(labels, dtype=np.int64), 0, "tiny")
