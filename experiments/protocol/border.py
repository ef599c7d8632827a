"""Whether a setting lies on the border of its search space: then the space may be too small."""

from __future__ import annotations

import math

from experiments.search_space import Params, Space

SHARE = 0.05
"""Part of a logarithmic range, at either end, that counts as its border."""


def at_border(space: Space, settings: Params) -> tuple[str, ...]:
    """Return in words which numbers lie on the border; choices have none.

    Args:
        space: the search space.
        settings: a point of it.
    """
    found = []
    for key, dimension in space.items():
        if "log_uniform" not in dimension or key not in settings:
            continue
        low, high = dimension["log_uniform"]
        place = math.log(float(settings[key]) / low) / math.log(high / low)
        if place <= SHARE:
            found.append(f"{key} at its lower end ({low:g})")
        elif place >= 1 - SHARE:
            found.append(f"{key} at its upper end ({high:g})")
    return tuple(found)
