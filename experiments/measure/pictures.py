"""The pictures of the benchmarks, drawn from their result files.

They are apart from what measures, because a process whose memory is measured must not hold
matplotlib. All ``draw_*`` functions take the folder of the result files, return the files that they
write, and raise RecordError where there are no results or they are damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from experiments.base.files import write_whole
from experiments.measure.harness import Spread, entries, machines, pair_ratio
from experiments.measure.memory import STEPS
from experiments.measure.step_cost import UPDATE_FREQS
from experiments.publish.style import RC, WIDTH_IN, finish, look

Entry = Mapping[str, Any]
Entries = Mapping[str, Entry]

OURS = "#8C1C4A"
"""Colour of this library, SNOpt's in every figure."""

ENGINE_MARKS = {
    "snopt_adjoint": ("^", OURS, OURS),
    "snopt_checkpoint": ("v", OURS, "white"),
    "torchdiffeq_seminorm": ("s", "#222222", "#222222"),
    "torchdiffeq_adjoint": ("s", "#222222", "white"),
    "torchdiffeq_direct": ("o", "#777777", "#777777"),
}
"""Marker, colour and face of a variant: shape and grey tell it apart without colour."""

OPTIMIZER_BARS = (
    ("adam", "Adam", look("adam").color, ""),
    ("snopt", "SNOpt, ordinary step", OURS, ""),
    ("snopt_ode_refresh", "SNOpt, refresh step, scope ode", "white", "////"),
    ("snopt_refresh", "SNOpt, refresh step", "white", ""),
)
"""Step, label, face and hatch of each bar."""

MEMORY_BARS = (
    ("sgd", "SGD", look("sgd").color, ""),
    ("adam", "Adam", look("adam").color, "...."),
    ("snopt_ode", "SNOpt, scope ode", "white", "////"),
    ("snopt", "SNOpt", OURS, ""),
)
"""Optimizer, label, face and hatch of each bar."""

MEMORY_LINES = {
    "snopt_adjoint": ("^", "solid", OURS),
    "snopt_checkpoint": ("s", (0, (5.0, 1.5)), "#444444"),
    "snopt_direct": ("o", (0, (1.5, 1.2)), "#777777"),
}
"""Marker, line style and colour of a gradient mode."""


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit, such as ``68.1 ms`` or ``1.04 s``."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"


def _titles(found: Entries, unit: Callable[[Entry], Any]) -> tuple[range, list[str]]:
    """Return ticks: the title of each workload with the seconds that are 1."""
    titles = [
        f"{e['title']}\n(1 = {duration(unit(e)['seconds']['median'])})" for e in found.values()
    ]
    return range(len(found)), titles


def _bars(
    axes: Axes,
    found: Entries,
    bars: Sequence[tuple[str, str, str, str]],
    height: Callable[[Entry, str], float],
    edge: str | None = None,
    **style: Any,
) -> list[list[float]]:
    """Draw a group of bars for each workload; return the places of each bar.

    ``edge`` is the colour around a bar that is not white; None means that of its face.
    """
    width, places = 0.8 / len(bars), []
    for place, (name, label, face, hatch) in enumerate(bars):
        x = [group + (place - (len(bars) - 1) / 2) * width for group in range(len(found))]
        heights = [height(entry, name) for entry in found.values()]
        color = OURS if face == "white" else edge or face
        axes.bar(
            x, heights, width, label=label, facecolor=face, edgecolor=color, hatch=hatch, **style
        )
        places.append(x)
    axes.grid(visible=False, axis="x")
    return places


def number(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[int, int], **how: Any
) -> None:
    """Write a text in small letters at a place, shifted by points."""
    axes.annotate(text, at, shift, textcoords="offset points", fontsize=8, **how)


def _save(
    figure: Figure,
    folder: Path,
    benchmark: str,
    caption: str,
    legend: float = 0.0,
    rc: dict[str, Any] = RC,
) -> list[Path]:
    """Write the picture of a benchmark; ``legend`` is the room above the panels in inches."""
    path = folder / f"{benchmark}.png"
    finish(figure, caption, path, top=1 - legend / figure.get_figheight(), rc=rc)
    return [path]


@mpl.rc_context(RC)
def draw_engine(folder: Path) -> list[Path]:
    """Draw the time of one pass in multiples of the floor, one row a workload."""
    found = entries(folder, "engine")
    figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.62 * len(found)))
    axes = figure.subplots()
    for row, entry in enumerate(found.values()):
        variants = entry["variants"]
        for place, (name, variant) in enumerate(variants.items()):
            (marker, color, face), over = ENGINE_MARKS[name], variant["over_floor"]
            # A little apart, so that equal ones do not hide one another.
            y = row + 0.11 * (place - (len(variants) - 1) / 2)
            axes.plot([over["q25"], over["q75"]], [y, y], color=color, linewidth=1.0)
            mark: dict[str, Any] = {"linestyle": "none", "marker": marker, "markerfacecolor": face}
            axes.plot([over["median"]], [y], color=color, label=variant["label"], **mark)
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_yticks(*_titles(found, lambda entry: entry["floor"]))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Time of one forward and backward pass / time of its evaluations alone")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, loc="upper center", ncols=2, handlelength=1.2)
    rounds = sorted({entry["rounds"] for entry in found.values()})
    span = " to ".join(str(n) for n in dict.fromkeys([rounds[0], rounds[-1]]))
    caption = (
        f"{machines(found.values())} Median and quartiles over {span} interleaved"
        " rounds, as pairs with the floor: the evaluations of F and the vector-Jacobian"
        " products that the adjoint of snopt makes, and nothing else."
    )
    return _save(figure, folder, "engine", caption, legend=0.62)


@mpl.rc_context(RC)
def draw_optimizer(folder: Path) -> list[Path]:
    """Draw what a step of SNOpt costs, relative to one of SGD."""
    found = entries(folder, "optimizer")
    figure = Figure(figsize=(WIDTH_IN, 3.9))
    bars, lines = figure.subplots(1, 2, width_ratios=(1.6, 1.0))
    _draw_steps(bars, found)
    _draw_averages(lines, found)
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, handlelength=1.6)
    rounds = min(entry["rounds"] for entry in found.values())
    caption = (
        f"{machines(found.values())} Medians of pairs over at least {rounds} interleaved"
        " rounds; bars with quartiles. All steps solve the same ODE (learning rate 0)."
        " Averages are composed of one refresh step and update_freq - 1 ordinary ones."
    )
    return _save(figure, folder, "optimizer", caption, legend=0.5)


def _draw_steps(axes: Axes, found: Entries) -> None:
    def ratio(entry: Entry, step: str) -> Spread:
        steps = entry["steps"]
        return pair_ratio(steps[step]["samples_s"], steps["sgd"]["samples_s"])

    places = _bars(axes, found, OPTIMIZER_BARS, lambda entry, step: ratio(entry, step).median)
    for (step, *_), x in zip(OPTIMIZER_BARS, places, strict=True):
        for at, entry in zip(x, found.values(), strict=True):
            one = ratio(entry, step)
            axes.vlines(at, one.q25, one.q75, color="black", linewidth=1.0)
            top = max(one.median, one.q75)
            number(axes, f"{one.median:.2f}", (at, top), (0, 3), ha="center", rotation=90)
    axes.axhline(1.0, color="black", linewidth=1.0)
    axes.set_xticks(*_titles(found, lambda entry: entry["steps"]["sgd"]))
    axes.set_ylabel("Time of a step (SGD = 1)")
    axes.margins(y=0.2)


def _draw_averages(axes: Axes, found: Entries) -> None:
    looks = (("o", "solid"), ("s", (0, (5.0, 1.5))), ("^", (0, (1.5, 1.2))), ("D", "dashdot"))
    for (marker, style), entry in zip(cycle(looks), found.values(), strict=False):
        values = [entry["average"]["all"][str(f)]["over_sgd"]["median"] for f in UPDATE_FREQS]
        axes.plot(
            UPDATE_FREQS, values, marker=marker, linestyle=style, color=OURS, label=entry["title"]
        )
    axes.axhline(1.0, color="black", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_xticks(UPDATE_FREQS, [str(freq) for freq in UPDATE_FREQS])
    axes.minorticks_off()
    axes.set_xlabel("update_freq (steps)")
    axes.set_ylabel("Average time of a step (SGD = 1)")
    axes.legend(handlelength=3.0, fontsize=8)


@mpl.rc_context(RC)
def draw_memory(folder: Path) -> list[Path]:
    """Draw the memory of each optimizer, and of each gradient mode against solver steps.

    A panel without results is left out.
    """
    found = entries(folder, "memory")
    training = {name: entry for name, entry in found.items() if name != STEPS}
    panels = bool(training) + (STEPS in found)
    figure = Figure(figsize=(WIDTH_IN * (1.0 if panels == 2 else 0.6), 3.6))
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if training:
        _draw_peaks(axes[0], training)
    if STEPS in found:
        _draw_modes(axes[-1], found[STEPS])
    counted = (
        "The allocator's peak less its state at the start"
        if all(entry["origin"]["device"] != "cpu" for entry in found.values())
        else "Peak of the resident memory less the start: imports, building, two small steps"
    )
    caption = f"{machines(found.values())} {counted}; every measurement in its own process."
    return _save(figure, folder, "memory", caption)


def _draw_peaks(axes: Axes, found: Entries) -> None:
    def peak(entry: Entry, optimizer: str) -> float:
        return float(entry["optimizers"][optimizer]["extra_mb"]["median"])

    _bars(axes, found, MEMORY_BARS, peak, edge="black", linewidth=0.6)
    axes.set_xticks(range(len(found)), [entry["title"] for entry in found.values()], fontsize=8)
    axes.set_ylabel("Peak memory of training steps (MB)")
    axes.legend(handlelength=1.6, fontsize=8)


def _draw_modes(axes: Axes, entry: Entry) -> None:
    for name, mode in entry["modes"].items():
        marker, style, color = MEMORY_LINES[name]
        points = sorted((p["steps_forward"], p["extra_mb"]) for p in mode["points"])
        slope = mode["mb_per_step"]
        axes.plot(
            *zip(*points, strict=True),
            marker=marker,
            linestyle=style,
            color=color,
            label=f"{mode['label'].removeprefix('snopt ')}: "
            f"{slope['slope']:+.2f} ± {slope['slope_stderr']:.2f} MB a step",
        )
    axes.set_ylim(0.0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"Accepted steps (state {entry['state_mb']:.2g} MB)")
    axes.set_ylabel("Peak memory of a pass (MB)")
    axes.legend(handlelength=3.0, fontsize=8)


def draw_optimizers(folder: Path) -> list[Path]:
    """Draw every optimizer's step cost relative to SGD's, and write the table."""
    (entry,) = entries(folder, "optimizers").values()
    table = folder / "optimizers.md"
    rows = sorted(entry["optimizers"].items(), key=lambda item: item[1]["average_over_sgd"])
    write_whole(table, _optimizers_table(rows, entry.get("failed", {})))
    names = [name for name, _ in rows]
    means = [o["average_over_sgd"] for _, o in rows]
    medians = [o["ordinary_over_sgd"]["median"] for _, o in rows]
    colours = [OURS if name.startswith("snopt") else "#7A7A7A" for name in names]
    figure = Figure(figsize=(7.0, 0.32 * len(rows) + 1.7))
    axes = figure.add_subplot()
    axes.barh(names, means, color=colours, height=0.65)
    axes.plot(medians, range(len(names)), "k|", markersize=9, label="step without a refresh")
    for y, (mean, median) in enumerate(zip(means, medians, strict=True)):
        number(axes, f"{mean:.2f}", (max(mean, median), y), (4, 0), va="center")
    axes.axvline(1.0, color="black", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.6 * max(*means, *medians))
    axes.set_xlabel("seconds of a step / SGD's")
    axes.set_title(entry["title"], fontsize=10)
    axes.legend(fontsize=8, loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    caption = (
        f"{entry['description']}, {entry['parameters']} parameters, published settings of each."
        f" Bars: mean of {entry['rounds']} interleaved steps at the same weights, refreshes with"
        f" their share; marks: median. {machines([entry])}"
    )
    return [*_save(figure, folder, "optimizers", caption, rc={}), table]


def _optimizers_table(rows: Sequence[tuple[str, Entry]], failed: Mapping[str, str]) -> str:
    lines = [
        "| optimizer | average step / SGD's | step without a refresh / SGD's | average step |"
        " losses a step | forward / backward / curvature evaluations a step |",
        "|---|---|---|---|---|---|",
    ]
    for name, o in rows:
        nfe = " / ".join(f"{o[f'nfe_{k}']:.4g}" for k in ("forward", "backward", "curvature"))
        lines.append(
            f"| {name} | {o['average_over_sgd']:.3f} | {o['ordinary_over_sgd']['median']:.3f} |"
            f" {duration(o['mean_s'])} | {o['losses']:.3g} | {nfe} |"
        )
    for name, reason in failed.items():
        lines.append(f"| {name} | failed: {reason.replace('|', '/')} | | | | |")
    return "\n".join(lines) + "\n"
