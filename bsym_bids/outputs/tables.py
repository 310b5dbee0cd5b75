"""What an output file can hold, and how it is written: tables, matrices, arrays, JSON.

Numbers are written with seven significant digits, more than float32 holds. What was not measured
is NaN in memory and ``n/a`` on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

NOT_AVAILABLE = "n/a"
_SEPARATORS = str.maketrans("\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", " " * 11)


class Content(Protocol):
    """Something that can be written to a file."""

    def write(self, path: Path) -> None:
        """Write the content to ``path``."""


@dataclass(frozen=True)
class Table:
    """A TSV of named columns, numbers or text.

    Attributes
    ----------
    columns : mapping of str to sequence
        Columns of equal length, in order.
    """

    columns: Mapping[str, Sequence[Any] | NDArray[Any]]

    def write(self, path: Path) -> None:
        """Write a header line and one line per row."""
        rows = zip(*(map(_cell, _plain_list(c)) for c in self.columns.values()), strict=True)
        _write_lines(path, ["\t".join(map(_in_one_cell, self.columns)), *map("\t".join, rows)])


@dataclass(frozen=True)
class Matrix:
    """A TSV of numbers under column names, with row names where ``rows`` is given.

    Attributes
    ----------
    values : ndarray, shape (rows, columns)
        Numbers.
    columns : sequence of str
        Column names.
    rows : sequence of str, optional
        Row names, written as the first column under the name ``row_header``.
    row_header : str
        Name of the first column.
    """

    values: NDArray[np.floating]
    columns: Sequence[str]
    rows: Sequence[str] | None = None
    row_header: str = "Node"

    def write(self, path: Path) -> None:
        """Write a header line and one line per row."""
        lines = ["\t".join(map(_number, row)) for row in self.values.tolist()]
        header = "\t".join(self.columns)
        if self.rows is not None:
            header = f"{self.row_header}\t{header}"
            lines = [f"{name}\t{line}" for name, line in zip(self.rows, lines, strict=True)]
        _write_lines(path, [header, *lines])


@dataclass(frozen=True)
class Arrays:
    """A compressed NumPy archive.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        Arrays by name; no object arrays.
    """

    arrays: Mapping[str, NDArray[Any]]

    def write(self, path: Path) -> None:
        """Write a ``.npz`` that loads without pickle."""
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **self.arrays)


@dataclass(frozen=True)
class Json:
    """A JSON document.

    Attributes
    ----------
    document : mapping
        What to write; NaN is refused, JSON has none.
    """

    document: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write indented UTF-8 JSON."""
        text = json.dumps(self.document, indent=2, ensure_ascii=False, allow_nan=False)
        _write(path, text + "\n")


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes
    ----------
    text : str
        What to write.
    """

    text: str

    def write(self, path: Path) -> None:
        """Write UTF-8."""
        _write(path, self.text)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    _write(path, "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    # Names of files and texts of JSON may have halves of characters, which UTF-8 has not.
    path.write_text(text, "utf-8", errors="backslashreplace")


def _plain_list(column: Sequence[Any] | NDArray[Any]) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _number(value: float) -> str:
    return f"{value:.7g}" if math.isfinite(value) else NOT_AVAILABLE


def _cell(value: Any) -> str:
    if value is None or value == "":
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    return _in_one_cell(str(value))


def _in_one_cell(text: str) -> str:
    """Return a text without what would end its cell."""
    return text.translate(_SEPARATORS)
