"""What a person sees of a sweep: a live table on a terminal, one line a change elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.run.records import RUNNING
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.state import View, counts, time_left


def span(seconds: float | None) -> str:
    """Return a duration in words, such as ``3 h 20 min``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def line(found: Sequence[View], jobs: int) -> str:
    """Return where a sweep stands in one line: states that occur, and the time left."""
    parts = [f"{count} {state}" for state, count in counts(found).items() if count]
    left = time_left(found, jobs)
    return ", ".join(parts) + ("" if left == 0.0 else f"; time left: {span(left)}")


def table(sweep: Sweep, found: Sequence[View], jobs: int) -> Table:
    """Return the table of states, the time left and the runs under way."""
    left = time_left(found, jobs)
    caption = "" if left == 0.0 else f"time left: {span(left)}"
    result = Table(title=f"{sweep.title}: {len(found)} runs", caption=caption)
    result.add_column("state")
    result.add_column("runs", justify="right")
    result.add_column("under way")
    running = [one for one in found if one.state == RUNNING]
    for state, count in counts(found).items():
        names = "\n".join(_under_way(one) for one in running) if state == RUNNING else ""
        result.add_row(state, str(count), names)
    return result


def _under_way(one: View) -> str:
    since = f", {span(one.elapsed)}" if one.elapsed else ""
    return f"{one.run.name}{since}"


class Board:
    """Shows a sweep while it runs.

    Args:
        sweep: the sweep.
        jobs: runs at a time.
        console: where to write; standard output by default.
    """

    def __init__(self, sweep: Sweep, jobs: int, console: Console | None = None) -> None:
        """Lay out the table."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._sweep = sweep
        self._jobs = jobs
        self._last: dict[str, int] = {}
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        """Start to draw."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the table."""
        self._live.stop()

    def show(self, found: Sequence[View]) -> None:
        """Show where the runs stand; without a terminal only what has changed."""
        if self.console.is_terminal:
            self._live.update(table(self._sweep, found, self._jobs), refresh=True)
        elif (now := counts(found)) != self._last:
            self._last = now
            self.say(line(found, self._jobs))

    def say(self, text: str) -> None:
        """Write one line above the table."""
        self.console.print(text, markup=False)
