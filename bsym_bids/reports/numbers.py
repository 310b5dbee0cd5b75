"""Numbers as people read them: as many digits as are known, and a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: What stands for a number that there is none of.
NONE = "n/a"
_MINUS = "\N{MINUS SIGN}"
#: More decimals than this are written with a power of ten.
_MOST_DECIMALS = 5


def decimals_known(half_widths: Iterable[float]) -> int | None:
    """Return to how many decimals numbers are known, by the half widths of their intervals.

    Returns
    -------
    int, optional
        One or two digits of the median half width, never below 0; None without a half width.
    """
    known = sorted(width for width in half_widths if math.isfinite(width) and width > 0)
    if not known:
        return None
    return max(0, -math.floor(math.log10(known[len(known) // 2] / 3)))


def decimals_for(values: Iterable[float], digits: int = 3) -> int:
    """Return the decimals that give the median size of values some digits, never below 0."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return 0
    return max(0, digits - 1 - math.floor(math.log10(sizes[len(sizes) // 2])))


def plain(value: float, decimals: int) -> str:
    """Return a number with some decimals: ``1,204``, ``−0.31``, ``n/a``; never ``−0.0``."""
    if not math.isfinite(value):
        return NONE
    if decimals > _MOST_DECIMALS:
        return f"{value:.2e}".replace("-", _MINUS)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", _MINUS)


def interval(limits: tuple[float, float], decimals: int) -> str:
    """Return an interval: ``−0.4 to 0.6``, or ``n/a``."""
    if not all(math.isfinite(limit) for limit in limits):
        return NONE
    return f"{plain(limits[0], decimals)} to {plain(limits[1], decimals)}"


def p_value(p: float) -> str:
    """Return a p-value: ``0.012``, ``< 0.001``, ``n/a``."""
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "<\N{NO-BREAK SPACE}0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def shortened(text: str, length: int = 32) -> str:
    """Return a name that fits beside an axis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
