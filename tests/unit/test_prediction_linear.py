import numpy as np
import pytest
from explicit_pipelines import explicit_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score

from bsym_bids.prediction import logistic, ridge
from bsym_bids.prediction.folds import make_folds
from bsym_bids.prediction.kernels import FeatureKernel, SumKernel
from bsym_bids.prediction.linear import area_under_curve, predict_linear, predict_mean
from bsym_bids.prediction.logistic import nested_logistic
from bsym_bids.prediction.nuisance import Confounds, no_confounds
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Folds, Target
from bsym_bids.prediction.ridge import Regression, nested_ridges

N, FEATURES = 60, 150


def nested_ridge(regression, labels, **options):
    """Regress a single set of labels."""
    return nested_ridges(regression, [labels], **options)[0]


def _data(seed=0, gaps=False):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((N, FEATURES))
    confounds = rng.standard_normal((N, 2))
    features += confounds @ rng.standard_normal((2, FEATURES))
    labels = features[:, :5].sum(axis=1) + confounds[:, 0] + rng.standard_normal(N) + 50
    if gaps:
        features[rng.random(features.shape) < 0.02] = np.nan
        features[:, 7] = np.where(np.arange(N) < 3, features[:, 7], np.nan)
    return features, confounds, labels


def _regression(features, confounds, target, penalties, n_folds=5, repeats=2):
    folds = make_folds(
        target, [str(i) for i in range(N)], n_folds=n_folds, n_repeats=repeats, seed=3
    )
    names = tuple(f"c{i}" for i in range(confounds.shape[1]))
    return Regression(FeatureKernel(features), Confounds(names, confounds), folds, penalties)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("width", [0, 2])
def test_ridge_equals_the_explicit_pipeline(gaps, width):
    features, confounds, labels = _data(gaps=gaps)
    confounds = confounds[:, :width]
    regression = _regression(
        features, confounds, Target("age", REGRESSION, labels), ridge.PENALTIES
    )
    found = nested_ridge(regression, labels[:, None])
    for repeat, folds in enumerate(regression.folds.assignment):
        expected, chosen = explicit_predictions(
            features, confounds, labels, folds, ridge.PENALTIES, regression.kernel.scale
        )
        np.testing.assert_allclose(found.values[repeat, :, 0], expected, atol=1e-8)
        for fold, penalty in chosen.items():
            assert found.penalties[repeat, fold, 0] == pytest.approx(penalty)


def test_a_feature_that_only_the_tested_fold_has_changes_nothing():
    features, confounds, labels = _data()
    target = Target("age", REGRESSION, labels)
    without = _regression(features, confounds, target, ridge.PENALTIES, repeats=1)
    tested = without.folds.assignment[0] == 0
    known = np.where(tested, features[:, 0] * 10, np.nan)
    regression = _regression(
        np.column_stack([features, known]), confounds, target, ridge.PENALTIES, repeats=1
    )
    found, expected = (nested_ridge(one, labels[:, None]) for one in (regression, without))
    np.testing.assert_allclose(found.values[0, tested], expected.values[0, tested], atol=1e-9)


def test_confounds_in_their_own_units_are_regressed_out():
    # Motion in millimetres and a volume in cubic millimetres: 7 orders of magnitude apart.
    features, confounds, labels = _data()
    raw = confounds * [0.05, 1e5] + [0.15, 1.2e6]
    target = Target("age", REGRESSION, labels)
    regression = _regression(features, raw, target, ridge.PENALTIES, repeats=1)
    found = nested_ridge(regression, labels[:, None])
    expected, _ = explicit_predictions(
        features,
        raw,
        labels,
        regression.folds.assignment[0],
        ridge.PENALTIES,
        regression.kernel.scale,
    )
    np.testing.assert_allclose(found.values[0, :, 0], expected, atol=1e-8)


def test_confounds_that_one_fold_has_alone_are_left_out():
    # Levels of a category in one fold each: without them in training, nothing is known of them.
    features, confounds, labels = _data()
    target = Target("age", REGRESSION, labels)
    regression = _regression(features, confounds, target, ridge.PENALTIES)
    folds = regression.folds
    levels = np.zeros((N, 2))
    levels[np.flatnonzero(folds.assignment[0] == 1)[0], 0] = 1
    levels[folds.assignment[1] == 2, 1] = 1
    named = Confounds(
        ("c0", "sex=O", "site=B", "c1"), np.hstack([confounds[:, :1], levels, confounds[:, 1:]])
    )
    permuted = np.random.default_rng(0).permutation(labels)[:, None]
    found, fit = predict_linear("fc", regression.kernel, target, folds, named, permuted)
    assert fit.confounds.names == ("c0", "c1")
    expected, _ = predict_linear(
        "fc", regression.kernel, target, folds, regression.confounds, permuted
    )
    np.testing.assert_allclose(found.out_of_fold, expected.out_of_fold, atol=1e-9)
    np.testing.assert_allclose(found.null_scores, expected.null_scores, atol=1e-6)


def test_designs_of_other_columns_are_other_designs():
    values = np.zeros((8, 2))
    values[0, 0] = values[7, 1] = 1
    confounds = Confounds(("a", "b"), values)
    first, last = np.arange(8) < 4, np.arange(8) >= 4
    assert confounds.design(first).shape == confounds.design(last).shape == (8, 2)
    assert confounds.key(first) != confounds.key(last)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_equals_the_explicit_pipeline(n_classes):
    features, confounds, scores = _data()
    edges = np.quantile(scores, np.arange(1, n_classes) / n_classes)
    classes = np.digitize(scores, edges).astype(float)
    target = Target("group", CLASSIFICATION, classes, tuple("abc"[:n_classes]))
    regression = _regression(features, confounds, target, logistic.PENALTIES, 3, 1)
    found = nested_logistic(regression, classes, n_classes)
    expected, chosen = explicit_predictions(
        features,
        confounds,
        classes,
        regression.folds.assignment[0],
        logistic.PENALTIES,
        regression.kernel.scale,
        n_classes,
    )
    np.testing.assert_allclose(found.values[0], expected, atol=1e-6)
    for fold, penalty in chosen.items():
        assert found.penalties[0, fold, 0] == pytest.approx(penalty)


def test_many_columns_are_regressed_as_each_alone():
    features, confounds, labels = _data()
    regression = _regression(
        features, confounds, Target("age", REGRESSION, labels), ridge.PENALTIES
    )
    rng = np.random.default_rng(1)
    many = np.column_stack([labels, rng.permutation(labels), rng.standard_normal(N)])
    together = nested_ridge(regression, many)
    for column in range(3):
        alone = nested_ridge(regression, many[:, [column]])
        np.testing.assert_allclose(together.values[:, :, [column]], alone.values, atol=1e-9)
        np.testing.assert_array_equal(together.penalties[:, :, [column]], alone.penalties)


def test_single_precision_is_near():
    features, confounds, labels = _data()
    target = Target("age", REGRESSION, labels)
    regression = _regression(features, confounds, target, ridge.PENALTIES)
    centred = (labels - labels.mean())[:, None]
    fine = nested_ridge(regression, centred).values
    rough = nested_ridge(regression, centred.astype(np.float32)).values
    assert np.abs(fine - rough).max() < 1e-3 * centred.std()


def test_indicators_share_their_penalty():
    features, confounds, labels = _data()
    regression = _regression(
        features, confounds, Target("age", REGRESSION, labels), ridge.PENALTIES
    )
    pair = np.column_stack([1e4 * labels, np.random.default_rng(2).standard_normal(N)])
    found = nested_ridge(regression, pair, outputs=2)
    assert found.penalties.shape == (2, 5, 1)
    # A column that nothing predicts and a predictable one of larger size: the latter decides.
    alone = nested_ridge(regression, pair[:, :1])
    np.testing.assert_array_equal(found.penalties, alone.penalties)


def test_units_without_features_or_labels_take_no_part():
    features, confounds, labels = _data()
    features[:4] = np.nan
    labels[10:15] = np.nan
    target = Target("age", REGRESSION, labels)
    regression = _regression(features, confounds, target, ridge.PENALTIES)
    predictions, fit = predict_linear(
        "fc",
        regression.kernel,
        target,
        regression.folds,
        regression.confounds,
        np.empty((N, 0)),
    )
    used = np.r_[4:10, 15:N]
    assert np.isfinite(predictions.out_of_fold[:, used]).all()
    assert np.isnan(np.delete(predictions.out_of_fold, used, axis=1)).all()
    np.testing.assert_array_equal(
        np.flatnonzero(np.isfinite(predictions.unlabelled)), range(10, 15)
    )
    np.testing.assert_array_equal(np.flatnonzero(fit.training), used)


def test_the_unlabelled_are_predicted_by_all_others():
    features, confounds, labels = _data()
    known = labels.copy()
    known[:8] = np.nan
    target = Target("age", REGRESSION, known)
    regression = _regression(features, confounds[:, :0], target, ridge.PENALTIES)
    predictions, fit = predict_linear(
        "fc", regression.kernel, target, regression.folds, no_confounds(N), np.empty((N, 0))
    )
    absolute = fit.penalty * regression.kernel.scale(target.labelled)
    expected = Ridge(absolute).fit(features[8:], labels[8:]).predict(features[:8])
    np.testing.assert_allclose(predictions.unlabelled[:8], expected, atol=1e-8)


def test_unlabelled_classes_are_predicted_by_all_others():
    features, _, scores = _data()
    classes = (scores > np.median(scores)).astype(float)
    known = classes.copy()
    known[:8] = np.nan
    target = Target("sex", CLASSIFICATION, known, ("F", "M"))
    regression = _regression(features, np.empty((N, 0)), target, logistic.PENALTIES)
    predictions, fit = predict_linear(
        "fc", regression.kernel, target, regression.folds, no_confounds(N), np.empty((N, 0))
    )
    absolute = fit.penalty * regression.kernel.scale(target.labelled)
    reference = LogisticRegression(C=1 / absolute, tol=1e-10, max_iter=100_000)
    expected = reference.fit(features[8:], classes[8:]).predict_proba(features[:8])
    np.testing.assert_allclose(predictions.unlabelled[:8], expected, atol=1e-6)


def test_the_permutation_statistic_is_that_of_the_predictions():
    features, confounds, labels = _data()
    target = Target("age", REGRESSION, labels)
    regression = _regression(features, confounds, target, ridge.PENALTIES)
    permuted = np.column_stack([labels, labels[::-1]])
    predictions, _ = predict_linear(
        "fc", regression.kernel, target, regression.folds, regression.confounds, permuted
    )
    scores = [r2_score(labels, values) for values in predictions.out_of_fold]
    assert predictions.null_statistic == pytest.approx(np.mean(scores))
    assert predictions.null_scores[0] == pytest.approx(np.mean(scores), abs=1e-4)
    other = nested_ridge(regression, permuted[:, 1:]).values[:, :, 0]
    scores = [r2_score(labels[::-1], values) for values in other]
    assert predictions.null_scores[1] == pytest.approx(np.mean(scores), abs=1e-4)


def test_rounding_orders_nothing():
    # Features that are the same for everyone: all predictions are the training mean.
    rng = np.random.default_rng(0)
    positive = rng.random((40, 3)) < 0.5
    scores = 0.5 + 1e-7 * (positive + rng.standard_normal((40, 3)))
    np.testing.assert_allclose(area_under_curve(scores, positive), 0.5)


def test_several_sets_are_brought_to_one_scale():
    features, _, _ = _data()
    other = 1000 * np.random.default_rng(5).standard_normal((N, 30))
    training = np.arange(N) < 40
    parts = FeatureKernel(features), FeatureKernel(other)
    both = SumKernel(parts)
    scales = [part.scale(training) for part in parts]
    expected = sum(part.gram(training) / scale for part, scale in zip(parts, scales, strict=True))
    np.testing.assert_allclose(both.gram(training), expected)
    for part, scale in zip(parts, scales, strict=True):
        used = part.gram(training)[:40, :40]
        spread = np.trace(used) / 40 - used.mean()
        assert 2**-0.5 <= spread / scale <= 2**0.5
        assert np.log2(scale) == int(np.log2(scale))


def test_a_test_unit_never_changes_what_is_learned_from_training():
    features, _, _ = _data(gaps=True)
    kernel, training = FeatureKernel(features), np.arange(N) < 40
    changed = features.copy()
    changed[40:] = 100 * np.random.default_rng(9).standard_normal((N - 40, FEATURES))
    other = FeatureKernel(changed, kernel.present)
    centre = np.eye(40) - 1 / 40
    ours = centre @ kernel.gram(training)[:40, :40] @ centre
    theirs = centre @ other.gram(training)[:40, :40] @ centre
    np.testing.assert_allclose(ours, theirs, atol=1e-8)
    assert kernel.scale(training) == other.scale(training)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), ties=st.booleans())
def test_area_under_curve_is_that_of_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((20, 3))
    scores = scores.round(0) if ties else scores
    positive = rng.random((20, 3)) < 0.5
    positive[0], positive[1] = True, False
    expected = [roc_auc_score(p, s) for p, s in zip(positive.T, scores.T, strict=True)]
    np.testing.assert_allclose(area_under_curve(scores, positive), expected)


def test_the_mean_is_that_of_the_training_folds():
    target = Target("age", REGRESSION, np.array([1.0, 2, 3, 4, np.nan]))
    folds = Folds(np.array([[0, 0, 1, 1, -1]]), 2)
    predictions = predict_mean(target, folds)
    np.testing.assert_array_equal(predictions.out_of_fold[0], [3.5, 3.5, 1.5, 1.5, np.nan])
    np.testing.assert_array_equal(predictions.unlabelled, [np.nan] * 4 + [2.5])


def test_the_shares_of_classes_are_those_of_the_training_folds():
    target = Target("sex", CLASSIFICATION, np.array([0.0, 1, 1, 1, np.nan]), ("F", "M"))
    folds = Folds(np.array([[0, 0, 1, 1, -1]]), 2)
    predictions = predict_mean(target, folds)
    np.testing.assert_array_equal(predictions.out_of_fold[0, 0], [0, 1])
    np.testing.assert_array_equal(predictions.out_of_fold[0, 2], [0.5, 0.5])
    np.testing.assert_array_equal(predictions.unlabelled[4], [0.25, 0.75])
