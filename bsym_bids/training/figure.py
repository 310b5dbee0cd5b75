"""The figure of a training: losses by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsym_bids.reports.style import figure_file


def draw_losses(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each objective's loss over the steps, a panel per phase, validation in black.

    Parameters
    ----------
    rows : sequence of dict
        Of the log, see `bsym_bids.training.loop.LOG_COLUMNS`.
    path : Path
        An SVG.
    """
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    if not phases:
        return
    with figure_file(path, (5 * len(phases), 4)) as figure:
        panels = figure.subplots(1, len(phases), squeeze=False)[0]
        for panel, phase in zip(panels, phases, strict=True):
            _draw_phase(panel, phase, [row for row in rows if row["phase"] == phase])
        panels[0].set_ylabel("mean squared error")


def _draw_phase(panel: Any, phase: str, rows: Sequence[dict[str, Any]]) -> None:
    for objective in dict.fromkeys(row["objective"] for row in rows):
        points = [(row["step"], row["loss"]) for row in rows if row["objective"] == objective]
        held_out = objective == "validation"
        panel.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=3,
            color="black" if held_out else None,
            label="held-out people (1 - R²)" if held_out else objective,
        )
    panel.set_title(phase)
    panel.set_xlabel("step")
    panel.set_ylim(bottom=0)
    panel.legend()
