"""Figure 8: how much the result depends on the learning rate, and on learning rate and damping.

Every optimizer runs at learning rates around its tuned one, evenly spaced on a logarithmic scale;
one with a damping also runs on a grid of learning rate and damping. All runs have the same number
of steps. ``configs/sensitivity.yaml`` describes the runs.

Above: final validation accuracy over the learning rate, medians over seeds. Below: one map of
learning rate and damping for each optimizer with a damping. A table gives the width of the good
range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.figures.request import Figure, Made, Request, facts_of, in_turn, listed
from experiments.publish.names import optimizer_name
from experiments.publish.provenance import read_provenance
from experiments.publish.style import LOOKS, WIDTH_IN, Look, finish, handles, styled
from experiments.publish.tables import Table, csv_of, read_table
from experiments.run.config import CONFIGS, load_config, resolve
from experiments.run.records import DIVERGED, DONE, Summary, summarise
from experiments.studies import study
from experiments.studies.execute import PlannedRun, Say, planned
from experiments.studies.goals import best
from experiments.studies.study import Workplace, train_points

NAME = "figure-8"
CUT = "cut"
"""State of a run that was stopped by its time limit before its last step."""
MARGIN = 0.01
"""One percentage point of accuracy: a value this close to the best is as good."""
COLUMNS = {
    "optimizer": str,
    "lr": float,
    "damping": float,
    "line": bool,
    "map": bool,
    "seed": int,
    "accuracy": float,
    "state": str,
    "steps": int,
    "seconds": float,
}
"""``data.csv``, one row a run: its :class:`Point`; final validation accuracy (that of guessing if
it diverged); ``done``, ``diverged`` or ``cut``; steps taken and training seconds."""
OWN_LOOKS = {
    **LOOKS,
    "kfac": Look(optimizer_name("kfac"), "#1A1A1A", (0, (4.0, 1.2, 1.0, 1.2)), "D"),
}
COLOURS = "viridis"
"""Its luminance rises all the way, so the map reads in greyscale too."""


@dataclass(frozen=True)
class Point:
    """Settings of one optimizer, on the line or the map; ``damping`` is NaN if it has none."""

    optimizer: str
    lr: float
    damping: float
    line: bool
    map: bool

    @property
    def label(self) -> str:
        """Its name in messages."""
        damping = "" if math.isnan(self.damping) else f", damping {self.damping:g}"
        return f"{self.optimizer}, lr {self.lr:g}{damping}"


def scale(middle: float, points: int, decades: float) -> list[float]:
    """Return an odd number of values evenly spaced on a logarithmic scale, three digits each."""
    half = points // 2
    powers = [decades * place / (2 * half) if half else 0.0 for place in range(-half, half + 1)]
    return [float(f"{middle * 10.0**power:.3g}") for power in powers]


@dataclass(frozen=True)
class Sensitivity:
    """The parts of ``configs/sensitivity.yaml``."""

    experiment: str
    dataset: str
    chance: float
    lr: Mapping[str, Any]
    map: Mapping[str, Any]
    optimizers: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: Path = CONFIGS / "sensitivity.yaml") -> Sensitivity:
        """Read the description."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            keys = ("experiment", "dataset", "chance", "lr", "map", "optimizers")
            found = cls(**{key: content[key] for key in keys})
            counts = [found.lr["points"], found.map["points"]]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no description of a sensitivity: {error!r}") from error
        if any(count < 3 or count % 2 == 0 for count in counts):
            raise ConfigError(f"{path}: points must be odd and at least 3, got {counts}")
        return found

    def points(self, optimizer: str) -> list[Point]:
        """Return the points of an optimizer: the line, then the rest of the map."""
        spec = self.optimizers[optimizer]
        settings, name = spec["settings"], spec.get("damping")
        rates = scale(settings["lr"], self.lr["points"], self.lr["decades"])
        if name is None:
            return [Point(optimizer, lr, math.nan, True, False) for lr in rates]
        of_map = rates[:: self.map["every"]]
        middle = settings[name]
        dampings = scale(middle, self.map["points"], self.map["decades"])
        line = [Point(optimizer, lr, middle, True, lr in of_map) for lr in rates]
        return line + [
            Point(optimizer, lr, damping, False, True)
            for damping in dampings
            if damping != middle
            for lr in of_map
        ]

    def overrides(self, point: Point) -> list[str]:
        """Return what a point changes in the experiment."""
        spec = self.optimizers[point.optimizer]
        settings = {**spec["settings"], "lr": point.lr}
        if "damping" in spec:
            settings[spec["damping"]] = point.damping
        return [
            f"optimizer={point.optimizer}",
            *(f"optimizer.{key}={value}" for key, value in settings.items()),
        ]

    def trial(self, point: Point, run: PlannedRun) -> study.Point:
        """Return a run as a trial of a study whose search space is the grid."""
        grid = self.points(point.optimizer)
        space = {"lr": {"choice": sorted({other.lr for other in grid})}}
        if not math.isnan(point.damping):
            space["damping"] = {"choice": sorted({other.damping for other in grid})}
        params = {key: getattr(point, key) for key in space}
        return study.point_of(run, params, space, f"{point.optimizer}.")

    def budget(self, changes: Sequence[str]) -> tuple[int | None, float | None]:
        """Return the largest number of steps and of training seconds of a run."""
        trainer = resolve(load_config([f"experiment={self.experiment}", *changes]))["trainer"]
        return trainer["max_steps"], trainer["max_seconds"]


def plan(
    sensitivity: Sensitivity, request: Request, changes: Sequence[str], optimizers: Sequence[str]
) -> list[tuple[Point, PlannedRun]]:
    """Return the runs of some optimizers (empty: of all) with their points, in training order."""
    return in_turn(
        {
            point: planned(
                sensitivity.experiment,
                sensitivity.dataset,
                point.label,
                request.seeds,
                [*sensitivity.overrides(point), *changes],
                (*request.where, "tracking=none"),
            )
            for optimizer in optimizers or sensitivity.optimizers
            for point in sensitivity.points(optimizer)
        }
    )


def reproduce(request: Request, say: Say) -> None:
    """Train what is missing, then write the files of figure and table.

    The overrides are changes to every run (``key=value``) and names of optimizers, which leave the
    others out. A run that diverged counts as guessing.
    """
    sensitivity = Sensitivity.load()
    names = [name for name in request.overrides if "=" not in name]
    changes = [change for change in request.overrides if "=" in change]
    unknown = [name for name in names if name not in sensitivity.optimizers]
    if unknown:
        valid = ", ".join(sensitivity.optimizers)
        raise ConfigError(f"{NAME} takes key=value or optimizers, {valid}; got {unknown[0]!r}")
    steps, limit = sensitivity.budget(changes)
    wanted = plan(sensitivity, request, changes, names)
    length = "as long as the time allows" if steps is None else f"of {steps} steps each"
    say(f"{NAME}: {len(wanted)} runs, {length}")
    train_points(
        NAME,
        [sensitivity.trial(point, run) for point, run in wanted],
        lambda runs: -best(runs[0].metrics, "accuracy", greater=True),
        Workplace(output_dir=request.output_dir, jobs=request.jobs, train=request.train),
        say,
        consequence=f"{NAME} is not drawn",
    )
    made = [Made(point, summarise(run.folder), run.command) for point, run in wanted]
    order = list(sensitivity.optimizers)
    made.sort(key=lambda one: order.index(one.variant.optimizer))  # stable: points keep their order
    entries = [score(one.run, one.variant, steps, sensitivity.chance) for one in made]
    facts = facts_of(made)
    seeds = facts["seeds"]
    together = "" if request.jobs == 1 else f", {request.jobs} runs at a time"
    length = f"{steps} steps" if steps is not None else "as many steps as the time allows"
    stop = "" if limit is None else f", at most {limit:g} s of training"
    several = "" if len(seeds) == 1 else ": medians and range"
    framed = " Framed: within 1 point of the map's best. † stopped by time, × diverged."
    mapped = any(not math.isnan(entry["damping"]) for entry in entries)
    facts["caption"] = (
        f"{facts['device']}{together}. Digits, {length}{stop}; seed{'s' * (len(seeds) > 1)}"
        f" {listed(seeds)}{several}. A run that diverged (×) counts as guessing."
        f"{framed * mapped} The middle point is the tuned setting (KFAC: the default)."
    )
    request.publish(csv_of(pd.DataFrame(entries)[list(COLUMNS)], missing="nan"), **facts)
    redraw(request.folder)


def score(run: Summary, point: Point, steps: int | None, chance: float) -> dict[str, Any]:
    """Return what a finished run says, by the names of :data:`COLUMNS`."""
    if run.state not in (DONE, DIVERGED):
        raise RecordError(f"{run.name} ({point.label}) is {run.state}")
    last = max(run.metrics, key=lambda row: row["step"], default={"step": 0, "time/train_s": 0.0})
    values = [row["val/accuracy"] for row in run.metrics if "val/accuracy" in row]
    state, accuracy = run.state, chance
    if state == DONE:
        if not values:
            raise RecordError(f"{run.name} ({point.label}) was never validated: {run.folder}")
        accuracy = float(values[-1])
        state = CUT if steps is not None and last["step"] < steps else DONE
    return {
        **vars(point),
        "seed": run.seed,
        "accuracy": accuracy,
        "state": state,
        "steps": int(last["step"]),
        "seconds": float(last["time/train_s"]),
    }


def read_entries(path: Path) -> pd.DataFrame:
    """Read ``data.csv``."""
    entries = read_table(path, COLUMNS)
    if entries.empty:
        raise RecordError(f"{NAME}: there are no runs in {path}")
    if entries["accuracy"].isna().any():
        raise RecordError(f"{path} is damaged: an accuracy is not finite")
    return entries


def medians(entries: pd.DataFrame) -> pd.Series:
    """Return the median accuracy over seeds by learning rate and damping (0 for none)."""
    return entries.fillna({"damping": 0.0}).groupby(["lr", "damping"])["accuracy"].median()


def within(values: pd.Series, best: float) -> pd.Series:
    """Return which values are at most :data:`MARGIN` below the best one."""
    return values >= best - MARGIN - 1e-9


def share(entries: pd.DataFrame, optimizer: str, part: str) -> str:
    """Return in words how many points of ``line`` or ``map`` are within a point of the best."""
    values = medians(entries[(entries["optimizer"] == optimizer) & entries[part]])
    return f"{within(values, values.max()).sum()} of {len(values)}"


def table(entries: pd.DataFrame, caption: str) -> Table:
    """Return the table: the learning rate alone, then learning rate and damping."""
    overall = medians(entries).max()
    rows: list[Sequence[str]] = []
    for part, heading in (("line", "learning rate"), ("map", "learning rate and damping")):
        shown = entries[entries[part]]
        rows += [(heading,)] if len(shown) else []
        for optimizer, own in shown.groupby("optimizer", sort=False):
            values = medians(own)
            lr, damping = values.idxmax()
            close = [within(values, best) for best in (values.max(), overall)]
            rows.append(
                (
                    optimizer_name(optimizer),
                    f"{100 * values.max():.1f} %",
                    f"{lr:g}",
                    f"{damping:g}" if damping else "–",
                    *(f"{ok.sum()} of {len(ok)} ({100 * ok.mean():.0f} %)" for ok in close),
                    *(f"{(own['state'] == s).sum()} of {len(own)}" for s in (DIVERGED, CUT)),
                )
            )
    header = (
        "",
        "best accuracy",
        "at lr",
        "at damping",
        "within 1 point of its best",
        "within 1 point of the best of all",
        "diverged",
        "stopped by time",
    )
    return Table(header, rows, caption)


def redraw(folder: Path) -> None:
    """Write ``figure.png`` and ``table.md`` again from ``data.csv`` and the caption."""
    entries = read_entries(folder / "data.csv")
    line = read_provenance(folder)["caption"]
    write_whole(folder / "table.md", table(entries, line).markdown())
    finish(draw(entries), line, folder / "figure.png")


@styled
def draw(entries: pd.DataFrame) -> Picture:
    """Return the figure without its caption."""
    of_map, of_line = entries[entries["map"]], entries[entries["line"]]
    mapped = of_map["optimizer"].unique()
    picture = Picture(figsize=(WIDTH_IN, 6.2 if len(mapped) else 3.4))
    grid = picture.add_gridspec(2 if len(mapped) else 1, 2)
    entries_of_legend = _lines(picture.add_subplot(grid[0, 0]), of_line)
    beside = picture.add_subplot(grid[0, 1])
    beside.axis("off")
    title = "Learning rates within 1 point\nof the optimizer's best"
    beside.legend(handles=entries_of_legend, title=title, loc="center left")
    lowest = 100 * of_map["accuracy"].min()
    for column, name in enumerate(mapped):
        axes = picture.add_subplot(grid[1, column])
        image = _map(axes, of_map[of_map["optimizer"] == name], lowest)
        axes.set_title(f"{OWN_LOOKS[name].label}: {share(entries, name, 'map')} within 1 point")
        axes.set_ylabel("Damping")
        bar = picture.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))
        bar.set_label("Validation accuracy (%)")
    return picture


def _lines(axes: Axes, entries: pd.DataFrame) -> list[Line2D]:
    """Draw accuracy over the learning rate; return the entries of the legend."""
    legend = []
    for name, own in entries.groupby("optimizer", sort=False):
        look = OWN_LOOKS[name]
        percent = 100 * own.groupby("lr")["accuracy"].agg(["median", "min", "max"])
        axes.plot(percent.index, percent["median"], **look.line)
        axes.fill_between(
            percent.index, percent["min"], percent["max"], color=look.color, alpha=0.15, linewidth=0
        )
        for lr, value in percent["median"].items():
            _mark(axes, lr, value, set(own.loc[own["lr"] == lr, "state"]), look)
        label = (
            f"{look.label}: {share(entries, name, 'line')}, best {percent['median'].max():.1f} %"
        )
        legend += handles([Look(label, look.color, look.linestyle, look.marker)])
    states = set(entries["state"])
    if CUT in states:
        legend.append(_sample("stopped by the time limit", marker="o", markerfacecolor="white"))
    if DIVERGED in states:
        legend.append(_sample("diverged", marker="x", markeredgewidth=1.8))
    axes.set_xscale("log")
    axes.set_ylim(0.0, 101.0)
    axes.set_xlabel("Learning rate")
    axes.set_ylabel("Validation accuracy (%)")
    return legend


def _mark(axes: Axes, lr: float, value: float, states: set[str], look: Look) -> None:
    """Draw the marker of a point: a cross where a seed diverged, hollow where one was cut."""
    style: dict[str, Any] = {"color": look.color, "linestyle": "none", "zorder": 3}
    if DIVERGED in states:
        axes.plot([lr], [value], marker="x", markersize=6.5, markeredgewidth=1.8, **style)
    else:
        face = "white" if CUT in states else look.color
        axes.plot([lr], [value], marker=look.marker, markerfacecolor=face, **style)


def _sample(label: str, **style: Any) -> Line2D:
    return Line2D([], [], color="#555555", linestyle="none", label=label, **style)


def _map(axes: Axes, entries: pd.DataFrame, lowest: float) -> Any:
    """Draw accuracy over learning rate (across) and damping (up); the best cells get a frame."""
    values = medians(entries)
    close = within(values, values.max())
    cells = 100 * values.unstack("lr")
    rates, dampings = list(cells.columns), list(cells.index)
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=COLOURS, vmin=lowest, vmax=100.0)
    for (lr, damping), value in values.items():
        row, column = dampings.index(damping), rates.index(lr)
        own = entries[(entries["lr"] == lr) & (entries["damping"] == damping)]
        states = set(own["state"])
        text = "×" if states == {DIVERGED} else f"{100 * value:.0f}"
        text += "×" * (DIVERGED in states and len(states) > 1) + "†" * (CUT in states)
        # Light cells get dark numbers.
        dark = (100 * value - lowest) > 0.55 * (100 - lowest)
        color = "black" if dark else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        if close[lr, damping]:
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(
                mpl.patches.Rectangle(corner, 0.92, 0.92, fill=False, color="black", linewidth=1.6)
            )
    axes.set_xticks(range(len(rates)), [_number(value) for value in rates], rotation=30)
    axes.set_yticks(range(len(dampings)), [_number(value) for value in dampings])
    axes.set_xlabel("Learning rate")
    axes.grid(visible=False)
    return image


def _number(value: float) -> str:
    """Return a number for a tick: plain, or with an exponent where that is shorter."""
    return f"{value:g}" if 1e-3 <= value < 1e3 else f"{value:.2g}".replace("e-0", "e-")


FIGURES = (Figure(NAME, reproduce, redraw),)
