"""Make ``import torchvision`` work on a CPU-only torch.

``pip install torch torchvision`` can pair a CPU build of torch with a torchvision wheel whose
compiled extension was linked against CUDA. That extension then fails to load, so two operators
stay undeclared for which torchvision registers shape functions while it is imported, and the
import dies with "operator torchvision::nms does not exist". Data sets and transforms need neither
operator; declaring the two schemas is enough for them.

Nothing is declared where the extension loads: a second declaration of the same operator is an
error inside torch.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")
"""The operators whose schemas torchvision expects its extension to have declared."""

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _extension_loads(package_folder: Path) -> bool:
    """Load torchvision's compiled extension, as its own import would a moment later."""
    for suffix in EXTENSION_SUFFIXES:
        library = package_folder / f"_C{suffix}"
        if library.is_file():
            try:
                torch.ops.load_library(str(library))
            except (OSError, RuntimeError):
                return False
            return True
    return False


def declare_missing_operators() -> tuple[str, ...]:
    """Declare torchvision's operator schemas where its extension cannot do it.

    Call it before the first ``import torchvision``. Calling it again does nothing.

    Returns:
        The names of the operators that this call declared; empty where none was missing or
        torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _extension_loads(Path(spec.origin).parent):
        return ()
    missing = tuple(name for name in OPERATORS if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMA)
    return missing
