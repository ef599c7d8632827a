"""The README's example runs as it stands; what README and docs name exists, with its numbers."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.figures.reproduce import FIGURES
from experiments.publish.names import dataset_name, optimizer_name
from experiments.studies.comparison import report
from experiments.studies.comparison.rows import names_of, read_rows
from experiments.studies.comparison.scoring import scores_of, studies_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = "\n".join(PAGES.values())


class Field(torch.nn.Module):
    """What the README leaves to its reader: any module with ``forward(t, z)``."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, t, z):
        return torch.tanh(self.layer(z))


def test_the_example_trains_a_model():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    y = (x[:, 0] > x[:, 1]).long()
    losses = []
    true_loss = torch.nn.functional.cross_entropy

    def watched(*args):
        losses.append(true_loss(*args))
        return losses[-1]

    torch.manual_seed(0)
    namespace = {"Field": Field, "loader": [(x, y)] * 150}
    torch.nn.functional.cross_entropy = watched
    try:
        exec(compile(example, "README.md", "exec"), namespace)  # noqa: S102
    finally:
        torch.nn.functional.cross_entropy = true_loss
    assert losses[-1].item() < 0.8 * losses[0].item()
    assert len(namespace["optimizer"].curvature) == 2


def test_the_tables_name_what_exists():
    for group in ("task", "optimizer"):
        rows = re.search(rf"\| `{group}=` \|.*?\n\n", TEXT, re.S).group(0)
        first_cells = [line.split("|")[1] for line in rows.strip().splitlines()[2:]]
        for name in re.findall(r"`([a-z0-9_]+)`", " ".join(first_cells)):
            assert (ROOT / "configs" / group / f"{name}.yaml").is_file(), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rows = re.search(r"\| `make …` \|.*?\n\n", TEXT, re.S).group(0)
    first_cells = [line.split("|")[1] for line in rows.strip().splitlines()[2:]]
    for target in re.findall(r"`([a-z0-9-]+)`", " ".join(first_cells)):
        figure = target.removeprefix("reproduce-")
        if figure != target:
            assert figure in FIGURES, target
        else:
            assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_and_pictures_exist():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+\.\w+)", text):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), (page.name, link)


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 130


def test_the_numbers_are_those_of_the_figures_data():
    data = pd.read_csv(ROOT / "results" / "figure-1" / "data.csv")
    rows = cells("figure-1")
    assert len(rows) == 6
    names = {"digits": "digits", "JapaneseVowels": "japanese_vowels"}
    for dataset, optimizer, accuracy, seconds, to_90 in rows:
        own = data[data.dataset == names[dataset]]
        own = own[own.optimizer == optimizer.split(",")[0].lower()]
        measured = own.dropna(subset=["val_metric"])
        last = measured.sort_values("step").groupby("seed").tail(1)
        percent = 100 * last.val_metric
        expected = f"{percent.median():.1f} % ({percent.min():.1f}–{percent.max():.1f})"
        assert accuracy == expected, (dataset, optimizer)
        assert seconds == f"{last.time_s.median():.1f} s"
        reached = measured[measured.val_metric >= 0.9].groupby("seed").time_s.min()
        wanted = f"{reached.median():.1f} s" if len(reached) == 3 else "not reached"
        assert to_90 == wanted, (dataset, optimizer)


def cells(name):
    """Return the body of the table between the marks ``<!-- name -->``, by row."""
    table = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.S).group(1)
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def benchmark(name):
    path = ROOT / "results" / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["workloads"]


def test_the_ratios_are_those_of_the_benchmarks():
    engine = benchmark("engine")
    assert [row[0] for row in cells("engine")] == [w["title"] for w in engine.values()]
    for row, w in zip(cells("engine"), engine.values(), strict=True):
        over = {name: v["over_floor"]["median"] for name, v in w["variants"].items()}
        ratio = w["ratios"]["torchdiffeq_seminorm/snopt_adjoint"]["median"]
        expected = [over["snopt_adjoint"], over["torchdiffeq_seminorm"]]
        assert row[1:] == [*(f"{x:.2f}" for x in expected), f"{ratio:.1f}"]
    optimizer, memory = benchmark("optimizer"), benchmark("memory")
    for row, (name, w) in zip(cells("optimizer"), optimizer.items(), strict=True):
        refresh = w["refresh"]["all"]["over_ordinary"]["median"]
        average = w["average"]["all"]["100"]["over_sgd"]["median"]
        peak = memory[name]["ratios"]["snopt/adam"]
        assert row == [w["title"], f"{refresh:.2f}", f"{average:.3f}", f"{peak:.2f}"]


def test_the_comparison_is_that_of_its_runs():
    rows = read_rows(ROOT / "results" / "protocol" / "runs.csv")
    found, ups = studies_of(rows), report.speed_ups(studies_of(rows), rows)
    table = re.search(r"<!-- protocol -->\n(.*?)<!-- /protocol -->", TEXT, re.S).group(1)
    header = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    datasets = names_of(rows, "dataset")
    goals = {row["dataset"]: report.goal(row) for _, row in rows.iterrows()}
    assert header[1:-1] == [f"{dataset_name(name)}, {goals[name]}" for name in datasets]
    names = sorted(names_of(rows, "optimizer"), key=lambda name: -ups[name, "seconds"].bounded)
    assert [row[0] for row in cells("protocol")] == [optimizer_name(name) for name in names]
    for name, row in zip(names, cells("protocol"), strict=True):
        for dataset, cell in zip(datasets, row[1:-1], strict=True):
            studies = found["seconds"].xs(dataset).xs(name)
            hits = sum(map(math.isfinite, studies))
            value = scores_of(found).loc[(dataset, name), "seconds"]
            time = f"{value:.1f} s" if math.isfinite(value) else "missed"
            assert cell == f"{time} ({hits} of {len(studies)})", (dataset, name)
        up = ups[name, "seconds"]
        assert row[-1] == f"{up.sign}{up.bounded:.2f} ({up.low:.2f} to {up.high:.2f})"


def test_what_smaller_damping_does_is_what_figure_8_measured():
    entries = pd.read_csv(ROOT / "results" / "figure-8" / "data.csv")
    tuned = entries[(entries.optimizer == "snopt") & (entries.lr == 0.0149) & entries["map"]]
    accuracy = dict(zip(tuned.damping, tuned.accuracy, strict=True))
    middle = sorted(accuracy)[2]
    smaller = min(accuracy)
    assert middle / smaller == pytest.approx(100.0)
    first, second = (f"{100 * accuracy[damping]:.0f} %" for damping in (middle, smaller))
    assert f"from {first} to {second}" in TEXT


def test_the_ablations_numbers_are_those_of_its_data():
    entries = pd.read_csv(ROOT / "results" / "ablation" / "data.csv")
    found = entries.groupby(["dataset", "variant"]).seconds.median()
    datasets, rows = entries.dataset.unique(), cells("ablation")
    assert [row[0] for row in rows] == [dataset_name(dataset) for dataset in datasets]
    for dataset, row in zip(datasets, rows, strict=True):
        for variant, cell in zip(("adam", "SNOpt", "snopt_plus"), row[2:5], strict=True):
            seconds = found[dataset, variant]
            expected = f"{seconds:.1f} s" if math.isfinite(seconds) else "not reached"
            assert cell == expected, (dataset, variant)
        ratio = found[dataset, "snopt_plus"] / found[dataset, "adam"]
        assert row[5] == (f"{ratio:.2f}" if math.isfinite(ratio) else "–")


def test_the_published_settings_are_those_of_the_runs():
    names = {dataset_name(path.name): path.name for path in (ROOT / "results" / "paper").iterdir()}
    rows = cells("paper")
    assert len(rows) == 3 * len(names)
    for title, optimizer, value, seconds, cpu, seeds in rows:
        dataset = names[title.partition(",")[0]]
        pattern = f"{optimizer.split(',')[0].lower()}-seed-*.json"
        folder = ROOT / "results" / "paper" / dataset
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(pattern)]
        assert str(len(runs)) == seeds
        metric = runs[0]["metric"]
        median = statistics.median(run["results"][f"test/{metric}"] for run in runs)
        shown = f"{100 * median:.1f} %" if metric == "accuracy" else f"{median:.3f} nats"
        assert value == shown, (dataset, optimizer)
        trained = statistics.median(run["seconds"]["train"] for run in runs)
        assert seconds == f"{trained:.0f} s"
        booked = [run["train_cpu_s"] for run in runs if run.get("train_cpu_s")]
        assert cpu == (f"{statistics.median(booked):.0f} s" if booked else "–")


def test_steps_to_an_accuracy_on_spoken_arabic_digits_are_those_of_the_curves():
    steps = {}
    for name in ("snopt", "sgd", "adam"):
        curve = pd.read_csv(ROOT / "results/paper/spoken_arabic_digits" / f"{name}-seed-0.csv")
        for goal in (0.95, 0.97):
            reached = curve[curve.val_metric >= goal].step.min()
            steps[name, goal] = "never" if math.isnan(reached) else f"{reached:.0f}"
    first = f"after {steps['snopt', 0.95]} steps, SGD after {steps['sgd', 0.95]}, Adam after"
    second = ", ".join(steps[name, 0.97] for name in ("snopt", "sgd"))
    text = re.sub(r"\s+", " ", TEXT)
    assert f"{first} {steps['adam', 0.95]}," in text
    assert f"97 % after {second} and {steps['adam', 0.97]} (480 steps, one seed)" in text


def test_on_circle_snopt_is_ahead_with_each_seed():
    assert "ends ahead with each of the three seeds" in re.sub(r"\s+", " ", TEXT)
    folder = ROOT / "results" / "paper" / "circle"
    for seed in range(3):
        paths = [folder / f"{name}-seed-{seed}.json" for name in ("snopt", "adam", "sgd")]
        snopt, *others = (json.loads(p.read_text())["results"]["test/nll"] for p in paths)
        assert snopt < min(others)
