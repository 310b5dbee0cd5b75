"""What sidecars say of the columns of a table, from the patterns in ``data/outputs.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bsym_bids.outputs.names import Column, product_of

#: What a sidecar says of columns, by their names: ``Description``, ``Units``, ``Levels``.
Described = dict[str, dict[str, Any]]
#: Values of a word in <> in names of columns, each with the text that stands for it.
Words = Mapping[str, Mapping[str, str]]
#: The columns of a table over ROIs, one for each.
ROI = "<ROI>"
_WORD = re.compile(r"<(\w+)>")
_UNITS = "<units>"
_MANY = "..."


def column_names(key: str) -> tuple[str, ...]:
    """Return the columns of a product that do not depend on the data, in their order."""
    return tuple(column.name for column in product_of(key).columns if not _is_pattern(column.name))


def columns_of(
    key: str, names: Iterable[str] | None = None, words: Words | None = None, units: str = ""
) -> Described:
    """Return what the sidecar of a table says of its columns.

    Parameters
    ----------
    key : str
        The product.
    names : iterable of str, optional
        The columns that the table has; by default all that do not depend on the data.
    words : mapping of str to mapping of str to str, optional
        What words in <> in names of columns stand for, and the text for each value.
    units : str
        Units of columns that have those of a label; empty for none.

    Returns
    -------
    dict
        By name, in the order of `names`.

    Raises
    ------
    KeyError
        Nothing is said of a column.
    """
    words = words or {}
    patterns = [(_pattern(column.name, words), column) for column in product_of(key).columns]
    described: Described = {}
    for name in column_names(key) if names is None else names:
        found = ((pattern.fullmatch(name), column) for pattern, column in patterns)
        match, column = next(((match, column) for match, column in found if match), (None, None))
        if match is None or column is None:
            raise KeyError(f"{key}: nothing is said of the column {name}")
        texts = {word: words[word][value] for word, value in match.groupdict().items()}
        described[name] = _entry(column, texts, units)
    return described


def about_table(key: str) -> dict[str, Any]:
    """Return what the sidecar of a product says whatever the data: columns, ``Units`` of cells."""
    units = {column.units for column in product_of(key).columns if column.name == ROI} - {""}
    return columns_of(key) | ({"Units": units.pop()} if units else {})


def said_of(column: Column) -> str:
    """Return the sentence on a column, with names in backticks and words in <>."""
    return column.description + (f"; `n/a` {column.missing}" if column.missing else "")


def _is_pattern(name: str) -> bool:
    return bool(_WORD.search(name)) or name.endswith(_MANY)


def _pattern(name: str, words: Words) -> re.Pattern[str]:
    """Return what names of columns match; none where nothing stands for a word."""
    if name.endswith(_MANY):
        digits = name.removesuffix(_MANY)
        stem = digits.rstrip("0")
        return re.compile(rf"{re.escape(stem)}\d{{{len(digits) - len(stem)},}}")
    parts = _WORD.split(name)
    for place in range(1, len(parts), 2):
        values = words.get(parts[place], {})
        parts[place] = f"(?P<{parts[place]}>{'|'.join(map(re.escape, values)) or '(?!)'})"
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts))


def _entry(column: Column, texts: Mapping[str, str], units: str) -> dict[str, Any]:
    """Return what a sidecar says of a column."""
    text = said_of(column)
    if not text.startswith("`"):  # a name keeps its case
        text = text[0].upper() + text[1:]
    text = _WORD.sub(lambda word: texts.get(word[1], word[0]), text.replace("`", ""))
    own = units if column.units == _UNITS else column.units
    entry: dict[str, Any] = {"Description": text}
    entry |= {"Units": own} if own else {}
    return entry | ({"Levels": dict(column.levels)} if column.levels else {})
