"""What a person sees."""

from __future__ import annotations

import io

from rich.console import Console

from experiments.run.trainer import ProgressBar

ROW = {
    "step": 3,
    "train/loss": 0.5,
    "nfe/forward": 14.0,
    "nfe/backward": 20.0,
    "nfe/curvature": 4.0,
    "val/accuracy": 0.75,
}


def shown(*, terminal: bool, show: bool | None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    with ProgressBar(show, console) as progress:
        progress.say("[a] line")
        progress.update(0.5, ROW, "accuracy")
        progress.update(1.0, {**ROW, "step": 6, "train/loss": 0.25}, "accuracy")
    return stream.getvalue()


def test_a_terminal_shows_loss_metric_nfe_and_time_left():
    text = shown(terminal=True, show=None)
    for part in ("[a] line", "step 3", "loss 0.5", "accuracy 0.75", "nfe 38", "loss 0.25", ":"):
        assert part in text


def test_no_terminal_shows_lines_alone():
    assert shown(terminal=False, show=None) == "[a] line\n"
    assert "loss" not in shown(terminal=True, show=False)
