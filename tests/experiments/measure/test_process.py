"""A call in another process: arguments, result, and what went wrong there."""

from __future__ import annotations

import os

import pytest
import torch

from experiments.base.errors import DataError, RecordError
from experiments.measure.process import call

TINY = "tests.experiments.measure.tiny"


def test_arguments_threads_and_result_travel() -> None:
    result = call(f"{TINY}:echo", {"a": [1, 2.5], "b": None})
    assert result == {"a": [1, 2.5], "b": None, "threads": torch.get_num_threads()}


def test_environment_is_the_child_s_alone() -> None:
    assert call("os:getenv", {"key": "SNOPT_TEST"}, environment={"SNOPT_TEST": "here"}) == "here"
    assert "SNOPT_TEST" not in os.environ


def test_an_error_of_the_user_keeps_its_class_and_message() -> None:
    with pytest.raises(DataError, match=r"^no such data: put it into data/$"):
        call(f"{TINY}:refuse", {})


def test_a_crash_names_the_reason() -> None:
    with pytest.raises(RecordError, match="RuntimeError: it broke"):
        call(f"{TINY}:crash", {})


def test_a_process_that_hangs_is_ended() -> None:
    with pytest.raises(RecordError, match=r"longer than 0\.05 s"):
        call(f"{TINY}:echo", {}, timeout=0.05)
