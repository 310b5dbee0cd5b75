"""What there is to do: derivative datasets, their BOLD runs, and why a file is not used."""

from __future__ import annotations

from bsym_bids.inputs.plan import plan_inputs
from bsym_bids.inputs.records import BoldRun, Derivatives, Participant, Plan, Skipped
from bsym_bids.inputs.selection import Selection, read_filter_file

__all__ = [
    "BoldRun",
    "Derivatives",
    "Participant",
    "Plan",
    "Selection",
    "Skipped",
    "plan_inputs",
    "read_filter_file",
]
