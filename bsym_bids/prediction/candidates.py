"""What is tried on every target, side by side on the same folds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

#: How a candidate predicts.
MEAN, CONFOUNDS, LINEAR, GATE = "mean", "confounds", "linear", "gate"


@dataclass(frozen=True)
class Candidate:
    """A way to predict a label.

    Attributes
    ----------
    key, title : str
        Name in files, and for people.
    kinds : tuple of str
        Kinds of features that it needs, side by side.
    how : str
        `MEAN`: of the training labels. `CONFOUNDS`: regression on the confounds. `LINEAR`: ridge or
        logistic regression on the features. `GATE`: through the network's gate.
    """

    key: str
    title: str
    kinds: tuple[str, ...] = ()
    how: str = LINEAR


#: In the order of reports: from the least that must be beaten to what is proposed.
CANDIDATES = (
    Candidate("mean", "mean or most frequent class", how=MEAN),
    Candidate("confounds", "confounds alone", how=CONFOUNDS),
    Candidate("fc", "FC", ("fc",)),
    Candidate("fc_tangent", "FC in tangent space", ("fc_tangent",)),
    Candidate("sc", "SC", ("sc",)),
    Candidate("fc_sc", "FC + SC", ("fc", "sc")),
    Candidate("random_functional", "random network, functional", ("random_functional",)),
    Candidate("random_structural", "random network, structural", ("random_structural",)),
    Candidate(
        "random_concatenated",
        "random network, both",
        ("random_functional", "random_structural"),
    ),
    Candidate(
        "bs_functional_mean", "BrainSymphony functional, mean embedding", ("bs_functional_mean",)
    ),
    Candidate("bs_functional", "BrainSymphony functional, similarity", ("bs_functional",)),
    Candidate("bs_structural", "BrainSymphony structural", ("bs_structural",)),
    Candidate("bs_concatenated", "BrainSymphony, both", ("bs_functional", "bs_structural")),
    Candidate(
        "bs_gate",
        "BrainSymphony, both through the gate",
        ("bs_functional_mean", "bs_structural"),
        GATE,
    ),
    Candidate("fc_bs", "FC + BrainSymphony functional", ("fc", "bs_functional")),
)
#: What stands for the network in verdicts, the first that there is. Fixed before anything is
#: seen: the best of many would be too good.
HEADLINES = ("bs_concatenated", "bs_functional", "bs_structural")
#: What it has to beat: the first that there is.
REFERENCES = ("fc", "sc")


def candidates_for(kinds: Collection[str]) -> tuple[Candidate, ...]:
    """Return the candidates whose features there are."""
    return tuple(candidate for candidate in CANDIDATES if set(candidate.kinds) <= set(kinds))


def first_of(keys: tuple[str, ...], there: Collection[str]) -> str | None:
    """Return the first key that there is."""
    return next((key for key in keys if key in there), None)
