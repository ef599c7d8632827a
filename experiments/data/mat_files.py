"""Read MATLAB files (``.mat``, up to version 7), or say what is wrong with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import DataError


def read_mat(path: Path, keys: Sequence[str], content: bytes | None = None) -> dict[str, Any]:
    """Read variables of a ``.mat`` file.

    Args:
        path: The file, for messages and, without ``content``, to be read.
        keys: The variables that it has to have.
        content: The file's bytes where they were read, and checked, before.

    Returns:
        The variables by name: arrays as MATLAB has them, at least two-dimensional.

    Raises:
        DataError: The file is missing, no ``.mat`` file, damaged, or lacks a variable.
    """
    from scipy.io import loadmat, whosmat

    try:
        content = path.read_bytes() if content is None else content
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        names = [name for name, _, _ in whosmat(io.BytesIO(content))]
        missing = [key for key in keys if key not in names]
        if missing:
            raise DataError(
                f"{path}: has no variable {', '.join(missing)}, only {', '.join(names) or 'none'}; "
                "it is truncated or another file than expected"
            )
        loaded: dict[str, Any] = loadmat(io.BytesIO(content), variable_names=list(keys))
    except DataError:
        raise
    except Exception as error:  # scipy raises whatever damaged bytes lead it to
        raise DataError(
            f"{path}: cannot be read as a MATLAB file ({type(error).__name__}: {error}); it is "
            "truncated, damaged, or of version 7.3"
        ) from error
    return {key: loaded[key] for key in keys}
