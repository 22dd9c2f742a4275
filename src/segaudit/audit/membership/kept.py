"""The files of an experiment in a run's store: tables of images, by columns."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segaudit.audit.store import Store
from segaudit.types import UserError

MEND = "remove the file, and give `segaudit run` again"
"""What makes a damaged file whole."""


def write_table(store: Store, name: str, columns: Mapping[str, Any]) -> None:
    """Write columns of N rows; one of N x K is a list in each row."""
    made = {key: list(own) if getattr(own, "ndim", 1) > 1 else own for key, own in columns.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(made), buffer, compression="zstd")
    store.write(name, buffer.getvalue())


def read_table(store: Store, name: str) -> dict[str, Any]:
    """The columns: `id` and `unit` as lists of strings, the others as arrays, N or N x K.

    Raises UserError for a damaged file; where a column is asked for that it lacks, too.
    """
    path = f"{store.path}/{name}"
    try:
        table = pq.read_table(io.BytesIO(store.read(name)))
        return _Columns(path, {key: _column(table[key]) for key in table.column_names})
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: is not a whole table ({error}); {MEND}") from error


class _Columns(dict[str, Any]):
    def __init__(self, path: str, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path}: has no column {name!r}; {MEND}")


def _column(column: Any) -> Any:
    if pa.types.is_string(column.type):
        return column.to_pylist()
    values = column.to_numpy()
    return np.stack(values) if pa.types.is_list(column.type) else values
