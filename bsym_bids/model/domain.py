"""Does a model know this data? A verdict from what it can predict of them.

What counts is the gain: how much better hidden ROIs (or edges) are predicted than when the same
data are presented under permuted ROI labels. It is held against the gain on data of the kind that
the model was trained on, as its card says, or against that of the group average on the same data
where this is smaller: data that are noisy, or strongly filtered, allow no more. The verdict is

- *out of domain* for a gain below 0.05, or below a quarter of what is expected;
- *in domain* for at least three quarters of it, if that is at least half of the gain on the card
  (0.25, where the card has none): data that allow less are not like those it was trained on, be it
  noise or, say, exchanged hemispheres;
- *doubtful* in between, and where there is nothing to hold it against;
- *not trained* for random weights, whatever they predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IN_DOMAIN = "in domain"
DOUBTFUL = "doubtful"
OUT_OF_DOMAIN = "out of domain"
NOT_TRAINED = "not trained"
#: All verdicts.
VERDICTS = (IN_DOMAIN, DOUBTFUL, OUT_OF_DOMAIN, NOT_TRAINED)
#: A smaller gain than this is none, and shares of the expected gain that part the verdicts.
LEAST_GAIN, LOW_SHARE, HIGH_SHARE = 0.05, 0.25, 0.75
#: Share of the card's gain that data have to allow, and the gain where the card has none.
ALLOWED_SHARE, ALLOWED_GAIN = 0.5, 0.25


@dataclass(frozen=True)
class Verdict:
    """Whether a model knows some data.

    Attributes
    ----------
    verdict : str
        One of `VERDICTS`.
    reason : str
        The numbers that it follows from, in a sentence.
    """

    verdict: str
    reason: str

    @property
    def document(self) -> dict[str, str]:
        """What sidecars say of it."""
        return {"Verdict": self.verdict, "Reason": self.reason}


def judge_reconstruction(card: Mapping[str, Any], scores: Mapping[str, float]) -> Verdict:
    """Judge by the reconstruction of held-out ROIs.

    Parameters
    ----------
    card : mapping
        The model's card; ``trained``, and ``quality.reconstruction`` (``r2``, ``permuted_r2``).
    scores : mapping
        ``r2``, ``permuted_r2``, ``linear_r2``, ``linear_permuted_r2``: means over ROIs. NaN where
        undefined.

    Returns
    -------
    Verdict
    """
    known = _numbers(card, "reconstruction")
    return _judge(
        card,
        "R2 of held-out ROIs",
        (scores["r2"], scores["permuted_r2"]),
        (known.get("r2", math.nan), known.get("permuted_r2", math.nan)),
        (scores["linear_r2"], scores["linear_permuted_r2"]),
        "linear prediction from the group's connectivity",
    )


def judge_edges(card: Mapping[str, Any], scores: Mapping[str, float]) -> Verdict:
    """Judge by the prediction of hidden edges of structural connectomes.

    By correlation, since a training that weighs edges and pairs without one in its own way leaves
    predictions that are right up to scale.

    Parameters
    ----------
    card : mapping
        The model's card; ``trained``, and ``quality.edges`` (``rho``, ``permuted_rho``).
    scores : mapping
        ``rho``, ``permuted_rho``, ``group_rho``: over all pairs of ROIs. NaN where undefined.

    Returns
    -------
    Verdict
    """
    known = _numbers(card, "edges")
    return _judge(
        card,
        "correlation of hidden edges",
        (scores["rho"], scores["permuted_rho"]),
        (known.get("rho", math.nan), known.get("permuted_rho", math.nan)),
        (scores["group_rho"], math.nan),
        "the group average",
    )


def _judge(
    card: Mapping[str, Any],
    measure: str,
    here: tuple[float, float],
    on_card: tuple[float, float],
    baseline: tuple[float, float],
    baseline_name: str,
) -> Verdict:
    """Judge by scores and their control: here, on the card, and of the baseline."""
    if not card["trained"]:
        return Verdict(NOT_TRAINED, "the weights are random")
    gain = _gain(*here)
    if math.isnan(gain):
        return Verdict(DOUBTFUL, f"{measure} cannot be measured on these data")
    said = f"{measure} {here[0]:.2f}, under permuted ROI labels {here[1]:.2f}: gain {gain:.2f}"
    own = _gain(*on_card)
    expected, reference = min(
        (own, "of the model on its own held-out data, as its card says"),
        (_gain(*baseline), f"of {baseline_name} on these data"),
        key=lambda choice: math.inf if math.isnan(choice[0]) else choice[0],
    )
    if gain < LEAST_GAIN:
        return Verdict(OUT_OF_DOMAIN, f"{said}, which is below {LEAST_GAIN:g}")
    if math.isnan(expected):
        return Verdict(DOUBTFUL, f"{said}, with nothing to hold it against")
    said += f", beside {expected:.2f} {reference}"
    if gain < LOW_SHARE * expected:
        return Verdict(OUT_OF_DOMAIN, said)
    if gain < HIGH_SHARE * expected:
        return Verdict(DOUBTFUL, said)
    least = ALLOWED_GAIN if math.isnan(own) else ALLOWED_SHARE * own
    if gain < least:
        said += f"; but a gain of {least:.2f} is asked for, after that on its own held-out data"
        return Verdict(DOUBTFUL, said)
    return Verdict(IN_DOMAIN, said)


def _gain(score: float, control: float) -> float:
    """Return what a score is above its control; a control that is negative or unknown counts as 0.

    A negative R2 is worse than no prediction at all, and being better than that is no merit.
    """
    return score - (0.0 if math.isnan(control) else max(0.0, control))


def _numbers(card: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return the numbers that a card has on the model's own held-out data."""
    entry = (card.get("quality") or {}).get(key) or {}
    return {name: float(x) for name, x in entry.items() if isinstance(x, int | float)}
