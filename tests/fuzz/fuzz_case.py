"""What is fuzzed, and what is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


class Nonsense(Exception):
    """A reader took what nobody can mean."""


class Hang(BaseException):
    """A reader took longer than any file is worth. Nothing may catch it."""


@dataclass(frozen=True)
class Target:
    """A reader, and how its files go wrong.

    Attributes
    ----------
    name : str
        What it reads.
    setup : callable
        Makes what is the same for all inputs in an empty folder, and returns what `once` takes.
    once : callable
        Makes one input and reads it. It returns where the input is taken, raises one of
        `bsym_bids.errors` where it is refused, and anything else is a finding.
    share : int
        How many of the inputs are its, relative to others.
    seconds : float
        Of the processor; an input that takes longer is a finding.
    """

    name: str
    setup: Callable[[Path], Any]
    once: Callable[[Any, Random], None]
    share: int
    seconds: float = 5.0


def must(holds: bool, what: str) -> None:
    """Complain about what was taken although it is nonsense."""
    if not holds:
        raise Nonsense(what[:200])
