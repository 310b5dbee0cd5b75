"""What is reported of one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsym_bids.prediction.bias import BiasCorrected
from bsym_bids.prediction.cautions import Caution
from bsym_bids.prediction.comparisons import Comparison
from bsym_bids.prediction.evaluation import Evaluation
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.questions import Question
from bsym_bids.prediction.scores import Scored


@dataclass(frozen=True, eq=False)
class Result:
    """Everything that is reported of one target.

    Attributes
    ----------
    question : Question
        Target, units and groups.
    evaluation : Evaluation
        Predictions of all candidates.
    scored : mapping of str to Scored
        Scores by key of the candidate.
    comparisons : sequence of Comparison
        Of candidates with FC and with the confounds alone.
    headline, reference : str, optional
        Key of the candidate that stands for the network, and of what it has to beat, both fixed
        before anything was seen; None where there is none.
    verdict : str
        In plain words.
    cautions : sequence of Caution
        Warnings.
    corrected : mapping of str to BiasCorrected
        Bias-corrected predictions of numbers, by key of the candidate.
    confounds : Confounds
        Of the units.
    settings : mapping
        What decides the numbers, for the sidecars.
    sources : sequence of str
        BIDS URIs of the files that labels and features were read from.
    by_site : mapping of str to Scored
        Scores of leave-site-out by key of the candidate; empty without.
    """

    question: Question
    evaluation: Evaluation
    scored: Mapping[str, Scored]
    comparisons: Sequence[Comparison]
    headline: str | None
    reference: str | None
    verdict: str
    cautions: Sequence[Caution]
    corrected: Mapping[str, BiasCorrected]
    confounds: Confounds
    settings: Mapping[str, Any]
    sources: Sequence[str]
    by_site: Mapping[str, Scored]
