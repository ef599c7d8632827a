"""The parts of the report: folders, curves of a table, Markdown, listings, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.base.errors import RecordError
from experiments.figures.report.contents import chart, listings, sections, title_of
from experiments.figures.report.page import build, html, readme
from tests.experiments.figures.report.report_cases import write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("report"))


def test_sections_come_in_order_with_their_facts(results):
    found = {section.name: section for section in sections(results)}
    assert list(found) == ["figure-1", "figure-8-paper", "table-3"]
    assert found["figure-8-paper"].title == "Figure 8, published settings"
    assert title_of("benchmarks") == "Benchmarks"
    one = found["figure-1"]
    assert one.pictures == ("figure-1/figure.png",)
    facts = dict(one.facts)
    assert facts["Device"] == "CPU, 2 threads"
    assert facts["Data"] == "digits, japanese_vowels"
    assert facts["Seeds"] == "0, 1, 2"
    assert facts["Command"] == "make reproduce-figure-1 PROFILE=embedded SEEDS=0,1,2"
    assert "00000000" in facts["Commit"]
    assert dict(found["table-3"].facts) == {"Commit": "aaaaaaaa"}


def test_curves_by_hand(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(
        "dataset,optimizer,mode,seed,step,time_s,train_loss,nfe\n"
        "digits,snopt,fast,0,0,0.0,,\n"
        "digits,snopt,fast,0,1,0.5,1.23456789,\n"
        "digits,snopt,fast,0,2,1.0,inf,\n"
        "circle,new,slow,1,1,0.25,-2,\n"
    )
    found = chart(path)
    assert found is not None
    # Nothing was counted in nfe, so it is not offered.
    assert [name for name, _ in found["axes"]] == ["time_s", "step"]
    assert found["values"] == [["train_loss", "Training loss"]]
    assert list(found["panels"]) == ["digits", "circle"]
    (run,) = found["panels"]["digits"]
    assert (run["name"], run["group"]) == ("SNOpt, fast, seed 0", "SNOpt, fast")
    assert run["train_loss"] == [None, 1.2346, None]
    assert run["step"] == [0.0, 1.0, 2.0]
    assert found["panels"]["circle"][0]["name"] == "new, slow, seed 1"


def test_long_runs_are_thinned_but_keep_rare_columns_and_their_end(tmp_path):
    path = tmp_path / "data.csv"
    rows = (f"sgd,0,{i},{i},{i if i % 100 == 0 else ''}" for i in range(1, 2001))
    path.write_text("\n".join(["optimizer,seed,step,train_loss,val_loss", *rows]) + "\n")
    found = chart(path, points=50)
    assert found is not None
    (run,) = found["panels"][""]
    assert run["step"][-1] == 2000
    assert [v for v in run["val_loss"] if v is not None] == [100.0 * i for i in range(1, 21)]
    assert 50 <= len(run["step"]) <= 72


def test_a_table_without_steps_has_no_curves(results):
    assert chart(results / "figure-8-paper" / "data.csv") is None


def test_markdown():
    text = html(f"| a | b |\n|---|---|\n| **x** | 1 \\| 2 |\n| {'w' * 33} | |\n\nSee `<b>`. <b>\n")
    assert "<th>a</th>\n<th>b</th>" in text
    assert "<td><strong>x</strong></td>\n<td>1 | 2</td>" in text
    assert f'<td class="long">{"w" * 33}</td>' in text
    assert '<p class="caption">See <code>&lt;b&gt;</code>. &lt;b&gt;</p>' in text
    link = '<p><a class="picture" href="a.png"><img src="a.png" alt="A" /></a></p>\n'
    assert html("![A](a.png)") == link


def test_the_readme_has_pictures_captions_tables_and_links(results):
    text = readme([*sections(results), *listings(results)])
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Figure 1", "Figure 8, published settings", "Table 3", "Searches"]
    assert "![Figure 1](figure-1/figure.png)" in text
    assert "CPU, 2 threads. Data: Digits (images)" in text
    assert "`make reproduce-figure-1 PROFILE=embedded SEEDS=0,1,2`, [provenance.json]" in text
    # Captions are text, and a table's own words are enough.
    assert "<script>" not in text
    assert "A note." in text
    assert "not shown" not in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (results / link).is_file(), link


def test_listings(results):
    (searches,) = listings(results)
    assert "| digits | SNOpt | 2 | lr 0.02, eps 0.05 | 0.75 | bbbbbbbb |" in searches.table


def test_nothing_to_show_and_damage_are_named(tmp_path):
    with pytest.raises(RecordError, match="there is no folder"):
        build(tmp_path / "none")
    with pytest.raises(RecordError, match="there is nothing to report"):
        build(tmp_path)
    folder = tmp_path / "figure-1"
    folder.mkdir()
    (folder / "provenance.json").write_text("[]")
    with pytest.raises(RecordError, match=r"provenance\.json is damaged: not a mapping"):
        build(tmp_path)
    (folder / "provenance.json").write_text(json.dumps({}))
    (folder / "data.csv").write_text("step,loss\n1\n")
    with pytest.raises(RecordError, match=r"data\.csv is damaged: row 2 has 1 cells"):
        build(tmp_path)
