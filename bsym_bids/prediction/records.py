"""What the steps of a prediction hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REGRESSION, CLASSIFICATION = "regression", "classification"
TASK_TYPES = (REGRESSION, CLASSIFICATION)


@dataclass(frozen=True, order=True)
class Unit:
    """What gets one prediction: a participant, or one of their sessions or states.

    Attributes
    ----------
    participant : str
        Label, without ``sub-``.
    session : str
        Label, without ``ses-``, where the label to predict is one of sessions; else empty.
    state : str
        What ``--state`` tells apart (a session's or task's label); else empty.
    """

    participant: str
    session: str = ""
    state: str = ""

    @property
    def label(self) -> str:
        """What the unit is called in messages."""
        parts = [f"sub-{self.participant}"]
        parts += [f"ses-{self.session}"] if self.session else []
        return "_".join([*parts, self.state] if self.state else parts)


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be predicted, for every unit of the cohort in its order.

    Attributes
    ----------
    name : str
        Name of the column.
    task : str
        `REGRESSION` or `CLASSIFICATION`.
    values : ndarray, shape (N,)
        Numbers, or indices of `classes`; NaN for units without a label.
    classes : tuple of str
        Names of the classes in order; empty for numbers.
    units, description : str
        As the JSON beside the table says; may be empty.
    source : Path, optional
        The table it was read from.
    """

    name: str
    task: str
    values: NDArray[np.float64]
    classes: tuple[str, ...] = ()
    units: str = ""
    description: str = ""
    source: Path | None = None

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(N,), units that have a label."""
        return np.isfinite(self.values)

    @property
    def is_regression(self) -> bool:
        """Whether numbers are predicted."""
        return self.task == REGRESSION


@dataclass(frozen=True, eq=False)
class Folds:
    """Who is predicted by whom: the same for every candidate.

    Attributes
    ----------
    assignment : ndarray of int, shape (repeats, N)
        Fold in which a unit is predicted; -1 for units without a label.
    n_folds : int
        Folds of each repeat.
    """

    assignment: NDArray[np.int64]
    n_folds: int

    @property
    def n_repeats(self) -> int:
        """How many times everyone is predicted."""
        return len(self.assignment)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one candidate predicts of one target.

    Attributes
    ----------
    candidate : str
        Key of the candidate.
    out_of_fold : ndarray, shape (repeats, N) or (repeats, N, classes)
        Predicted numbers, or class probabilities, of labelled units by models that did not see
        them (nor anyone of their group). NaN where there is none: units without a label, or
        without the candidate's features.
    unlabelled : ndarray, shape (N,) or (N, classes)
        Of the other units, by the model fitted on all labelled ones; NaN elsewhere.
    null_scores : ndarray, shape (permutations,)
        The permutation statistic under permuted labels; empty without permutations.
    null_statistic : float
        The same statistic under the true labels; NaN without permutations.
    training_mean : ndarray, shape (repeats, N) or (repeats, N, classes)
        Mean of the labels, or shares of the classes, in the training folds of each prediction.
    """

    candidate: str
    out_of_fold: NDArray[np.float64]
    unlabelled: NDArray[np.float64]
    null_scores: NDArray[np.float64]
    null_statistic: float
    training_mean: NDArray[np.float64]
