"""What a sweep found: the best points, every run in ``results.csv``, and what failed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.base.files import write_whole
from experiments.publish.tables import to_csv
from experiments.run.records import DONE, FAILED, summarise
from experiments.studies.goals import GREATER, best
from experiments.studies.search_space import Params
from experiments.studies.sweeps.plan import Sweep
from experiments.studies.sweeps.state import View

RESULTS = "results.csv"


@dataclass(frozen=True)
class Score:
    """What one run reached.

    Attributes:
        view: the run.
        metric: validation metric, empty where none was measured.
        value: its best value; NaN where none was measured.
        loss: best validation loss, which decides between equal values; infinite where none was.
        score: lower is better; infinite for a run that diverged, NaN for one that is not complete.
    """

    view: View
    metric: str
    value: float
    loss: float
    score: float


@dataclass(frozen=True)
class Ranked:
    """One point: its settings, the means over its seeds, and how many of them are complete.

    Attributes:
        point: its number.
        params: its settings.
        metric: validation metric.
        score: mean score; infinite where one of its runs diverged.
        loss: mean of the best validation losses.
        value: mean of the metric.
        runs: complete runs.
    """

    point: int
    params: Params
    metric: str
    score: float
    loss: float
    value: float
    runs: int


def score(view: View) -> Score:
    """Return what a run reached.

    Raises:
        RecordError: its record is damaged.
    """
    if not view.final:
        return Score(view, "", math.nan, math.inf, math.nan)
    rows = summarise(view.run.folder).metrics
    metric = next((name for name in GREATER if any(f"val/{name}" in row for row in rows)), "")
    if not metric:
        return Score(view, "", math.nan, math.inf, math.inf)
    greater = GREATER[metric]
    value = best(rows, metric, greater=greater)
    loss = min((row["val/loss"] for row in rows if "val/loss" in row), default=math.inf)
    if view.state != DONE:
        return Score(view, metric, value, math.inf, math.inf)
    return Score(view, metric, value, loss, -value if greater else value)


def rank(scores: Sequence[Score]) -> list[Ranked]:
    """Return the points with a complete run, the best one first, those that diverged last."""
    points: dict[int, list[Score]] = {}
    for one in scores:
        if not math.isnan(one.score):
            points.setdefault(one.view.run.point, []).append(one)
    found = [
        Ranked(
            point=number,
            params=own[0].view.run.params,
            metric=next((one.metric for one in own if one.metric), ""),
            score=statistics.fmean(one.score for one in own),
            loss=statistics.fmean(one.loss for one in own),
            value=statistics.fmean(one.value for one in own),
            runs=len(own),
        )
        for number, own in points.items()
    ]
    return sorted(found, key=lambda point: (point.score, point.loss, point.point))


def report(sweep: Sweep, found: Sequence[View], shown: int = 5) -> list[str]:
    """Return the lines that end a sweep: the best points, and how many diverged.

    Args:
        sweep: the sweep.
        found: where its runs stand.
        shown: how many of the best points to name.

    Raises:
        RecordError: a record is damaged.
    """
    ranked = rank([score(view) for view in found])
    seeds = len(sweep.asked["seeds"])
    lines = [_line(point, seeds) for point in ranked[:shown] if math.isfinite(point.score)]
    if lines:
        what = "runs" if seeds == 1 else f"means over {seeds} seeds"
        lines.insert(0, f"best points ({what}, by the best validation value):")
    lost = sum(not math.isfinite(point.score) for point in ranked)
    if lost:
        lines.append(f"{lost} of {len(ranked)} points diverged and count as infinitely bad")
    return lines


def failures(found: Sequence[View]) -> list[str]:
    """Return one line for each run that failed: its name and the first line of its error."""
    return [f"{one.run.name}: {one.error}" for one in found if one.state == FAILED]


def write_results(sweep: Sweep, found: Sequence[View]) -> None:
    """Write ``results.csv`` into the sweep's folder.

    Raises:
        RecordError: a record is damaged, or the disk refuses.
    """
    write_whole(sweep.folder / RESULTS, csv_of(sweep, [score(view) for view in found]))


def csv_of(sweep: Sweep, scores: Sequence[Score]) -> str:
    """Return one line a run; the score of a run that diverged is ``inf``."""
    keys = list(sweep.space)
    header = ["point", "seed", *keys, "state", "score", "metric", "value", "record"]
    return to_csv(header, (_cells(sweep, keys, one) for one in scores))


def _cells(sweep: Sweep, keys: Sequence[str], one: Score) -> list[object]:
    run = one.view.run
    settings = [run.params[key] for key in keys]
    score, value = ("" if math.isnan(x) else f"{x:.6g}" for x in (one.score, one.value))
    folder = run.folder.relative_to(sweep.output_dir)
    return [run.point, run.seed, *settings, one.view.state, score, one.metric, value, folder]


def _line(point: Ranked, seeds: int) -> str:
    value = f"{100 * point.value:.2f} %" if GREATER[point.metric] else f"{point.value:.4f}"
    settings = ", ".join(f"{key}={setting}" for key, setting in point.params.items())
    missing = "" if point.runs == seeds else f" ({point.runs} of {seeds} runs)"
    return f"  point {point.point}: {point.metric} {value}{missing}: {settings}"
