import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import mean_absolute_error, roc_auc_score

from bsym_bids.prediction.comparisons import Comparison, compare, corrected_t_test
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Folds, Predictions, Target


def predictions_of(candidate, values):
    nothing = np.full(values.shape[1:], np.nan)
    return Predictions(candidate, values, nothing, np.empty(0), np.nan, np.zeros(values.shape))


def numbers(seed=0, n=60, repeats=3):
    rng = np.random.default_rng(seed)
    target = Target("age", REGRESSION, rng.normal(40, 10, n))
    assignment = np.array([rng.permutation(n) % 4 for _ in range(repeats)])
    guesses = target.values + rng.normal(0, [[[3.0]], [[4.0]]], (2, repeats, n))
    a, b = (predictions_of(key, guess) for key, guess in zip("ab", guesses, strict=True))
    return target, a, b, Folds(assignment, 4)


def test_equals_an_example_worked_by_hand():
    # Differences 0.02, 0.04, 0.06, 0, 0.03: mean 0.03, variance 0.002 / 4 = 0.0005. With n2 / n1 =
    # 1 / 4, the variance of the mean is (1 / 5 + 1 / 4) 0.0005 = 0.000225, its root 0.015: t = 2.
    a = [0.72, 0.69, 0.77, 0.69, 0.78]
    b = [0.70, 0.65, 0.71, 0.69, 0.75]
    scores = np.stack([a, b], axis=1)
    found = corrected_t_test(Comparison("a", "b", "auc", n_units=50), scores, np.full(5, 0.25))
    assert found.difference == pytest.approx(0.03)
    assert (found.t, found.df) == (pytest.approx(2.0), 4)
    assert found.p == pytest.approx(0.116117, abs=1e-6)  # of Student's t, in any table
    assert found.low == pytest.approx(0.03 - 2.776445 * 0.015, abs=1e-7)
    assert found.high == pytest.approx(0.03 + 2.776445 * 0.015, abs=1e-7)
    assert (found.score_a, found.score_b) == (pytest.approx(0.73), pytest.approx(0.70))


def test_without_correction_it_is_students_test():
    scores = np.random.default_rng(0).normal([3, 3.2], 0.4, (20, 2))
    found = corrected_t_test(Comparison("a", "b", "mae"), scores, np.zeros(20))
    expected = scipy.stats.ttest_1samp(scores[:, 1] - scores[:, 0], 0)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_errors_are_compared_fold_by_fold_on_common_units():
    target, a, b, folds = numbers()
    a.out_of_fold[:, :6] = np.nan
    b.out_of_fold[:, 4:11] = np.nan
    found = compare(target, a, b, folds)
    both = np.arange(60) > 10
    errors, ratios = [], []
    for repeat in range(3):
        for fold in range(4):
            rows = both & (folds.assignment[repeat] == fold)
            labels = target.values[rows]
            errors.append(
                [mean_absolute_error(labels, x.out_of_fold[repeat, rows]) for x in (a, b)]
            )
            outside = folds.assignment[repeat] != fold
            trained = [(np.isfinite(x.out_of_fold[repeat]) & outside).sum() for x in (a, b)]
            ratios.append(rows.sum() / min(trained))
    differences = np.array(errors)[:, 1] - np.array(errors)[:, 0]
    assert (found.metric, found.n_units, found.n_folds, found.df) == ("mae", 49, 12, 11)
    assert found.difference == pytest.approx(differences.mean())
    assert found.difference > 0  # a errs less
    error = np.sqrt((1 / 12 + np.mean(ratios)) * differences.var(ddof=1))
    assert found.t == pytest.approx(differences.mean() / error)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_areas_are_compared_where_a_fold_has_two_classes(n_classes):
    rng = np.random.default_rng(1)
    n = 80
    labels = rng.integers(n_classes, size=n)
    assignment = np.array([rng.permutation(n) % 4, rng.permutation(n) % 4])
    labels[assignment[0] == 3] = 1  # of one class
    target = Target("group", CLASSIFICATION, labels.astype(float), tuple("abc"[:n_classes]))
    own = np.eye(n_classes)[labels]
    guesses = []
    for strength in (1.5, 0.5):
        raw = np.exp(strength * own + rng.normal(0, 1, (2, n, n_classes)))
        guesses.append(raw / raw.sum(axis=2, keepdims=True))
    a, b = (predictions_of(key, guess) for key, guess in zip("ab", guesses, strict=True))
    found = compare(target, a, b, Folds(assignment, 4))
    areas = []
    for repeat in range(2):
        for fold in range(4):
            rows = assignment[repeat] == fold
            if (repeat, fold) == (0, 3):
                continue
            each = [c for c in range(n_classes) if (labels[rows] == c).any()]
            areas.append(
                [
                    np.mean([roc_auc_score(labels[rows] == c, g[repeat, rows, c]) for c in each])
                    for g in guesses
                ]
            )
    areas = np.array(areas)
    assert (found.metric, found.n_folds) == ("auc", 7)
    assert (found.score_a, found.score_b) == pytest.approx(tuple(areas.mean(axis=0)))
    assert found.difference == pytest.approx((areas[:, 0] - areas[:, 1]).mean())
    assert found.low > 0 and found.p < 0.05


def test_the_other_way_round_is_the_opposite():
    target, a, b, folds = numbers()
    one, other = compare(target, a, b, folds), compare(target, b, a, folds)
    assert one.reversed == other
    assert one.reversed.reversed == one


def test_candidates_of_fewer_repeats_are_compared_on_those():
    target, a, b, folds = numbers()
    b.out_of_fold[1:] = np.nan
    found = compare(target, a, b, folds)
    only = Folds(folds.assignment[:1], 4)
    expected = compare(
        target,
        predictions_of("a", a.out_of_fold[:1]),
        predictions_of("b", b.out_of_fold[:1]),
        only,
    )
    assert found == expected and found.n_folds == 4


def undefined(found):
    return [math.isnan(x) for x in (found.low, found.high, found.t, found.p)] == [True] * 4


def test_what_cannot_be_compared_says_why():
    target, a, b, folds = numbers()
    same = compare(target, a, predictions_of("b", a.out_of_fold.copy()), folds)
    assert undefined(same) and same.difference == 0 and "the same in all folds" in same.reason
    shifted = predictions_of("b", target.values + 2 + np.zeros((3, 60)))
    exact = predictions_of("a", target.values + 1 + np.zeros((3, 60)))
    constant = compare(target, exact, shifted, folds)
    assert undefined(constant) and constant.difference == pytest.approx(1)
    single = Folds(np.where(folds.assignment[:1] == 0, 0, -1), 1)
    a.out_of_fold[:, folds.assignment[0] != 0] = np.nan
    alone = compare(target, a, b, single)
    assert undefined(alone)
    a.out_of_fold[:, ::2], b.out_of_fold[:, 1::2] = np.nan, np.nan
    none = compare(target, a, b, folds)
    assert undefined(none) and math.isnan(none.difference)
    assert (none.reason, none.n_units) == ("no unit is predicted by both", 0)


def test_a_single_fold_with_a_score_has_no_spread():
    labels = np.array([0.0, 1.0] * 10 + [0.0] * 20)
    target = Target("sex", CLASSIFICATION, labels, ("F", "M"))
    second = np.random.default_rng(0).uniform(size=(2, 1, 40))
    a, b = (
        predictions_of(k, np.stack([1 - s, s], axis=2)) for k, s in zip("ab", second, strict=True)
    )
    found = compare(target, a, b, Folds((np.arange(40) >= 20).astype(int)[None], 2))
    assert undefined(found) and found.n_folds == 1 and "single fold" in found.reason
    one = Target("sex", CLASSIFICATION, np.zeros(40), ("F", "M"))
    nothing = compare(one, a, b, Folds((np.arange(40) % 2)[None], 2))
    assert undefined(nothing) and "two classes" in nothing.reason


def null_p_values(n_cohorts, seed):
    """Cross-validate two candidates that know equally much; with and without the correction."""
    rng = np.random.default_rng(seed)
    corrected, plain = [], []
    for _ in range(n_cohorts):
        features = rng.standard_normal((2, 60, 3))
        ages = features.sum(axis=(0, 2)) + rng.normal(0, 2, 60)
        assignment = np.array([rng.permutation(60) % 5 for _ in range(4)])
        guesses = np.full((2, 4, 60), np.nan)
        for repeat, folds in enumerate(assignment):
            for fold in range(5):
                known, test = features[:, folds != fold], folds == fold
                crossed = known.transpose(0, 2, 1)
                weights = np.linalg.solve(crossed @ known, crossed @ ages[~test][:, None])
                guesses[:, repeat, test] = (features[:, test] @ weights)[:, :, 0]
        a, b = (predictions_of(key, guess) for key, guess in zip("ab", guesses, strict=True))
        found = compare(Target("age", REGRESSION, ages), a, b, Folds(assignment, 5))
        corrected.append(found.p)
        inflation = math.sqrt((1 / 20 + 12 / 48) / (1 / 20))
        plain.append(2 * scipy.stats.t.sf(abs(found.t) * inflation, found.df))
    return np.array(corrected), np.array(plain)


def test_equal_candidates_are_seldom_found_different():
    corrected, plain = null_p_values(150, seed=0)
    most = scipy.stats.binom.ppf(0.999, 150, 0.05)
    assert (corrected < 0.05).sum() <= most
    assert (plain < 0.05).sum() > most  # what the correction is for
