"""All candidates on one target: the same folds, the same permuted labels, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bsym_bids.pool import Workers, workers
from bsym_bids.prediction.candidates import (
    CONFOUNDS,
    GATE,
    LINEAR,
    MEAN,
    Candidate,
    candidates_for,
)
from bsym_bids.prediction.exchange import Exchange, permuted_labels
from bsym_bids.prediction.folds import can_train, make_folds
from bsym_bids.prediction.kernels import HarmonizedKernel, Kernel, SumKernel
from bsym_bids.prediction.linear import Fit, predict_linear, predict_mean, training_means
from bsym_bids.prediction.nuisance import ConfoundKernel, Confounds, no_confounds
from bsym_bids.prediction.records import Folds, Predictions, Target, Unit

LOGGER = logging.getLogger("bsym_bids")
#: Labelled units from which on processes save more time than their start takes.
_WORTH_PROCESSES = 300
#: Features of the gate, as (N, ROIs, dimensions).
Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How candidates are evaluated.

    Attributes
    ----------
    folds, repeats : int
        Of the cross-validation.
    permutations : int
        Of the labels.
    seed : int
        Of folds, permutations and the gate.
    gate_repeats : int
        Repeats in which the gate is trained: it takes minutes where the others take seconds.
    n_workers : int
        Processes for what takes long enough to be worth their start; 0 for none.
    """

    folds: int = 5
    repeats: int = 10
    permutations: int = 1000
    seed: int = 0
    gate_repeats: int = 1
    n_workers: int = 0


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who there is, and what is known of them besides the target.

    Attributes
    ----------
    units : sequence of Unit
        N of them; all arrays are in their order.
    kernels : mapping of str to Kernel
        By kind of features.
    confounds : Confounds
        What may carry the label.
    groups : sequence of str
        Group of each unit that stays in one fold.
    exchange : Exchange
        How labels are exchangeable.
    embeddings : callable
        Returns functional and structural embeddings, (N, ROIs, dimensions) each, NaN where there
        are none; called only for the gate.
    """

    units: Sequence[Unit]
    kernels: Mapping[str, Kernel]
    confounds: Confounds
    groups: Sequence[str]
    exchange: Exchange
    embeddings: Callable[[], tuple[Embeddings, Embeddings]] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What all candidates made of one target.

    Attributes
    ----------
    target : Target
        The target.
    folds : Folds
        Who was predicted by whom.
    candidates : tuple of Candidate
        Those that were tried, in order.
    predictions : mapping of str to Predictions
        By key of the candidate.
    fits : mapping of str to Fit
        Fits to all labelled units of the linear candidates.
    confounds : Confounds
        What was regressed out: those that can be in all folds.
    """

    target: Target
    folds: Folds
    candidates: tuple[Candidate, ...]
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    confounds: Confounds = field(default_factory=lambda: no_confounds(0))


def evaluate(
    target: Target, cohort: Cohort, options: Options, folds: Folds | None = None
) -> Evaluation:
    """Try every candidate on a target.

    Parameters
    ----------
    target : Target
        What is to be predicted.
    cohort : Cohort
        From what.
    options : Options
        How.
    folds : Folds, optional
        Other folds than those dealt out by the options; not dealt out by the labels.

    Returns
    -------
    Evaluation
    """
    blind = folds or _deal(target, cohort, options, are_blind=True)
    folds = folds or _deal(target, cohort, options)
    rng = np.random.default_rng([options.seed, 1])
    permuted = permuted_labels(target.values, cohort.exchange, options.permutations, rng)
    cohort = replace(cohort, confounds=_estimable(target, cohort, (folds, blind)))
    tried = tuple(
        candidate
        for candidate in candidates_for(cohort.kernels)
        if _is_possible(candidate, cohort) and _can_train(candidate, cohort, target, folds)
    )
    predictions: dict[str, Predictions] = {}
    fits: dict[str, Fit] = {}
    # One thread, here as in the processes: the same sums on any machine.
    with threadpool_limits(1, user_api="blas"), _workers_for(target, options) as shared:
        for candidate in tried:
            LOGGER.info("%s: %s", target.name, candidate.title)
            if candidate.how == MEAN:
                predictions[candidate.key] = predict_mean(target, folds)
            elif candidate.how == GATE:
                predictions[candidate.key] = _predict_through_gate(
                    candidate, target, folds, cohort, options
                )
            else:
                predictions[candidate.key], fits[candidate.key] = predict_linear(
                    candidate.key,
                    kernel_of(candidate, cohort),
                    target,
                    folds,
                    confounds_for(candidate, cohort),
                    permuted,
                    shared,
                    blind,
                )
    return Evaluation(target, folds, tried, predictions, fits, cohort.confounds)


def _deal(target: Target, cohort: Cohort, options: Options, *, are_blind: bool = False) -> Folds:
    return make_folds(
        target,
        cohort.groups,
        n_folds=options.folds,
        n_repeats=options.repeats,
        seed=options.seed,
        are_blind=are_blind,
    )


def _estimable(target: Target, cohort: Cohort, folds: Sequence[Folds]) -> Confounds:
    """Return the confounds that can be regressed out in all folds, and name the others."""
    kept = cohort.confounds.estimable(folds, target.labelled)
    lost = [name for name in cohort.confounds.names if name not in kept.names]
    if lost:
        LOGGER.warning(
            "%s: not regressed out: %s: does not vary, or follows from other confounds, where two "
            "folds are left out",
            target.name,
            ", ".join(lost),
        )
    return kept


def kernel_of(candidate: Candidate, cohort: Cohort) -> Kernel:
    """Return the features of a candidate: of several sets, all side by side."""
    if candidate.how == CONFOUNDS:
        return ConfoundKernel(cohort.confounds)
    parts = [cohort.kernels[kind] for kind in candidate.kinds]
    return parts[0] if len(parts) == 1 else SumKernel(parts)


def confounds_for(candidate: Candidate, cohort: Cohort) -> Confounds:
    """Return what is regressed out of the features of a candidate."""
    if candidate.how == CONFOUNDS:
        return no_confounds(len(cohort.units))
    return cohort.confounds


def _is_possible(candidate: Candidate, cohort: Cohort) -> bool:
    if candidate.how == CONFOUNDS:
        return bool(cohort.confounds.names)
    if candidate.how == GATE:
        return cohort.embeddings is not None
    if candidate.how == LINEAR:
        return bool(np.any(kernel_of(candidate, cohort).present))
    return True


def _can_train(candidate: Candidate, cohort: Cohort, target: Target, folds: Folds) -> bool:
    """Tell, and say if not, whether enough people have a candidate's features."""
    if candidate.how == MEAN:
        return True
    members = kernel_of(candidate, cohort).present & target.labelled
    n_columns = 1 + confounds_for(candidate, cohort).values.shape[1]
    if can_train(target, folds, members, n_columns):
        return True
    LOGGER.warning(
        "%s: left out, %s: %d of %d labelled have it, too few to train on",
        target.name,
        candidate.title,
        members.sum(),
        target.labelled.sum(),
    )
    return False


def _workers_for(target: Target, options: Options) -> AbstractContextManager[Workers | None]:
    """Start processes, if there is enough for them to do."""
    if options.n_workers < 2 or target.labelled.sum() < _WORTH_PROCESSES:
        return nullcontext()
    return workers(options.n_workers)


def without_confounds(
    values: Embeddings, design: NDArray[np.float64], training: NDArray[np.bool_]
) -> Embeddings:
    """Take out of features what confounds explain of them in training.

    Parameters
    ----------
    values : ndarray of float32, shape (N, R, D)
        NaN where a unit lacks a feature; there, it stays.
    design : ndarray, shape (N, 1 + c)
        Ones and the confounds, as `Confounds.design` returns them.
    training : ndarray of bool, shape (N,)
        Who trains.

    Returns
    -------
    ndarray of float32, shape (N, R, D)
    """
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat[training])
    total = np.where(known, flat[training], 0).sum(axis=0, dtype=np.float64)
    mean = total / np.maximum(known.sum(axis=0), 1)
    coefficients = np.linalg.pinv(design[training]) @ np.where(known, flat[training], mean)
    explained = design[:, 1:] @ coefficients[1:]
    return (flat - explained).astype(np.float32).reshape(values.shape)


def harmonized_as_others(
    cohort: Cohort, key: str, values: Embeddings, training: NDArray[np.bool_]
) -> Embeddings:
    """Return embeddings as the other candidates get them: harmonised, where they are.

    Parameters
    ----------
    cohort : Cohort
        With the kernels of the others.
    key : str
        Kind of features.
    values : ndarray of float32, shape (N, R, D)
        Of that kind.
    training : ndarray of bool, shape (N,)
        Who trains.
    """
    kernel = cohort.kernels.get(key)
    if not isinstance(kernel, HarmonizedKernel):
        return values
    return kernel.harmonized(training).reshape(values.shape).astype(np.float32)


def _predict_through_gate(
    candidate: Candidate, target: Target, folds: Folds, cohort: Cohort, options: Options
) -> Predictions:
    """Predict through a gate and a head that are trained in each training fold."""
    from bsym_bids.prediction.gate import fit_gate  # torch, which nothing else here needs

    assert cohort.embeddings is not None
    functional, structural = cohort.embeddings()
    there = np.isfinite(functional).any((1, 2)) & np.isfinite(structural).any((1, 2))
    members = there & target.labelled
    means = training_means(target, folds, members)
    out_of_fold = np.full(means.shape, np.nan)

    def predicted(training: NDArray[np.bool_], rows: NDArray[np.bool_], seed: int) -> NDArray:
        design = cohort.confounds.design(training)
        first, second = (
            without_confounds(harmonized_as_others(cohort, key, values, training), design, training)
            for key, values in zip(candidate.kinds, (functional, structural), strict=True)
        )
        head = fit_gate(
            first,
            second,
            target.values,
            training,
            cohort.groups,
            None if target.is_regression else len(target.classes),
            seed,
        )
        return head.predict(first[rows], second[rows])

    for repeat in range(min(options.gate_repeats, folds.n_repeats)):
        assignment = folds.assignment[repeat]
        for fold in np.unique(assignment[members]):
            tested = members & (assignment == fold)
            seed = options.seed + repeat * folds.n_folds + int(fold)
            out_of_fold[repeat, tested] = predicted(members & ~tested, tested, seed)
    unlabelled = np.full(means.shape[1:], np.nan)
    others = there & ~target.labelled
    if others.any():
        unlabelled[others] = predicted(members, others, options.seed)
    return Predictions(candidate.key, out_of_fold, unlabelled, np.empty(0), np.nan, means)
