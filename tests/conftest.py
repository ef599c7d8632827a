"""Skips tests marked ``cuda`` where there is no such device."""

from __future__ import annotations

import pytest
import torch


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
