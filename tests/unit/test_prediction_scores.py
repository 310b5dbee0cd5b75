import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn import metrics
from sklearn.linear_model import LinearRegression, LogisticRegression

from bsym_bids.prediction import scores
from bsym_bids.prediction.bias import LEAST_SLOPE, correct_bias
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Folds, Predictions, Target
from bsym_bids.prediction.scores import (
    METRICS,
    assess,
    averaged,
    averaged_training_mean,
    bootstrap_intervals,
    metrics_of,
    permutation_p,
    predicted_classes,
    primary_metric,
    residuals,
    score,
)
from bsym_bids.prediction.weighted import centred_ranks, score_classes, score_numbers


def predictions_of(values, means=None, **rest):
    """Put predictions, (repeats, N) or (repeats, N, classes), into their record."""
    if means is None:
        means = np.full(values.shape, 1 / values.shape[2] if values.ndim == 3 else 0.0)
    given = {"unlabelled": np.full(values.shape[1:], np.nan), "null_scores": np.empty(0)}
    given |= {"null_statistic": np.nan, **rest}
    return Predictions("fc", out_of_fold=values, training_mean=means, **given)


def numbers(seed=0, n=80, repeats=3, digits=0):
    """Return ages, two of them missing, and predictions with ties and gaps."""
    rng = np.random.default_rng(seed)
    ages = np.round(rng.normal(40, 10, n), digits)
    guessed = np.round(20 + 0.5 * ages + rng.normal(0, 6, (repeats, n)), digits)
    ages[:2] = np.nan
    guessed[:, :5] = np.nan
    guessed[repeats // 2, 7] = np.nan
    return Target("age", REGRESSION, ages, units="years"), predictions_of(guessed)


def classes(n_classes=2, seed=0, n=120, repeats=3):
    """Return unequal classes, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, n_classes + 1) ** 2 / (np.arange(1, n_classes + 1) ** 2).sum()
    labels = rng.choice(n_classes, n, p=shares).astype(float)
    raw = rng.normal(0, 1, (repeats, n, n_classes)) + np.log(shares)
    raw += 0.9 * (labels[:, None] == np.arange(n_classes))
    probabilities = np.exp(raw) / np.exp(raw).sum(axis=2, keepdims=True)
    probabilities = np.round(probabilities, 2) * 0.98 + 0.02 / n_classes  # with ties
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    probabilities[:, :4] = np.nan
    labels[4] = np.nan
    names = tuple("abcde"[:n_classes])
    means = np.broadcast_to(shares, probabilities.shape)
    return Target("group", CLASSIFICATION, labels, names), predictions_of(probabilities, means)


def mean_of_repeats(target, predictions, measure):
    """Average over repeats what scikit-learn makes of the units that are scored."""
    found = []
    for guessed in predictions.out_of_fold:
        known = np.isfinite(guessed.reshape(len(guessed), -1)).all(axis=1) & target.labelled
        found.append(measure(target.values[known], guessed[known]))
    return np.mean(found)


NUMBERS = {
    "mae": metrics.mean_absolute_error,
    "rmse": metrics.root_mean_squared_error,
    "r2": metrics.r2_score,
    "pearson": lambda y, x: scipy.stats.pearsonr(y, x).statistic,
    "spearman": lambda y, x: scipy.stats.spearmanr(y, x).statistic,
}


@pytest.mark.parametrize("digits", [0, 5])
def test_scores_of_numbers_are_those_of_scikit_learn(digits):
    target, predictions = numbers(digits=digits)
    found = score(target, predictions)
    assert list(found) == list(NUMBERS) == list(metrics_of(target))
    for name, measure in NUMBERS.items():
        expected = mean_of_repeats(target, predictions, measure)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)


def slope_of(positive, probability):
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    return fit.fit(logit(probability)[:, None], positive).coef_[0, 0]


def intercept_of(positive, probability):
    """Find what makes as many expected as there are."""
    excess = lambda a: expit(a + logit(probability)).sum() - positive.sum()  # noqa: E731
    return brentq(excess, -10, 10, xtol=1e-12)


def explicit_scores(target, predictions):
    """Score classes by scikit-learn's functions."""
    names = range(len(target.classes))
    shares = predictions.training_mean[0, 0]
    by_share = lambda p: np.argmax(p / shares, axis=1)  # noqa: E731
    two = len(names) == 2
    return {
        "auc": lambda y, p: (
            metrics.roc_auc_score(y, p[:, 1])
            if two
            else metrics.roc_auc_score(y, p, multi_class="ovr", average="macro")
        ),
        "balanced_accuracy": lambda y, p: metrics.balanced_accuracy_score(y, by_share(p)),
        "accuracy": lambda y, p: metrics.accuracy_score(y, by_share(p)),
        "f1": lambda y, p: metrics.f1_score(y, by_share(p), average="macro"),
        "brier": lambda y, p: (
            metrics.brier_score_loss(y, p[:, 1])
            if two
            else ((p - (y[:, None] == np.array(names))) ** 2).sum(axis=1).mean()
        ),
        "log_loss": lambda y, p: metrics.log_loss(y, p),
        "calibration_slope": lambda y, p: np.mean(
            [slope_of(y == c, p[:, c]) for c in ([1] if two else names)]
        ),
        "calibration_intercept": lambda y, p: intercept_of(y == 1, p[:, 1]),
    }


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_scores_of_classes_are_those_of_scikit_learn(n_classes):
    target, predictions = classes(n_classes)
    found = score(target, predictions)
    assert list(found) == list(metrics_of(target))
    assert ("calibration_intercept" in found) == (n_classes == 2)
    for name, measure in explicit_scores(target, predictions).items():
        if name in found:
            expected = mean_of_repeats(target, predictions, measure)
            tolerance = 1e-5 if name == "calibration_slope" else 1e-10
            np.testing.assert_allclose(found[name], expected, rtol=tolerance, err_msg=name)


def test_metrics_say_what_they_are():
    for target in (numbers()[0], classes()[0], classes(3)[0]):
        assert set(metrics_of(target)) <= set(METRICS)
        assert primary_metric(target) in metrics_of(target)
    assert math.isnan(METRICS["mae"].chance) and METRICS["auc"].chance == 0.5
    assert METRICS["mae"].better == "lower" and METRICS["auc"].better == "higher"


counts = st.lists(st.integers(0, 3), min_size=24, max_size=24).filter(lambda c: sum(c) > 2)


@settings(max_examples=40, deadline=None)
@given(how_often=counts, seed=st.integers(0, 99), digits=st.integers(0, 2))
def test_weights_stand_for_repeated_units(how_often, seed, digits):
    rng = np.random.default_rng(seed)
    labels = np.round(rng.normal(0, 2, 24), digits)
    guessed = np.round(labels + rng.normal(0, 2, (2, 24)), digits)
    weights = np.array(how_often, float)
    both = np.stack([weights, np.ones(24), weights], axis=1)
    found = score_numbers(labels, guessed, both)
    repeated = np.repeat(np.arange(24), how_often)
    expected = score_numbers(labels[repeated], guessed[:, repeated], np.ones((len(repeated), 1)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][:, [0]], value, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found[name][:, 0], found[name][:, 2])
    ranks = centred_ranks(guessed[0], both)[:, 0]
    reference = scipy.stats.rankdata(guessed[0, repeated])
    np.testing.assert_allclose(ranks[repeated], reference - reference.mean())


@settings(max_examples=40, deadline=None)
@given(how_often=counts, seed=st.integers(0, 99), n_classes=st.integers(2, 3))
def test_weights_stand_for_repeated_members_of_classes(how_often, seed, n_classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=24)
    probabilities = np.round(rng.dirichlet(np.ones(n_classes), (2, 24)), 1)
    guessed = probabilities.argmax(axis=2)
    weights = np.stack([np.array(how_often, float), np.ones(24)], axis=1)
    found = score_classes(labels, guessed, probabilities, weights)
    repeated = np.repeat(np.arange(24), how_often)
    ones = np.ones((len(repeated), 1))
    expected = score_classes(
        labels[repeated], guessed[:, repeated], probabilities[:, repeated], ones
    )
    for name in ("auc", "balanced_accuracy", "accuracy", "f1", "brier", "log_loss"):
        np.testing.assert_allclose(
            found[name][:, [0]], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


def by_rows(name):
    """Return a score of many resamples at once, written with means over the last axis."""
    centred = lambda x: x - x.mean(axis=-1, keepdims=True)  # noqa: E731
    ranks = lambda x: centred(scipy.stats.rankdata(x, axis=-1))  # noqa: E731

    def correlation(y, x, axis):
        y, x = ranks(y), ranks(x)
        return (x * y).mean(axis) / np.sqrt((x**2).mean(axis) * (y**2).mean(axis))

    return {
        "mae": lambda y, x, axis: np.abs(y - x).mean(axis),
        "r2": lambda y, x, axis: 1 - ((y - x) ** 2).mean(axis) / (centred(y) ** 2).mean(axis),
        "spearman": correlation,
    }[name]


@pytest.mark.parametrize("name", ["mae", "r2", "spearman"])
def test_intervals_are_those_of_scipys_bootstrap(name):
    target, predictions = numbers(repeats=1)
    groups = [str(i) for i in range(len(target.values))]
    found = bootstrap_intervals(
        target, predictions, groups, 4000, np.random.default_rng(0), level=0.9
    )
    known = np.isfinite(predictions.out_of_fold[0]) & target.labelled
    expected = scipy.stats.bootstrap(
        (target.values[known], predictions.out_of_fold[0, known]),
        by_rows(name),
        n_resamples=4000,
        paired=True,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    width = np.ptp(expected.confidence_interval)
    np.testing.assert_allclose(found[name], expected.confidence_interval, atol=0.06 * width)


def test_members_of_a_group_are_drawn_together():
    target, predictions = numbers(repeats=2)
    names = [f"g{i}" for i in range(len(target.values))]
    twice = Target("age", REGRESSION, np.tile(target.values, 2))
    both = predictions_of(np.tile(predictions.out_of_fold, (1, 2)))
    alone = bootstrap_intervals(target, predictions, names, 400, np.random.default_rng(3))
    together = bootstrap_intervals(twice, both, names * 2, 400, np.random.default_rng(3))
    for name in alone:  # twins tell nothing new
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)
    apart = [f"g{i}" for i in range(2 * len(target.values))]
    narrower = bootstrap_intervals(twice, both, apart, 400, np.random.default_rng(3))
    assert np.ptp(narrower["mae"]) < 0.85 * np.ptp(alone["mae"])


def test_intervals_of_calibration_are_close_to_those_of_refits():
    target, predictions = classes(2, n=200, repeats=1)
    groups = [str(i) for i in range(200)]
    draws = scores._resample(target, predictions, np.array(groups), 150, np.random.default_rng(5))
    known = scores.scored_units(target, predictions)[0]
    positive, probability = target.values[known] == 1, predictions.out_of_fold[0, known, 1]
    exact = {"calibration_slope": [], "calibration_intercept": []}
    for weights in draws[known].T.astype(int):
        rows = np.repeat(np.arange(len(positive)), weights)
        exact["calibration_slope"].append(slope_of(positive[rows], probability[rows]))
        exact["calibration_intercept"].append(intercept_of(positive[rows], probability[rows]))
    found = bootstrap_intervals(target, predictions, groups, 150, np.random.default_rng(5))
    for name, values in exact.items():
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(found[name], expected, atol=0.2 * np.ptp(expected))


def test_every_resample_has_all_classes():
    labels = np.array([0.0] * 28 + [1.0] * 2 + [np.nan] * 3)
    target = Target("group", CLASSIFICATION, labels, ("a", "b"))
    rng = np.random.default_rng(0)
    second = rng.uniform(0.1, 0.9, (1, 33))
    predictions = predictions_of(np.stack([1 - second, second], axis=2))
    groups = np.array([str(i) for i in range(33)])
    weights = scores._resample(target, predictions, groups, 500, rng)
    assert weights.shape == (33, 500)
    assert (weights[28:30].sum(axis=0) > 0).all()
    np.testing.assert_array_equal(weights.sum(axis=0), 30)
    assert np.isfinite(bootstrap_intervals(target, predictions, groups, 50, rng)["auc"]).all()


def test_classes_that_hardly_any_resample_has_are_waited_for_in_vain(monkeypatch):
    monkeypatch.setattr(scores, "_REDRAWS", 0)
    labels = np.array([0.0] * 29 + [1.0])
    target = Target("group", CLASSIFICATION, labels, ("a", "b"))
    second = np.linspace(0.1, 0.9, 30)
    predictions = predictions_of(np.stack([1 - second, second], axis=1)[None])
    groups = np.array([str(i) for i in range(30)])
    weights = scores._resample(target, predictions, groups, 400, np.random.default_rng(0))
    assert (weights[29] > 0).all()
    assert 200 < weights.shape[1] < 300  # 1 - 1 / e of them


@pytest.mark.parametrize("n, groups", [(0, "abc"), (100, "aaa")])
def test_without_resamples_or_groups_there_is_no_interval(n, groups):
    target = Target("age", REGRESSION, np.arange(9.0))
    predictions = predictions_of(np.arange(9.0)[None] ** 1.1)
    found = bootstrap_intervals(target, predictions, list(groups * 3), n, np.random.default_rng(0))
    assert np.isnan(list(found.values())).all()


def test_p_value_counts_the_true_labels_themselves():
    null = np.array([0.1, 0.2, 0.3, 0.4])
    assert permutation_p(0.35, null) == 2 / 5
    assert permutation_p(0.3, null) == 3 / 5
    assert permutation_p(9.0, null) == 1 / 5
    assert permutation_p(0.3, null.astype(np.float32)) == 3 / 5  # rounding is no difference
    assert permutation_p(0.35, np.array([0.1, np.nan])) == 2 / 3
    assert math.isnan(permutation_p(np.nan, null)) and math.isnan(permutation_p(1.0, null[:0]))


def test_the_rule_for_classes_is_the_best_for_balanced_accuracy():
    rng = np.random.default_rng(0)
    labels = (rng.random(5_000) < 0.1).astype(int)
    signal = rng.normal(1.5 * labels, 1)
    second = expit(1.5 * signal - 1.125 + logit(0.1))  # the true posterior
    probabilities = np.stack([1 - second, second], axis=1)
    found = predicted_classes(probabilities, np.array([0.9, 0.1]))
    balanced = metrics.balanced_accuracy_score(labels, found)
    thresholds = np.quantile(second, np.linspace(0.02, 0.98, 33))
    best = max(metrics.balanced_accuracy_score(labels, second > t) for t in thresholds)
    assert balanced == pytest.approx(best, abs=0.02)
    assert balanced > metrics.balanced_accuracy_score(labels, second > 0.5) + 0.1


def test_ties_and_gaps_of_classes():
    shares = np.array([0.2, 0.5, 0.3])
    probabilities = np.array([[0.2, 0.5, 0.3], [0.25, 0.45, 0.3], [np.nan] * 3, [0.0, 0.4, 0.6]])
    np.testing.assert_array_equal(predicted_classes(probabilities, shares), [1, 0, -1, 2])
    untrained = np.array([0.0, 0.5, 0.5])
    assert predicted_classes(np.array([[0.4, 0.35, 0.25]]), untrained) == [1]


def test_averages_and_residuals():
    target, predictions = numbers()
    means = averaged(predictions)
    np.testing.assert_allclose(means[8:], predictions.out_of_fold[:, 8:].mean(axis=0))
    assert means[7] == pytest.approx(predictions.out_of_fold[[0, 2], 7].mean())
    assert np.isnan(means[:5]).all()
    np.testing.assert_array_equal(residuals(target, predictions), target.values - means)
    target, predictions = classes(3)
    labels = target.values[5:].astype(int)
    off = residuals(target, predictions)
    of_true = averaged(predictions)[5:][np.arange(len(labels)), labels]
    np.testing.assert_allclose(off[5:], 1 - of_true)
    assert np.isnan(off[:5]).all()
    assert averaged_training_mean(predictions).shape == averaged(predictions).shape


def test_the_mean_of_training_labels_knows_nothing():
    rng = np.random.default_rng(0)
    folds = np.arange(60) % 5
    ages = rng.normal(40, 10, 60)
    means = np.array([[ages[folds != fold].mean() for fold in folds]])
    target = Target("age", REGRESSION, ages)
    found = assess(target, predictions_of(means, means), [str(i) for i in range(60)], 50, rng)
    assert math.isnan(found.scores["pearson"]) and np.isnan(found.intervals["spearman"]).all()
    assert found.scores["r2"] < 0 and found.scores["mae"] > 0
    labels = (rng.random(60) < 0.4).astype(float)
    second = np.array([[labels[folds != fold].mean() for fold in folds]])
    target = Target("sex", CLASSIFICATION, labels, ("F", "M"))
    shares = np.stack([1 - second, second], axis=2)
    found = assess(target, predictions_of(shares, shares), [str(i) for i in range(60)], 50, rng)
    assert found.scores["auc"] == 0.5 and found.intervals["auc"] == (0.5, 0.5)
    assert metrics.roc_auc_score(labels, second[0]) < 0.5  # says only whom it leaves out
    assert found.scores["balanced_accuracy"] == 0.5
    assert found.scores["accuracy"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))


def test_what_is_undefined_is_nan():
    constant = predictions_of(np.full((2, 20), 3.0), np.full((2, 20), 7.0))
    found = score(Target("age", REGRESSION, np.arange(20.0)), constant)
    assert math.isnan(found["pearson"]) and math.isnan(found["spearman"])
    assert found["mae"] == pytest.approx(np.abs(np.arange(20) - 3).mean())
    same = score(Target("age", REGRESSION, np.full(20, 0.1)), predictions_of(np.random.rand(2, 20)))
    assert math.isnan(same["r2"]) and math.isfinite(same["rmse"])
    one = Target("sex", CLASSIFICATION, np.zeros(20), ("F", "M"))
    second = np.linspace(0.1, 0.8, 20)
    found = score(one, predictions_of(np.stack([1 - second, second], axis=1)[None]))
    assert math.isnan(found["auc"]) and math.isnan(found["calibration_slope"])
    told_apart = Target("sex", CLASSIFICATION, (second > 0.5).astype(float), ("F", "M"))
    found = score(told_apart, predictions_of(np.stack([1 - second, second], axis=1)[None]))
    assert found["auc"] == 1 and math.isnan(found["calibration_slope"])
    nobody = score(one, predictions_of(np.full((2, 20, 2), np.nan)))
    assert np.isnan(list(nobody.values())).all()


def test_classes_without_members_are_left_out_of_averages():
    target, predictions = classes(3)
    labels = np.where(target.values == 0, np.nan, target.values)
    few = Target("group", CLASSIFICATION, labels, target.classes)
    found = score(few, predictions)
    rows = few.labelled & np.isfinite(predictions.out_of_fold[0, :, 0])
    guess = predicted_classes(predictions.out_of_fold[0], predictions.training_mean[0])[rows]
    recalls = metrics.recall_score(few.values[rows], guess, labels=[1, 2], average=None)
    first = predictions_of(predictions.out_of_fold[:1], predictions.training_mean[:1])
    one_repeat = score(few, first)
    assert one_repeat["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert math.isfinite(found["auc"])


def test_all_of_a_candidate_together():
    target, predictions = numbers()
    rest = {"null_statistic": 0.4, "null_scores": np.linspace(-0.5, 0.3, 99)}
    predictions = predictions_of(predictions.out_of_fold, **rest)
    found = assess(target, predictions, [str(i) for i in range(80)], 100, np.random.default_rng(0))
    assert (found.candidate, found.n_units, found.p) == ("fc", 75, 0.01)
    assert found.scores == score(target, predictions)
    for name, (low, high) in found.intervals.items():
        assert low < found.scores[name] < high


def aged(seed=0, n=90, slope=0.6, repeats=2):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(20, 80, n)
    guessed = 50 + slope * (ages - 50) + rng.normal(0, 4, (repeats, n))
    assignment = np.array([rng.permutation(n) % 5 for _ in range(repeats)])
    unlabelled = np.full(n, np.nan)
    ages[:3], guessed[:, :3], assignment[:, :3], unlabelled[:3] = np.nan, np.nan, -1, 44.0
    guessed[:, 3] = np.nan
    target = Target("age", REGRESSION, ages)
    return target, predictions_of(guessed, unlabelled=unlabelled), Folds(assignment, 5)


def test_bias_is_corrected_by_the_line_of_other_folds():
    target, predictions, folds = aged()
    found = correct_bias(target, predictions, folds)
    expected = np.full(predictions.out_of_fold.shape, np.nan)
    for repeat, (guessed, assignment) in enumerate(
        zip(predictions.out_of_fold, folds.assignment, strict=True)
    ):
        known = np.isfinite(guessed) & target.labelled
        for fold in range(5):
            own, others = known & (assignment == fold), known & (assignment != fold)
            line = LinearRegression().fit(target.values[others, None], guessed[others])
            expected[repeat, own] = (guessed[own] - line.intercept_) / line.coef_[0]
    np.testing.assert_allclose(found.values[4:], expected.mean(axis=0)[4:])
    everyone = LinearRegression().fit(
        target.values[4:, None], predictions.out_of_fold[:, 4:].mean(axis=0)
    )
    assert found.slope == pytest.approx(everyone.coef_[0])
    np.testing.assert_allclose(found.values[:3], (44 - everyone.intercept_) / found.slope)
    assert math.isnan(found.values[3]) and found.reason == ""
    off = found.values[4:] - target.values[4:]
    raw = residuals(target, predictions)[4:]
    assert abs(np.corrcoef(off, target.values[4:])[0, 1]) < 0.2
    assert abs(np.corrcoef(raw, target.values[4:])[0, 1]) > 0.8


def test_nobodys_own_label_corrects_them():
    target, predictions, folds = aged(repeats=1)
    before = correct_bias(target, predictions, folds).values
    ages = target.values.copy()
    own = folds.assignment[0] == 2
    ages[own] = ages[own][::-1] + 5
    after = correct_bias(Target("age", REGRESSION, ages), predictions, folds).values
    np.testing.assert_array_equal(after[own], before[own])
    others = ~own & np.isfinite(before)
    assert (after[others] != before[others]).all()


@pytest.mark.parametrize("slope", [0.0, -0.5, 0.05])
def test_what_does_not_follow_age_is_not_corrected(slope):
    target, predictions, folds = aged(slope=slope)
    found = correct_bias(target, predictions, folds)
    assert np.isnan(found.values).all()
    assert f"at least {LEAST_SLOPE:g}" in found.reason


def test_too_few_for_a_line_are_not_corrected():
    target, predictions, folds = aged(n=12)
    found = correct_bias(target, predictions, folds)
    assert np.isnan(found.values).all() and "fewer than 10 units" in found.reason
