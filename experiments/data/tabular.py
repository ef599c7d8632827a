"""Read tables of numbers that come from outside: arrays, CSV files, and one old pickle.

GAS is published as a pandas data frame that Python 2 pickled. Today's pandas no longer promises to
read it, and unpickling runs whatever a file names. Here a file can name only what a frame of
numbers consists of; stand-ins for pandas' classes keep what they are given, and the frame is put
together from that. The layout is that of pandas 0.14.1 to 1.2: a block manager with axes, and
blocks of columns of one type.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.base.errors import DataError
from experiments.data.files import read
from experiments.data.splits import FloatArray

LAYOUT = "0.14.1"  # the key under which a block manager's state keeps axes and blocks


def read_matrix(path: Path, checksum: str) -> FloatArray:
    """Read an ``.npy`` file of numbers, shape (rows, features); DataError for anything else."""
    content = read(path, checksum)
    try:
        data = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as an array: {error}") from error
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.dtype.kind not in "fiu":
        kind = f"{getattr(data, 'dtype', '?')} of shape {getattr(data, 'shape', '?')}"
        raise DataError(f"{path}: holds {kind}, not a table of numbers")
    return check_finite(path, np.asarray(data, dtype=np.float64))


def read_csv(path: Path) -> FloatArray:
    """Read a table of finite numbers with a header line; a row's surplus entries are left out."""
    import pandas

    try:
        frame = pandas.read_csv(path, index_col=False)
        data = frame.to_numpy(dtype=np.float64)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: cannot be read as a table of numbers: {error}") from error
    return check_finite(path, data)


def check_finite(path: Path, data: FloatArray) -> FloatArray:
    """Return a table (rows, columns) of numbers that float32 can hold; DataError for another."""
    bad = np.argwhere(~(np.abs(data) <= np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: row {row}, column {column} is missing, not finite or beyond float32: "
            f"{data[row, column]} ({len(bad)} such values); is the file truncated?"
        )
    return data


class Table(NamedTuple):
    """Columns by name, and their values of shape (rows, columns)."""

    columns: tuple[str, ...]
    values: FloatArray


class _Record:
    """Stands in for a class of pandas: keeps its arguments and state, does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Frame(_Record):
    """A data frame."""


class _Manager(_Record):
    """A block manager."""


class _Index(_Record):
    """An index, of columns or rows."""


def _new_index(kind: Any, parts: Any) -> _Index:
    """What pandas calls to make an index of a class from a dict."""
    return _Index(kind, parts)


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    """What numpy calls to make an empty array; its content follows as state."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array of an unknown class")
    return np.ndarray((0,), np.int8)


def _new_object(kind: Any, base: Any, state: Any) -> _Record:
    """What protocols 0 and 1 call to make an object of a class."""
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise pickle.UnpicklingError("an object of an unknown class")
    return kind()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into protocols that have none."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


_INDEX_MODULES = (
    "pandas.core.index",
    "pandas.indexes.base",
    "pandas.indexes.numeric",
    "pandas.indexes.range",
    "pandas.core.indexes.base",
    "pandas.core.indexes.numeric",
    "pandas.core.indexes.range",
)

_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {  # all that a file may name
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals", "BlockManager"): _Manager,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    **{
        (module, kind): _Index
        for module in _INDEX_MODULES
        for kind in ("Index", "Int64Index", "Float64Index", "RangeIndex")
    },
    **{(module, "_new_Index"): _new_index for module in _INDEX_MODULES},
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("copy_reg", "_reconstructor"): _new_object,
    ("copyreg", "_reconstructor"): _new_object,
    ("_codecs", "encode"): _encode,
    **{(module, "slice"): slice for module in ("__builtin__", "builtins")},
    **{(module, "object"): object for module in ("__builtin__", "builtins")},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in ``_ALLOWED`` and no others."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which a table of numbers does not need"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file")


def read_frame(path: Path, content: bytes) -> Table:
    """Read the pickled data frame of numbers that ``content`` holds; ``path`` is for messages.

    Raises:
        DataError: It is no such pickle, is truncated, names anything but the parts of a data frame,
            or a column is not numeric.
    """
    try:
        frame = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged bytes are commands, too, and fail in any way
        raise DataError(
            f"{path}: not read as a pickled data frame: {error or type(error).__name__}"
        ) from error
    try:
        return _assemble(frame)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: a pickle, but no data frame of numbers in the layout of pandas {LAYOUT} to "
            f"1.2 ({type(error).__name__}: {error})"
        ) from error


def _assemble(frame: Any) -> Table:
    """Put the columns of all blocks into their places."""
    if not isinstance(frame, _Frame):
        raise TypeError(f"the object is {type(frame).__name__}")
    state = frame.state
    manager = state["_data"] if "_data" in state else state["_mgr"]
    if not isinstance(manager, _Manager):
        raise TypeError("the frame has no block manager")
    layout = manager.state[-1][LAYOUT]
    columns, rows = (_labels(axis) for axis in layout["axes"])
    values = np.full((len(rows), len(columns)), np.nan)
    filled = np.zeros(len(columns), dtype=bool)
    for block in layout["blocks"]:
        numbers = np.asarray(block["values"])
        if numbers.dtype.kind not in "fiu":
            raise TypeError(f"a column of type {numbers.dtype}")
        where = np.arange(len(columns))[block["mgr_locs"]]
        if numbers.shape != (len(where), len(rows)):
            raise ValueError(f"a block of shape {numbers.shape}, not {(len(where), len(rows))}")
        values[:, where] = numbers.T
        filled[where] = True
    if not filled.all():
        raise ValueError("columns without a block")
    return Table(tuple(str(column) for column in columns), values)


def _labels(axis: Any) -> Any:
    """The labels of an index: an array, or the range of row numbers."""
    if not isinstance(axis, _Index):
        raise TypeError(f"an axis of type {type(axis).__name__}")
    parts = axis.arguments[1]
    if "data" in parts:
        return np.asarray(parts["data"])
    return range(*(int(parts[key]) for key in ("start", "stop", "step")))
