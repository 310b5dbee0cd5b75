"""Cohorts in which it is known what predicts a label: what is found must be that."""

from dataclasses import replace

import numpy as np
import pytest
from known_cohorts import evaluated, known_cohort
from scipy.stats import binom

from bsym_bids.prediction import logistic
from bsym_bids.prediction.cautions import Circumstances, warnings_for
from bsym_bids.prediction.comparisons import compare
from bsym_bids.prediction.evaluation import Options, evaluate
from bsym_bids.prediction.linear import predict_linear
from bsym_bids.prediction.nuisance import no_confounds
from bsym_bids.prediction.records import CLASSIFICATION, Target
from bsym_bids.prediction.ridge import OutOfFold
from bsym_bids.prediction.scores import assess, permutation_p
from bsym_bids.prediction.verdict import verdict


def assessed(target, evaluation, cohort):
    return {
        key: assess(target, found, cohort.groups, 200, np.random.default_rng(0))
        for key, found in evaluation.predictions.items()
    }


def compared(target, evaluation, *bases):
    found = evaluation.predictions
    return [
        compare(target, found[key], found[base], evaluation.folds)
        for base in bases
        for key in found
        if key != base
    ]


@pytest.fixture(scope="module")
def only_fc():
    return evaluated("fc", 150)


@pytest.fixture(scope="module")
def motion():
    return evaluated("motion", 150)


def test_signal_in_fc_alone(only_fc):
    target, evaluation, cohort = only_fc
    scored = assessed(target, evaluation, cohort)
    assert scored["fc"].scores["r2"] > 0.25
    assert scored["fc"].p < 0.02
    assert scored["sc"].scores["r2"] < 0.05
    assert scored["bs_structural"].scores["r2"] < 0.05
    assert scored["sc"].p > 0.02
    assert scored["fc"].scores["mae"] < scored["mean"].scores["mae"] - 2  # years


def test_signal_in_sc_alone():
    target, evaluation, cohort = evaluated("sc", 150)
    scored = assessed(target, evaluation, cohort)
    assert scored["sc"].scores["r2"] > 0.25
    assert scored["fc"].scores["r2"] < 0.05
    assert scored["bs_functional"].scores["r2"] < 0.05


def test_signal_in_both_is_more_in_both():
    target, evaluation, cohort = evaluated("both", 250, permutations=0)
    scored = assessed(target, evaluation, cohort)
    both = scored["fc_sc"].scores["r2"]
    assert both > scored["fc"].scores["r2"] + 0.03
    assert both > scored["sc"].scores["r2"] + 0.03


def test_confounds_win_where_motion_carries_the_label(motion):
    target, evaluation, cohort = motion
    scored = assessed(target, evaluation, cohort)
    brain = ("fc", "sc", "bs_functional", "bs_structural", "fc_bs", "fc_sc", "bs_concatenated")
    best = max(scored[key].scores["r2"] for key in brain)
    assert scored["confounds"].scores["r2"] > best + 0.1
    comparisons = compared(target, evaluation, "fc", "confounds")
    said = verdict(target, scored, comparisons)
    assert "onfounds alone" in said
    circumstances = Circumstances([unit.participant for unit in cohort.units])
    codes = {c.code for c in warnings_for(target, scored, comparisons, circumstances)}
    assert "confounds" in codes


def test_without_regression_of_confounds_motion_passes_for_brain(motion):
    target, evaluation, _ = motion
    _, _, cohort = known_cohort("motion", 150, kinds=("fc",))
    folds = evaluation.folds
    raw, _ = predict_linear(
        "fc", cohort.kernels["fc"], target, folds, no_confounds(150), np.empty((150, 0))
    )
    rng = np.random.default_rng(0)
    without = assess(target, raw, cohort.groups, 0, rng).scores["r2"]
    with_regression = assess(target, evaluation.predictions["fc"], cohort.groups, 0, rng).scores[
        "r2"
    ]
    assert without > 0.2
    assert with_regression < without - 0.15


def test_families_on_both_sides_of_a_split_leak_and_grouping_ends_it():
    scores = {}
    for groups in (None, "family"):
        target, evaluation, cohort = evaluated(
            "families", 120, kinds=("fc",), groups=groups, permutations=0
        )
        scores[groups] = assessed(target, evaluation, cohort)["fc"].scores["r2"]
    assert scores[None] > 0.2
    assert scores["family"] < 0.1


def test_classes_are_told_apart():
    target, evaluation, cohort = evaluated("sex", 200, kinds=("fc", "sc"))
    scored = assessed(target, evaluation, cohort)
    assert scored["fc"].scores["auc"] > 0.7
    assert scored["fc"].p < 0.02
    assert abs(scored["sc"].scores["auc"] - 0.5) < 0.15
    assert scored["mean"].scores["auc"] == 0.5


def no_logistic(regression, classes, n_classes, workers=None):
    """Stand in for logistic regression: it takes most of the time, and no part in the test."""
    folds = regression.folds
    values = np.full((folds.n_repeats, len(classes), n_classes), 1 / n_classes)
    return OutOfFold(values, np.ones((folds.n_repeats, folds.n_folds, 1)))


@pytest.mark.parametrize("label", ["age", "sex"])
def test_the_permutation_test_keeps_its_level(label, monkeypatch):
    """Nothing predicts anything: p is below 0.05 in 5 % of 200 cohorts, give or take.

    Folds that know the true labels, and not the shuffled ones, do not keep it.
    """
    monkeypatch.setattr(logistic, "nested_logistic", no_logistic)
    n, below, cohorts = 60, 0, 200
    rng = np.random.default_rng(11)
    _, target, cohort = known_cohort("none", n, kinds=("fc",), confounds=())
    for seed in range(cohorts):
        # Independent of the features: a new null for the price of a permutation.
        values = rng.permutation(target.values)
        own = replace(target, values=values)
        if label == "sex":
            unequal = (values > np.quantile(values, 0.75)).astype(float)
            own = Target(label, CLASSIFICATION, unequal, ("F", "M"))
        options = Options(folds=5, repeats=5, permutations=99, seed=seed)
        found = evaluate(own, cohort, options).predictions["fc"]
        below += permutation_p(found.null_statistic, found.null_scores) <= 0.05
    low, high = binom.interval(0.99, cohorts, 0.05)
    assert low <= below <= high
