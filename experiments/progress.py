"""What a person sees of a run: a bar on a terminal, one line at each end elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_REFRESH_SECONDS = 0.2


class ProgressBar:
    """Shows how far a run is; loss, metric, NFE of the last step and the time left.

    The bar is redrawn from :meth:`update` and not by rich's own thread, which would take time from
    training without being booked.

    Args:
        show: draw a bar; None means on a terminal only.
        console: where to write, standard output by default.
    """

    def __init__(self, show: bool | None = None, console: Console | None = None) -> None:
        """Lay out the bar."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        shown = self.console.is_terminal if show is None else show
        self._drawn = 0.0
        self._metric = ""
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            auto_refresh=False,
            transient=True,
            disable=not shown,
        )
        self._task = self._bar.add_task("", total=1.0, step=0, numbers="")

    def __enter__(self) -> ProgressBar:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Write one line above the bar."""
        self.console.print(line, markup=False)

    def update(self, fraction: float, row: Mapping[str, float], metric: str) -> None:
        """Show a row of the record.

        Args:
            fraction: how much of the run is done, 0 to 1.
            row: keys as in ``metrics.jsonl``; the last validation stays on display.
            metric: name of the task's metric.
        """
        if self._bar.disable:
            return
        if f"val/{metric}" in row:
            self._metric = f"  {metric} {row[f'val/{metric}']:.4g}"
        now = time.monotonic()
        if now - self._drawn < _REFRESH_SECONDS and fraction < 1:
            return
        self._drawn = now
        numbers = self._metric
        if "train/loss" in row:
            evaluations = row["nfe/forward"] + row["nfe/backward"] + row["nfe/curvature"]
            numbers = f"loss {row['train/loss']:.4g}{self._metric}  nfe {evaluations:.0f}"
        self._bar.update(self._task, completed=fraction, step=row["step"], numbers=numbers)
        self._bar.refresh()
