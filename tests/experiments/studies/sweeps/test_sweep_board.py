"""What a sweep shows: states, time left, means over seeds."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console
from stub_sweep import make_sweep

from experiments.studies.sweeps.board import Board, line, span
from experiments.studies.sweeps.outcome import Score, rank
from experiments.studies.sweeps.plan import SweepRun
from experiments.studies.sweeps.state import STATES, View, counts, time_left


def view(number: int, state: str, seconds: float = 0.0, elapsed: float = 0.0) -> View:
    run = SweepRun(number // 2, number % 2, {"lr": float(number // 2)}, Path("x"), ())
    return View(number, run, state, None, seconds, elapsed)


def test_the_time_left_is_worked_out_by_hand() -> None:
    assert time_left([view(0, "waiting"), view(1, "running", elapsed=5.0)], 1) is None
    done = [view(0, "done", 10.0), view(1, "diverged", 20.0)]  # mean 15
    assert time_left(done, 4) == 0.0
    assert time_left([*done, view(2, "failed", 99.0)], 1) == 0.0
    # 15 for the one that waits, 9 for the one at work, 12 for the one that had 3 already
    rest = [view(2, "waiting"), view(3, "running", elapsed=6.0), view(4, "interrupted", 3.0)]
    assert time_left([*done, *rest], 1) == pytest.approx(36.0)
    assert time_left([*done, *rest], 2) == pytest.approx(18.0)
    assert time_left([*done, *rest], 100) == pytest.approx(12.0)
    late = view(2, "running", elapsed=50.0)
    assert time_left([*done, late], 1) == 0.0


def test_a_line_has_the_states_that_occur() -> None:
    found = [view(0, "done", 60.0), view(1, "waiting"), view(2, "waiting"), view(3, "failed")]
    assert line(found, 1) == "2 waiting, 1 done, 1 failed; time left: 2 min"
    assert line(found[:1], 1) == "1 done"
    assert line(found[1:2], 1) == "1 waiting; time left: unknown"
    assert list(counts(found)) == list(STATES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (3.2, "3 s"), (119.0, "2 min"), (12_000.0, "3 h 20 min")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def shown(tmp_path: Path, *, terminal: bool) -> str:
    sweep = make_sweep(tmp_path, [["done"]] * 4)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, highlight=False)
    first = [view(0, "done", 9.0), view(1, "running", elapsed=4.0), view(2, "waiting")]
    with Board(sweep, 1, console) as board:
        board.show(first)
        board.show(first)
        board.show([first[0], view(1, "done", 9.0), view(2, "waiting")])
        board.say("stopping [all]")
    return file.getvalue()


def test_a_terminal_gets_a_table_of_all_states(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "adam on digits: 3 runs" in text
    assert all(state in text for state in STATES)
    assert "point 0 (lr=0.0), seed 1, 4 s" in text
    assert "time left: 14 s" in text
    assert "stopping [all]" in text


def test_elsewhere_there_is_one_line_a_change(tmp_path: Path) -> None:
    assert shown(tmp_path, terminal=False).splitlines() == [
        "1 waiting, 1 running, 1 done; time left: 14 s",
        "1 waiting, 2 done; time left: 9 s",
        "stopping [all]",
    ]


def test_points_are_ranked_by_their_means_and_divergence_is_infinite() -> None:
    def scored(number: int, score: float, loss: float = 0.5) -> Score:
        return Score(view(number, "done"), "accuracy", -score, loss, score)

    lost = Score(view(3, "diverged"), "accuracy", 0.99, math.inf, math.inf)
    waiting = Score(view(6, "waiting"), "", math.nan, math.inf, math.nan)
    found = rank(
        [
            *(scored(0, -0.75), scored(1, -1.0)),  # point 0: mean 0.875
            *(scored(2, -0.99), lost),  # point 1: the better seed does not save it
            *(scored(4, -0.875, 0.4), waiting),  # point 2: as good, with the lower loss
        ]
    )
    assert [(one.point, one.runs) for one in found] == [(2, 1), (0, 2), (1, 2)]
    assert found[1].value == pytest.approx(0.875)
    assert found[2].score == math.inf
