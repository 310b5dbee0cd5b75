"""The figure of a training: losses by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsym_bids.outputs.publish import explained


def draw_losses(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each objective's loss over the steps, a panel per phase, validation in black.

    Parameters
    ----------
    rows : sequence of dict
        Of the log, see `bsym_bids.training.loop.LOG_COLUMNS`.
    path : Path
        An SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    phases = list(dict.fromkeys(row["phase"] for row in rows))
    if not phases:
        return
    figure = Figure(figsize=(5 * len(phases), 4), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    for panel, phase in zip(panels, phases, strict=True):
        own = [row for row in rows if row["phase"] == phase]
        for objective in dict.fromkeys(row["objective"] for row in own):
            points = [(row["step"], row["loss"]) for row in own if row["objective"] == objective]
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
        panel.legend(frameon=False)
    panels[0].set_ylabel("mean squared error")
    with explained(path):
        figure.savefig(path)
