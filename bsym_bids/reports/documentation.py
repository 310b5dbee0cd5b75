"""The tables of docs/reports.md, from the rules in ``data/reports/lights.yaml``.

A block of the page lies between ``<!-- from lights.yaml: MODALITY -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re

from bsym_bids.reports.lights import ORIGINS, Rule, limit_said, rules_of
from bsym_bids.reports.measures import measures

_BLOCK = re.compile(r"(<!-- from lights\.yaml: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADS = ("light", "measure", "look", "do not use", "why, and where limits are from")


def with_lights(text: str) -> str:
    """Return a page with the tables that its blocks ask for."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{lights_table(block[2])}\n\n{block[3]}", text)


def lights_table(modality: str) -> str:
    """Return the rules of a modality, ``bold`` or ``dwi``, as a table of Markdown."""
    rows = [_HEADS, ("---",) * len(_HEADS), *map(_row, rules_of(modality))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _row(rule: Rule) -> tuple[str, ...]:
    measure = measures()[rule.measure]
    if rule.levels:
        beyond = [_levels(rule, colour) for colour in ("amber", "red")]
    else:
        sign = "above" if measure.worse == "higher" else "below"
        beyond = [
            "" if limit is None else f"{sign} {limit_said(measure, limit)}"
            for limit in (rule.amber, rule.red)
        ]
    why = " ".join(f"{rule.why} ({ORIGINS[rule.origin]}) {rule.source}".split())
    return rule.title, f"`{measure.key}`", *beyond, why.replace("|", "\\|")


def _levels(rule: Rule, colour: str) -> str:
    return ", ".join(f"`{level}`" for level, own in rule.levels.items() if own == colour)
