"""Fitted predictors as a file, for people without labels in another dataset.

A head holds, for every linear candidate, one weight per feature, what missing features are imputed
with, and what the confounds take away; no features of anyone.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.outputs.publish import explained
from bsym_bids.prediction.evaluation import Cohort, Evaluation
from bsym_bids.prediction.linear import Fit
from bsym_bids.prediction.logistic import probabilities
from bsym_bids.prediction.records import CLASSIFICATION, TASK_TYPES
from bsym_bids.prediction.scores import averaged_training_mean
from bsym_bids.untrusted import parse_json, read_arrays

FORMAT = "bsym-bids head, version 2"
_HINT = "make it again with --save-head"
#: More is of no fit, and would make infinite predictions.
_LARGEST_WEIGHT = 1e40
Loader = Callable[[str], NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class Part:
    """What a head does with one kind of features.

    Attributes
    ----------
    weights : ndarray, shape (F, m)
        Of the features.
    means : ndarray, shape (F,)
        Of the training units; they stand for missing values.
    """

    weights: NDArray[np.float32]
    means: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted predictor.

    Attributes
    ----------
    parts : mapping of str to Part
        By kind of features.
    confounds : sequence of str
        Names of the confounds that were regressed out of the features.
    confound_means : ndarray, shape (C,)
        Of the training units; they stand for missing values.
    confound_weights : ndarray, shape (C, m)
        What is taken away for each unit of a confound.
    intercept : ndarray, shape (m,)
        Prediction, or logits, where all features and confounds are 0.
    shares : ndarray, shape (classes,)
        Of the classes in training; empty for numbers.
    """

    parts: Mapping[str, Part]
    confounds: Sequence[str]
    confound_means: NDArray[np.float64]
    confound_weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    shares: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def raw(
        self, features: Mapping[str, NDArray[np.floating]], confounds: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return predictions, or logits, (N, m); NaN for units without the features.

        Parameters
        ----------
        features : mapping of str to ndarray
            (N, F) of every kind in `parts`.
        confounds : ndarray, shape (N, C)
            In the order of `confounds`; NaN where they are not known.
        """
        known = np.where(np.isfinite(confounds), confounds, self.confound_means)
        total = self.intercept - known @ self.confound_weights
        for kind, part in self.parts.items():
            values = features[kind]
            there = np.isfinite(values).any(axis=1)
            filled = np.where(np.isfinite(values), values, part.means).astype(np.float64)
            total = total + np.where(there[:, None], filled @ part.weights, np.nan)
        return total


@dataclass(frozen=True, eq=False)
class HeadFile:
    """The heads of one target.

    Attributes
    ----------
    heads : mapping of str to Head
        By key of the candidate.
    about : mapping
        The target (``Target``, ``TaskType``, ``Classes``, ``Units``), what features have to be like
        (``Settings``), and how good each candidate was (``Scores``).
    """

    heads: Mapping[str, Head]
    about: Mapping[str, Any]

    def predict(
        self,
        key: str,
        features: Mapping[str, NDArray[np.floating]],
        confounds: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the predictions (N,) or class probabilities (N, classes) of one candidate."""
        raw = self.heads[key].raw(features, confounds)
        return probabilities(raw) if self.about["TaskType"] == CLASSIFICATION else raw[:, 0]


def heads_of(evaluation: Evaluation, cohort: Cohort, load: Loader) -> dict[str, Head]:
    """Turn the fits to all labelled units into heads.

    Parameters
    ----------
    evaluation : Evaluation
        Its fits.
    cohort : Cohort
        What they were fitted to.
    load : callable
        Returns the features (N, F) of a kind.

    Returns
    -------
    dict of str to Head
        By key of the candidate.
    """
    fitted = [c for c in evaluation.candidates if c.kinds and c.key in evaluation.fits]
    # Random weights are a control here; there is nothing to predict elsewhere with them.
    linear = [c for c in fitted if not any(kind.startswith("random") for kind in c.kinds)]
    parts: dict[str, dict[str, Part]] = {candidate.key: {} for candidate in linear}
    scores = {candidate.key: 0.0 for candidate in linear}
    # One kind of features in memory at a time.
    for kind in dict.fromkeys(kind for candidate in linear for kind in candidate.kinds):
        values = load(kind)
        for candidate in linear:
            if kind not in candidate.kinds:
                continue
            fit = evaluation.fits[candidate.key]
            scale = 1.0
            if len(candidate.kinds) > 1:
                scale = cohort.kernels[kind].scale(fit.training)
            part, own = _part(values, fit, scale)
            parts[candidate.key][kind] = part
            scores[candidate.key] = scores[candidate.key] + own
    return {
        candidate.key: _head(
            parts[candidate.key],
            evaluation.fits[candidate.key],
            scores[candidate.key],
            _shares(evaluation, candidate.key),
        )
        for candidate in linear
    }


def _part(values: NDArray[np.floating], fit: Fit, scale: float) -> tuple[Part, NDArray[np.float64]]:
    """Return the weights of one kind, and what they make of each unit, (N, m)."""
    used = fit.training
    known = np.isfinite(values[used])
    count = known.sum(axis=0)
    total = np.where(known, values[used], 0).sum(axis=0, dtype=np.float64)
    means = total / np.maximum(count, 1)
    filled = np.where(np.isfinite(values), values, means)
    filled[:, count == 0] = 0  # nothing is known of them
    design = fit.confounds.design(used)
    fitting = np.zeros(design.T.shape)
    fitting[:, used] = np.linalg.pinv(design[used])
    residual_dual = fit.dual - fitting.T @ (design.T @ fit.dual)
    weights = filled.T @ residual_dual / scale
    return Part(weights.astype(np.float32), means.astype(np.float32)), filled @ weights


def _shares(evaluation: Evaluation, key: str) -> NDArray[np.float64]:
    """Return the shares of the classes by which the class of the unlabelled is chosen here."""
    if evaluation.target.is_regression:
        return np.empty(0)
    return np.nanmean(averaged_training_mean(evaluation.predictions[key]), axis=0)


def _head(
    parts: Mapping[str, Part],
    fit: Fit,
    scores: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> Head:
    """Put the parts together with what the confounds explain of their scores in training."""
    used, confounds = fit.training, fit.confounds
    values = confounds.values
    known = np.isfinite(values) & used[:, None]
    # 0 for what is known of nobody who trained: it does not vary then, and weighs nothing.
    means = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    filled = np.where(np.isfinite(values), values, means)
    spread = filled[used].std(axis=0)
    varying = spread > 0
    # Standardised for the arithmetic, given back in units of the confounds.
    columns = np.where(varying, (filled - means) / np.where(varying, spread, 1), 0)
    design = np.column_stack([np.ones(len(columns)), columns])
    found = np.linalg.lstsq(design[used], scores[used], rcond=None)[0]
    slopes = found[1:] / np.where(varying, spread, 1)[:, None]
    # found[0] is at the means of the confounds.
    return Head(
        parts,
        tuple(confounds.names),
        means,
        slopes,
        fit.intercept - found[0] + means @ slopes,
        shares,
    )


def write_heads(path: Path, heads: HeadFile) -> None:
    """Write heads to a file, whole or not at all, in a folder that is there.

    Raises
    ------
    CannotCreateOutputError, OutputIOError
        It cannot be written.
    """
    arrays: dict[str, NDArray] = {}
    listed = {}
    for key, head in heads.heads.items():
        arrays[f"{key}/confound_means"] = head.confound_means
        arrays[f"{key}/confound_weights"] = head.confound_weights
        arrays[f"{key}/intercept"] = head.intercept
        arrays[f"{key}/shares"] = head.shares
        for kind, part in head.parts.items():
            arrays[f"{key}/{kind}/weights"] = part.weights
            arrays[f"{key}/{kind}/means"] = part.means
        listed[key] = {"Features": list(head.parts), "Confounds": list(head.confounds)}
    document = json.dumps({"Format": FORMAT, "Heads": listed, **heads.about})
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with explained(path):
        try:
            with aside.open("xb") as file:
                np.savez_compressed(
                    file, about=np.frombuffer(document.encode(), np.uint8), **arrays
                )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def read_heads(path: Path) -> HeadFile:
    """Read a file of heads.

    Raises
    ------
    InputMissingError
        There is no such file.
    BadDataError
        It is not one that `write_heads` wrote.
    """
    if not path.is_file():
        raise InputMissingError(f"{path}: no such file of predictors", hint=_HINT)
    try:
        arrays = read_arrays(path)
        about = parse_json(bytes(arrays["about"]).decode())
        if about.pop("Format") != FORMAT:
            raise BadDataError(f"{path}: of another version than {FORMAT!r}", hint=_HINT)
        heads = {
            key: Head(
                {
                    kind: Part(arrays[f"{key}/{kind}/weights"], arrays[f"{key}/{kind}/means"])
                    for kind in listed["Features"]
                },
                tuple(listed["Confounds"]),
                arrays[f"{key}/confound_means"],
                arrays[f"{key}/confound_weights"],
                arrays[f"{key}/intercept"],
                arrays[f"{key}/shares"],
            )
            for key, listed in about.pop("Heads").items()
        }
        problem = _problem_of(heads, about)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadDataError(f"{path}: not a file of predictors: {error}", hint=_HINT) from error
    if problem:
        raise BadDataError(f"{path}: not a file of predictors: {problem}", hint=_HINT)
    return HeadFile(heads, about)


def _problem_of(heads: Mapping[str, Head], about: Mapping[str, Any]) -> str:
    """Say what keeps heads from predicting what they say; empty where nothing does."""
    task, classes = about["TaskType"], about.get("Classes", [])
    texts = [about["Target"], about.get("Units", ""), task, *classes]
    if not heads or not all(isinstance(text, str) for text in texts):
        return "it has no heads, or a target without a name"
    if task not in TASK_TYPES or not isinstance(classes, list):
        return f"it predicts {task!r}"
    settings = about.get("Settings", {})
    if not isinstance(settings, dict) or not all(isinstance(v, str) for v in settings.values()):
        return "its settings are no texts"
    n_classes = len(classes) if task == CLASSIFICATION else 0
    if task == CLASSIFICATION and n_classes < 2:
        return f"it tells {n_classes} classes apart"
    n_scores = n_classes if n_classes > 2 else 1
    for key, head in heads.items():
        n_confounds = len(head.confounds)
        shapes = [
            (head.confound_means, (n_confounds,)),
            (head.confound_weights, (n_confounds, n_scores)),
            (head.intercept, (n_scores,)),
            (head.shares, (n_classes,)),
        ]
        for part in head.parts.values():
            shapes += [(part.weights, (len(part.means), n_scores)), (part.means, part.means.shape)]
        if not all(isinstance(name, str) for name in (*head.confounds, *head.parts)):
            return f"{key}: confounds and features need names"
        if not all(len(part.means) for part in head.parts.values()):
            return f"{key}: there is nothing in a kind of features that it takes"
        for array, shape in shapes:
            is_fitting = array.shape == shape and array.dtype.kind == "f"
            # As float32, the largest weight would be infinity.
            if not is_fitting or not (np.abs(array.astype(np.float64)) <= _LARGEST_WEIGHT).all():
                return f"{key}: its weights are not finite numbers that fit each other"
    return ""
