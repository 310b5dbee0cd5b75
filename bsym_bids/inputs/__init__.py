"""What there is to do: datasets, BOLD runs and diffusion scans, and why a file is not used."""

from __future__ import annotations

from bsym_bids.inputs.plan import plan_inputs
from bsym_bids.inputs.records import (
    Anatomy,
    BoldRun,
    Derivatives,
    DwiImage,
    DwiScan,
    Participant,
    Plan,
    Skipped,
)
from bsym_bids.inputs.routes import describe_route
from bsym_bids.inputs.selection import Selection, read_filter_file

__all__ = [
    "Anatomy",
    "BoldRun",
    "Derivatives",
    "DwiImage",
    "DwiScan",
    "Participant",
    "Plan",
    "Selection",
    "Skipped",
    "describe_route",
    "plan_inputs",
    "read_filter_file",
]
