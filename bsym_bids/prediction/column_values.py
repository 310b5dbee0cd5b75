"""What the texts of a column are: numbers, or names of classes.

A number is written with digits, a decimal point and perhaps an exponent; ``89+``, with which BIDS
let ages above 88 be written, is 89. A column is of numbers when most of its values are, and then
all of them have to be: ``27y``, ``27,5`` and ``twenty`` are errors, not categories.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable

from bsym_bids.errors import BadDataError
from bsym_bids.prediction.phenotypes import Column
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION

LOGGER = logging.getLogger("bsym_bids")
#: Up to so many distinct integers are classes, unless there is more to tell.
MOST_CODES = 5
#: How BIDS let ages above 88 be written, and how they are read.
CAPPED, CAPPED_AGE = "89+", 89.0
#: Letters of what may be a number; expressions take a time that grows with the square of more.
_LONGEST_NUMBER = 400
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_INFINITE = re.compile(r"[-+]?inf(inity)?", re.IGNORECASE)
#: A number with something about it: 27y, 27,5, >30, 12 %.
_NEARLY = re.compile(r"[<>~]?=?\s*[-+]?\d+([.,]\d+)?\s*[^\W\d]*\s*[+%]?")
#: What is a measure by its name, whatever JSON says: BIDS defines it so.
_MEASURES = ("age",)
_HOW_TO_MEND = (
    "write plain numbers with a decimal point, and n/a where there is none; if the values are "
    "categories, say --task-type classification"
)


def number_of(text: str) -> float | None:
    """Return the number that a text is, infinite ones among them; None for other text."""
    if text == CAPPED:
        return CAPPED_AGE
    if len(text) > _LONGEST_NUMBER:
        return None
    return float(text) if _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text) else None


def identity(text: str) -> Hashable:
    """Return what is equal for values that are the same: 1, 01 and 1.0; M and m."""
    if len(text) <= _LONGEST_NUMBER and _INTEGER.fullmatch(text):
        return int(text)  # exact, however long, as identifiers are
    number = None if text == CAPPED else number_of(text)
    return text.lower() if number is None else number


def looks_numeric(column: Column) -> bool:
    """Tell whether a column is of numbers rather than of categories.

    It is when more than half of its values are numbers; or are nearly (``27y``, ``27,5``), if there
    are more than five distinct ones. It is not when JSON names each of its values as a level.
    """
    texts = list(column.known.values())
    numbers = sum(number_of(text) is not None for text in texts)
    near = sum(number_of(text) is None and _is_nearly(text) for text in texts)
    many = len(set(texts)) > MOST_CODES
    if 2 * (numbers + (near if many else 0)) <= len(texts):
        return False
    return not {identity(text) for text in texts} <= {identity(level) for level in column.levels}


def _is_nearly(text: str) -> bool:
    return len(text) <= _LONGEST_NUMBER and _NEARLY.fullmatch(text) is not None


def read_numbers(column: Column) -> dict[tuple[str, str], float]:
    """Return the numbers of a column by participant and session, without those missing.

    Raises
    ------
    BadDataError
        A value is no number, or infinite; names the rows.
    """
    known = _numbers(column)
    capped = sum(text == CAPPED for text in column.known.values())
    if capped:
        LOGGER.warning("%s: %d values of %s are read as 89", column.label, capped, CAPPED)
    return known


def _numbers(column: Column) -> dict[tuple[str, str], float]:
    """Return what `read_numbers` does, and warn of nothing."""
    numbers = {key: number_of(text) for key, text in column.known.items()}
    wrong = [key for key, number in numbers.items() if number is None]
    if wrong:
        raise BadDataError(
            f"{column.label}: values that are no numbers: {column.where(wrong)}", _HOW_TO_MEND
        )
    known = {key: number for key, number in numbers.items() if number is not None}
    infinite = [key for key, number in known.items() if math.isinf(number)]
    if infinite:
        raise BadDataError(
            f"{column.label}: values that are infinite: {column.where(infinite)}",
            hint="write n/a where there is no number",
        )
    return known


def told_task(column: Column) -> str:
    """Tell from its values whether a column is of classes or of numbers to predict.

    Classes are: text, also ``true`` and ``false``; numbers that JSON all names as levels; without
    units in JSON, two distinct numbers, and up to five distinct integers, these with a warning.
    All else is numbers.

    Raises
    ------
    BadDataError
        As `read_numbers`.
    """
    if not looks_numeric(column):
        return CLASSIFICATION
    distinct = set(_numbers(column).values())
    if column.units or column.name.lower() in _MEASURES or len(distinct) > MOST_CODES:
        return REGRESSION
    if len(distinct) <= 2:
        return CLASSIFICATION
    if any(number != int(number) for number in distinct):
        return REGRESSION
    LOGGER.warning(
        "%s: %d distinct integers are taken for classes; if they are a scale, say --task-type "
        "regression, or give their Units in JSON",
        column.label,
        len(distinct),
    )
    return CLASSIFICATION


def class_names(column: Column) -> dict[tuple[str, str], str]:
    """Return the class of each label by participant and session, without those missing.

    Numbers that are equal are one class. So are names that differ in upper and lower case only,
    with a warning, unless JSON says that they mean different things. A class is called as JSON
    does, else as it is written most often.
    """
    count = Counter(column.known.values())
    spellings = defaultdict(list)
    for text in sorted(count, key=lambda text: (-count[text], text)):
        spellings[identity(text)].append(text)
    named = {identity(level): level for level in column.levels}
    chosen: dict[str, str] = {}
    for same in spellings.values():
        said = {column.levels[text] for text in same if text in column.levels}
        if len(said) == len(same) > 1:
            chosen |= {text: text for text in same}
            continue
        first = same[0] if same[0] in column.levels else named.get(identity(same[0]))
        chosen |= dict.fromkeys(same, first or _without_decimals(same[0]))
        if len({text.lower() for text in same}) < len(same):
            LOGGER.warning("%s: %s are taken for one class", column.label, ", ".join(same))
    return {key: chosen[text] for key, text in column.known.items()}


def _without_decimals(text: str) -> str:
    """Return a code without the decimals that other programs give it: 1.0 as 1."""
    return text if number_of(text) is None else re.sub(r"(?<=\d)\.0*$", "", text)


def in_class_order(names: set[str], column: Column) -> tuple[str, ...]:
    """Sort classes: numbers by size, others as JSON lists them, else by name."""
    numbers = {name: number_of(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    listed = [name for name in column.levels if name in names]
    return (*listed, *sorted(names - set(listed)))
