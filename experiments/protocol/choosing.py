"""The best setting of an optimizer on a data set, among all trials of all of its studies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.errors import RecordError
from experiments.goals import GREATER
from experiments.protocol.rows import Row
from experiments.records import DIVERGED


def best_trial(rows: Sequence[Row]) -> Row:
    """Return the trial with the best setting.

    The fastest to the target; of equal ones, and so of all where none reached it, the one with the
    best last validation value (a run that diverged has the worst); of these the first.

    Args:
        rows: the search trials of one optimizer on one data set.

    Raises:
        RecordError: there is none.
    """
    if not rows:
        raise RecordError("there are no trials to choose from")
    ordered = sorted(rows, key=lambda row: (row.study, row.trial))
    return min(ordered, key=lambda row: (row.seconds, _badness(row)))


def _badness(row: Row) -> float:
    """Return a number that is lower for a better last validation value."""
    if row.state == DIVERGED:
        return math.inf
    return -row.last if GREATER[row.metric] else row.last
