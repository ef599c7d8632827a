"""When a validation is due: every so many steps, or every so many seconds of the training clock.

Runs of different optimizers that are compared by time should be looked at equally often in time:
with a grid of steps, the one with the cheaper steps would have more chances to meet a goal.
"""

from __future__ import annotations

from collections.abc import Callable


class ValidationGrid:
    """Tells after every step whether a validation is due.

    Args:
        steps: steps between validations.
        seconds: training seconds between validations; where given, ``steps`` does not count. Due is
            the first step that ends at or beyond a multiple of it; a step that passes several is
            followed by one validation.
    """

    def __init__(self, steps: int, seconds: float | None) -> None:
        """Stand at the beginning."""
        self.steps = steps
        self.seconds = seconds
        self._passed = 0

    def resume(self, trained: float) -> None:
        """Go on after ``trained`` seconds of training, whose validations are done."""
        self._passed = self._points(trained)

    def due(self, step: int, trained: Callable[[], float]) -> bool:
        """Return whether a validation follows a step; to be asked after every step, once.

        Args:
            step: number of the step.
            trained: returns the training seconds so far.
        """
        if self.seconds is None:
            return step % self.steps == 0
        before, self._passed = self._passed, self._points(trained())
        return self._passed > before

    def _points(self, trained: float) -> int:
        """Return how many points of the grid lie behind."""
        return 0 if self.seconds is None else int(trained / self.seconds)
