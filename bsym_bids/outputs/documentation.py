"""The tables of docs/outputs.md, from the patterns in ``data/outputs.yaml``.

A block of the page lies between ``<!-- from outputs.yaml: WHAT -->`` and ``<!-- end -->``; WHAT is
one of

- ``groups A, B``: the files of groups;
- ``files A, B``: those of products;
- ``files under cohort scaling``;
- ``columns of A``: the columns of a product;
- ``cells of A, B``: what the cells of tables over ROIs are, a row for each table;
- ``arrays of A``: the arrays of a product.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from bsym_bids.outputs.descriptions import ROI
from bsym_bids.outputs.names import (
    STATISTICS,
    TRACTOGRAM,
    TRACTOGRAM_FORMATS,
    Column,
    Product,
    cohort_products,
    product_of,
    products_of,
)

_BLOCK = re.compile(r"(<!-- from outputs\.yaml: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORD = re.compile(r"(?<!`)<\w+>")
_KINDS = re.compile(r"(groups|files|columns of|cells of|arrays of) (.+)")
_COHORT = "files under cohort scaling"


def blocks_of(text: str) -> list[str]:
    """Return what each block of a page is to hold."""
    return [block[2] for block in _BLOCK.finditer(text)]


def with_tables(text: str) -> str:
    """Return a page with the tables that its blocks ask for."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{table_of(block[2])}\n\n{block[3]}", text)


def table_of(wanted: str) -> str:
    """Return the table of a block.

    Raises
    ------
    KeyError
        There is no such product.
    ValueError
        There is no such kind of table.
    """
    if wanted == _COHORT:
        return _cohort_table()
    kind = _KINDS.fullmatch(wanted)
    if not kind:
        raise ValueError(f"no table of outputs.yaml is called {wanted}")
    make: Callable[[Sequence[str]], str] = _MAKERS[kind[1]]
    return make(kind[2].split(", "))


def endings_of(product: Product) -> tuple[str, ...]:
    """Return what names of a product end with: as they are by default, or all there can be."""
    label = product.desc.format(label=product.label)
    stat = product.stat.format(statistic=STATISTICS["mean"])
    parts = [f"stat-{stat}"] * bool(stat) + [f"desc-{label}"] * bool(label)
    stem = "_".join([*parts, product.suffix])
    kinds = TRACTOGRAM_FORMATS if product.key == TRACTOGRAM else ()
    return tuple(f"{stem}.{kind}" for kind in kinds) or (stem + product.extension,)


def _groups_table(groups: Sequence[str]) -> str:
    products = (product for group in groups for product in products_of(group))
    return _files_of(products, "name ends with")


def _files_table(keys: Sequence[str]) -> str:
    return _files_of(map(product_of, keys), "file")


def _files_of(products: Iterable[Product], named: str) -> str:
    rows = [
        (", ".join(map(_code, endings_of(product))), product.shape, product.short)
        for product in products
    ]
    return _table((named, "rows x columns", "what"), rows)


def _cohort_table() -> str:
    rows = [
        (*map(_code, endings_of(product)), *map(_code, endings_of(product_of(key))))
        for key, product in cohort_products().items()
    ]
    return _table(("name ends with", "beside"), rows)


def _columns_table(keys: Sequence[str]) -> str:
    (key,) = keys
    rows = [
        (_shown(column.name), column.range or column.units, _said(column))
        for column in product_of(key).columns
    ]
    return _table(("column", "unit, range", "what"), rows)


def _cells_table(keys: Sequence[str]) -> str:
    found = [(key, column) for key in keys for column in product_of(key).columns]
    rows = [
        (_code(f"desc-{product_of(key).desc}"), column.range or column.units, _said(column))
        for key, column in found
        if column.name == ROI
    ]
    return _table(("file", "unit, range", "what"), rows)


def _arrays_table(keys: Sequence[str]) -> str:
    (key,) = keys
    rows = [(_code(a.name), a.shape, a.description) for a in product_of(key).arrays]
    return _table(("array", "shape, type", "what"), rows)


_MAKERS: dict[str, Callable[[Sequence[str]], str]] = {
    "groups": _groups_table,
    "files": _files_table,
    "columns of": _columns_table,
    "cells of": _cells_table,
    "arrays of": _arrays_table,
}


def _said(column: Column) -> str:
    """Return all that is said of a column."""
    text = column.description + (f" ({column.when})" if column.when else "")
    text += f"; `n/a` {column.missing}" if column.missing else ""
    levels = "; ".join(f"`{value}`: {meaning}" for value, meaning in column.levels.items())
    return _WORD.sub(r"`\g<0>`", text) + (f". {levels}" if levels else "")


def _shown(name: str) -> str:
    """Return a column's name, or what it stands for."""
    if name == ROI:
        return "each ROI"
    if not name.endswith("..."):
        return _code(name)
    first = name.removesuffix("...")
    return f"{_code(first)}, {_code(first[:-1] + '1')}, ..."


def _code(text: str) -> str:
    return f"`{text}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [
        header,
        ["---"] * len(header),
        *([cell.replace("|", r"\|") for cell in row] for row in rows),
    ]
    head, rule, *body = (" | ".join(line) for line in lines)
    return "\n".join(
        [f"| {head} |", f"|{rule.replace(' ', '')}|", *(f"| {line} |" for line in body)]
    )
