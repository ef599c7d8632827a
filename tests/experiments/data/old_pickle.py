"""Write data frames as pandas 0.20 under Python 2 pickled them, with a pickler of one's own."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Named(NamedTuple):
    """Something that a pickle names by module and name."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that a pickle makes: REDUCE, or NEWOBJ with ``new``; then a state (BUILD)."""

    function: Named
    arguments: tuple
    state: object = None
    new: bool = False


class Pickler(pickle._Pickler):  # type: ignore[misc,name-defined]  # the one written in Python
    """Protocol 2 with the strings of Python 2, numpy's old names, and the two classes above."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_text(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_named(self, named: Named) -> None:
        self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())

    def save_call(self, call: Call) -> None:
        self.save(call.function)
        self.save(call.arguments)
        self.write(pickle.NEWOBJ if call.new else pickle.REDUCE)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    def save_array(self, array: np.ndarray) -> None:
        state = list(array.__reduce__()[2])
        if array.dtype.kind == "O":
            state[4] = [str(entry) for entry in array.ravel()]
        state[2] = self.dtype(array.dtype)
        start = (Named("numpy", "ndarray"), (0,), "b")
        self.save(Call(Named("numpy.core.multiarray", "_reconstruct"), start, tuple(state)))

    @staticmethod
    def dtype(kind: np.dtype) -> Call:
        objects = kind.kind == "O"  # flags 63: references, kept as a list
        state = (3, "|" if objects else "<", None, None, None, -1, -1, 63 if objects else 0)
        return Call(Named("numpy", "dtype"), (kind.str[1:], 0, 1), state)

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[Named] = save_named
    dispatch[Call] = save_call
    dispatch[np.ndarray] = save_array


def dump(value: object) -> bytes:
    """Pickle anything made of the classes above."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def index(labels: Sequence[str] | range, base: str = "pandas.core.indexes") -> Call:
    """An index, of strings or of row numbers."""
    if isinstance(labels, range):
        kind = Named(f"{base}.range", "RangeIndex")
        parts: dict[str, Any] = {"start": labels.start, "stop": labels.stop, "step": labels.step}
    else:
        kind = Named(f"{base}.base", "Index")
        parts = {"data": np.array(list(labels), dtype=object)}
    return Call(Named(f"{base}.base", "_new_Index"), (kind, {"name": None, **parts}))


def frame(
    columns: Sequence[str], blocks: Sequence[tuple[object, np.ndarray]], rows: object = None
) -> Call:
    """A data frame of blocks: (places of the columns, values of shape (columns, rows))."""
    rows = rows if rows is not None else index(range(blocks[0][1].shape[1]))
    axes = [index(columns), rows]
    kept = []
    for at, values in blocks:
        if isinstance(at, slice):
            at = Call(Named("__builtin__", "slice"), (at.start, at.stop, at.step))
        kept.append({"values": values, "mgr_locs": at})
    state = (axes, [], [], {"0.14.1": {"axes": axes, "blocks": kept}})
    data = Call(Named("pandas.core.internals", "BlockManager"), (), state, new=True)
    parts = {"_data": data, "_typ": "dataframe", "_metadata": []}
    return Call(Named("pandas.core.frame", "DataFrame"), (), parts, new=True)
