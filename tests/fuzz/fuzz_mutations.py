"""How files go wrong, by chance or on purpose: bytes, tables, documents of JSON, YAML and TOML."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from random import Random
from typing import Any

#: Markup that does something where it is not escaped.
MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><b onclick=alert(1)>",
    "<!--",
    "]]>",
    "javascript:alert(1)",
)
PLACES = (
    "../../../etc/passwd",
    "/etc/passwd",
    "bids::../../etc/passwd",
    "bids:raw:../../../../etc/passwd",
    "file:///etc/passwd",
    "file://[",
    "..",
    ".",
    "~/.ssh/id_rsa",
    "\x00",
    "a\x00b",
    "C:\\x",
)
TEXTS = (
    "",
    " ",
    "n/a",
    "NaN",
    "nan",
    "inf",
    "-inf",
    "0",
    "-1",
    "2.0",
    "1e999",
    "-1e400",
    "1_0",
    "0x10",
    "\u0663",
    "\u22121",
    "1,5",
    "9" * 400,
    "9" * 5000,
    "9" * 60000 + "!",
    "1" + " " * 60000 + "!",
    "a" * 100000,
    "\ud800",
    "\x1b[2J\x07",
    "\u202eabc",
    "a\tb",
    "a\nb",
    "\r",
    "\ufeff",
    "null",
    "true",
    "sub-",
    "sub-01",
    "=1+1",
    *MARKUP,
    *PLACES,
)
NUMBERS = (
    0,
    -0.0,
    -1,
    1,
    2,
    0.5,
    1e-308,
    5e-324,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**400),
    16**4000,
    1e9,
    10**9,
)


def nested(depth: int, kind: str) -> Any:
    """Return a document that is nested."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def hostile(rng: Random) -> Any:
    """Return a value that nobody expects."""
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(TEXTS)
        case 2 | 3 | 4:
            return rng.choice(NUMBERS)
        case 5:
            return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}])
        case 6:
            return [rng.choice(TEXTS + NUMBERS) for _ in range(rng.randrange(1, 5))]
    return nested(rng.choice([3, 40, 120, 300]), rng.choice(["list", "map"]))


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every place of a document: what it is in, and under which key."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def changed(rng: Random, document: Any, changes: int = 3) -> Any:
    """Return a document with some values replaced, removed, added or moved."""
    document = copy.deepcopy(document)
    if not isinstance(document, dict | list):
        return hostile(rng)
    for _ in range(rng.randint(1, changes)):
        places = _places(document)
        if not places:
            return hostile(rng)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(rng.choice(TEXTS))] = hostile(rng)
            case 2 if isinstance(holder, dict):
                holder[str(rng.choice(TEXTS))] = holder.pop(key)
            case 3:
                holder[key] = [holder[key]]
            case 4 if isinstance(holder[key], str):
                holder[key] = holder[key] + rng.choice(TEXTS)
            case 5 if isinstance(holder[key], float):
                holder[key] = rng.choice([-holder[key], str(holder[key]), holder[key] * 1e6])
            case _:
                holder[key] = hostile(rng)
    return hostile(rng) if rng.random() < 0.02 else document


def as_json(rng: Random, document: Any) -> bytes:
    """Return a document as JSON, in one of the ways in which files come."""
    text = with_long_numbers(lambda: json.dumps(document, ensure_ascii=rng.random() < 0.8))
    if rng.random() < 0.03:  # deeper than Python itself would write it
        text = text.replace("2.0", "[" * 5000 + "]" * 5000, 1)
    return encoded(rng, text)


def with_long_numbers(write: Callable[[], str]) -> str:
    """Return what is written while integers may be of any length, as other programs write them."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return write()
    finally:
        sys.set_int_max_str_digits(limit)


def encoded(rng: Random, text: str) -> bytes:
    """Return a text in one of the ways in which files are written."""
    data = text.encode("utf-8", "surrogatepass")
    match rng.randrange(24):
        case 0:
            return b"\xef\xbb\xbf" + data
        case 1:
            return text.encode("utf-16", "surrogatepass")
        case 2:
            return data.replace(b"\n", b"\r")
        case 3:
            return data.replace(b"\n", b"\r\n")
        case 4:
            return scrambled(rng, data)
        case 5:
            return text.encode("latin-1", "replace") + b"\xff\xe9"
    return data


def scrambled(rng: Random, data: bytes) -> bytes:
    """Return bytes with some of them changed, taken away or added."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not out:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        at = rng.randrange(len(out))
        match rng.randrange(9):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 10, 13, 9, 0x22, 0x5C])
            case 2:
                del out[at : at + rng.choice([1, 2, 8, 100])]
            case 3:
                out[at:at] = out[at : at + rng.choice([1, 4, 32, 1000])]
            case 4:
                del out[at:]
            case 5:
                out[at:at] = rng.choice(
                    [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\r", b"\t", b"9" * 5000]
                )
            case 6:
                width = rng.choice([2, 4, 8])
                value = rng.choice([0, 1, -1, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**62])
                value = max(-(2 ** (8 * width - 1)), min(value, 2 ** (8 * width - 1) - 1))
                out[at : at + width] = value.to_bytes(width, "little", signed=True)
            case 7:
                out[at] = rng.randrange(256)
            case _:
                end = min(len(out), at + rng.choice([4, 64, 512]))
                out[at:end] = bytes(end - at)
    return bytes(out)


def of_table(rng: Random, text: str, separator: str = "\t") -> bytes:
    """Return a table with some cells, rows or columns changed."""
    rows = [line.split(separator) for line in text.splitlines()]
    for _ in range(rng.choice([1, 1, 2, 3])):
        row = rng.randrange(len(rows))
        if not rows[row]:
            continue
        cell = rng.randrange(len(rows[row]))
        match rng.randrange(16):
            case 0:
                del rows[row][cell]
            case 1:
                rows[row].insert(cell, str(rng.choice(TEXTS)))
            case 2:
                rows.insert(row, list(rows[row]))
            case 3 if len(rows) > 1:
                del rows[row]
            case 4:
                rows[0][cell % max(1, len(rows[0])) : cell + 1] = [str(rng.choice(TEXTS))]
            case 5:
                rows[0] = list(rows[0]) + [f"x{index}" for index in range(rng.choice([3, 20000]))]
            case 6:
                for other in rows:
                    other.append(str(rng.choice(TEXTS)))
            case 7:
                value = str(rng.choice(TEXTS))
                for other in rows[1:]:
                    if cell < len(other):
                        other[cell] = value
            case 8:
                separator = rng.choice([",", ";", " ", "\t\t"])
            case 9:
                rows[row][cell] = '"' + rows[row][cell]
            case 10:
                rows[0][cell : cell + 1] = rows[0][:1]
            case _:
                rows[row][cell] = str(rng.choice(TEXTS))
    return encoded(rng, "\n".join(separator.join(row) for row in rows) + "\n")
