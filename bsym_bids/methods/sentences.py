"""How facts become sentences: clauses that hold for all runs, or for some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsym_bids.methods.aspects import SCAN, UNITS
from bsym_bids.methods.facts import Block, Facts

#: So many variants of a clause are spelled out.
_MOST_VARIANTS = 6
_LONGEST = 300  # characters of what is quoted from a file
Clause = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Paragraph:
    """A part of the text.

    Attributes
    ----------
    title : str
        What it is about.
    text : str
        Sentences, with citations as ``[@key]`` or ``[@key; @other]`` and without any markup.
    """

    title: str
    text: str


def paragraph(title: str, *sentences: str) -> list[Paragraph]:
    """Return a paragraph of the sentences that say something; none if there are none."""
    whole = " ".join(sentence for sentence in sentences if sentence)
    return [Paragraph(title, whole)] if whole else []


def cite(*keys: str) -> str:
    """Return a citation, to be put behind a word."""
    return f" [{'; '.join(f'@{key}' for key in keys)}]" if keys else ""


def clean(value: object, longest: int = _LONGEST) -> str:
    """Return a text from a file on one line, without what would be taken for a citation."""
    plain = "".join(c if c.isprintable() else " " for c in str(value))
    plain = re.sub(r"\[(?=@)", "[ ", " ".join(plain.split()))
    return plain if len(plain) <= longest else plain[: longest - 3].rstrip() + "..."


def sentence(clause: str) -> str:
    """Return a clause as a sentence; empty for none."""
    clause = clause.strip()
    if not clause:
        return ""
    return clause[0].upper() + clause[1:] + ("" if clause.endswith((".", "!", "?")) else ".")


def listed(items: Iterable[str], last: str = "and") -> str:
    """Return ``a, b and c``."""
    *first, end = [*items] or [""]
    return f"{', '.join(first)} {last} {end}" if first else end


def said(value: float | None) -> str:
    """Return a number as text has it: ``0.008``, ``2,000,000``; empty for none."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) >= 10_000:
        return f"{int(value):,}"
    return f"{value:.10g}"


def times(count: float) -> str:
    """Return how often: ``once``, ``twice``, ``10 times``."""
    return {1: "once", 2: "twice"}.get(int(count), f"{said(count)} times")


def counted(count: int, one: str, many: str = "") -> str:
    """Return ``1 run`` or ``2 runs``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def varied(facts: Facts, aspect: str, clause: Clause) -> str:
    """Say a clause, and if settings differ, for how many runs or scans each is true.

    Parameters
    ----------
    facts : Facts
        What was run.
    aspect : str
        Whose blocks the clause is said of.
    clause : callable
        Makes it of settings, without an end and beginning with a small letter; empty for settings
        there is nothing to say of.

    Returns
    -------
    str
        A sentence, or nothing.
    """
    variants: dict[str, set[str]] = {}
    for block in facts.of(aspect):
        variants.setdefault(clause(block.settings), set()).update(block.holders)
    everyone = set().union(*variants.values())
    silent = variants.pop("", None)
    if not variants:
        return ""
    if len(variants) == 1 and silent is None:
        return sentence(next(iter(variants)))
    many = "scans" if UNITS.get(aspect) == SCAN else "runs"
    if facts.is_counted:
        return _with_numbers(variants, len(everyone), many)
    return _without_numbers(variants, many)


def _with_numbers(variants: Mapping[str, set[str]], total: int, many: str) -> str:
    ordered = sorted(variants.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = []
    for index, (clause, holders) in enumerate(ordered[:_MOST_VARIANTS]):
        where = f"of {total:,} {many}" if index == 0 else ""
        parts.append(f"in {len(holders):,} {where}".rstrip() + f", {clause}")
    left = set().union(*(holders for _, holders in ordered[_MOST_VARIANTS:]))
    if left:
        parts.append(f"in {len(left):,}, the settings were further ones, which the sidecars have")
    return sentence("; ".join(parts))


def _without_numbers(variants: Mapping[str, set[str]], many: str) -> str:
    ordered = sorted(variants)
    parts = [
        f"in {f'some {many}' if index == 0 else 'others'}, {clause}"
        for index, clause in enumerate(ordered[:_MOST_VARIANTS])
    ]
    if ordered[_MOST_VARIANTS:]:
        parts.append("in others, the settings were further ones, which the sidecars have")
    return sentence("; ".join(parts))


def values_of(blocks: Sequence[Block], key: str) -> list[Any]:
    """Return the distinct values of a key in blocks, without None and empty ones, sorted."""
    found = {block.settings.get(key) for block in blocks}
    return sorted(value for value in found if value not in (None, ""))


def spread(values: Sequence[float], form: Callable[[float], str] = said, *, unit: str = "") -> str:
    """Return one value, or ``a to b unit (median m)``, of sorted ones."""
    low, high = values[0], values[-1]
    if form(low) == form(high):
        return f"{form(low)} {unit}".rstrip()
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    return f"{form(low)} to {form(high)} {unit}".rstrip() + f" (median {form(middle)})"
