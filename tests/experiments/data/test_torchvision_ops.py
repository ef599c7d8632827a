"""The shim, in fresh interpreters: operators can be declared only once in a process."""

from __future__ import annotations

import subprocess
import sys

from experiments.data import torchvision_ops


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_torchvision_imports_after_it_and_a_second_call_does_nothing() -> None:
    output = run(
        "from experiments.data.torchvision_ops import declare_missing_operators as declare\n"
        "first = declare()\n"
        "import torchvision.datasets, torchvision.extension, torch\n"
        "assert torchvision.extension._has_ops() == (first == ()), first\n"
        "assert torch.ops.torchvision.nms is not None\n"
        "print(declare())"
    )
    assert output == "()"


def test_nothing_is_declared_where_the_extension_loads() -> None:
    output = run(
        "import torch\n"
        "torch.ops.load_library = lambda path: None\n"
        "from experiments.data.torchvision_ops import declare_missing_operators as declare\n"
        "print(declare())"
    )
    assert output == "()"


def test_nothing_happens_without_torchvision(monkeypatch) -> None:
    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    assert torchvision_ops.declare_missing_operators() == ()
