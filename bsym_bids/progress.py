"""What the user sees while a run goes on: one line per participant."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TextIO


class Progress:
    """Counts finished steps per participant and shows them.

    On a terminal the participant at work has a line that is rewritten in place; elsewhere each
    participant gets one plain line when it ends.

    Parameters
    ----------
    steps : mapping of str to int
        Number of steps of each participant to be processed.
    stream : TextIO, optional
        Where to write; standard error by default.
    """

    def __init__(self, steps: Mapping[str, int], stream: TextIO | None = None) -> None:
        self._steps = dict(steps)
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._done: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._started: dict[str, float] = {}
        self._finished = 0
        self._lock = threading.Lock()

    def step(self, participant: str, status: str, what: str = "") -> None:
        """Take note of one step.

        Parameters
        ----------
        participant : str
            Label of the participant.
        status : str
            ``start``, ``end`` or ``exception``.
        what : str
            Name of the step.
        """
        with self._lock:
            self._started.setdefault(participant, time.monotonic())
            if status == "start":
                self._show(participant, what)
                return
            self._done[participant] += 1
            if status == "exception":
                self._failed.add(participant)
            if self._done[participant] == self._steps.get(participant):
                self._end(participant)

    def close(self, participant: str, failed: bool) -> None:
        """End a participant of whose steps some never ran."""
        with self._lock:
            if self._done[participant] < self._steps.get(participant, 0):
                if failed:
                    self._failed.add(participant)
                self._done[participant] = self._steps[participant]
                self._end(participant)

    def _show(self, participant: str, what: str) -> None:
        if self._live:
            done, steps = self._done[participant], self._steps.get(participant, 0)
            self._write(f"\r\033[K{self._count()} sub-{participant}: {what} ({done + 1}/{steps})")

    def _end(self, participant: str) -> None:
        self._finished += 1
        seconds = time.monotonic() - self._started.get(participant, time.monotonic())
        outcome = "failed" if participant in self._failed else "done"
        start = "\r\033[K" if self._live else ""
        self._write(f"{start}{self._count()} sub-{participant}: {outcome} in {seconds:.1f} s\n")

    def _count(self) -> str:
        width = len(str(len(self._steps)))
        return f"[{self._finished:{width}d}/{len(self._steps)}]"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
