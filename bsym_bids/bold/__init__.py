"""From BOLD series to what the model takes: parcellation, cleaning, windows."""

from __future__ import annotations

from bsym_bids.bold.parcellate import Parcellation, drop_low_coverage, parcellate

__all__ = ["Parcellation", "drop_low_coverage", "parcellate"]
