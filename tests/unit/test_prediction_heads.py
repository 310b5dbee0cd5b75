from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, CannotCreateOutputError, InputMissingError
from bsym_bids.prediction import heads as heads_module
from bsym_bids.prediction.evaluation import Cohort, Options, evaluate
from bsym_bids.prediction.exchange import exchange_of
from bsym_bids.prediction.heads import HeadFile, heads_of, read_heads, write_heads
from bsym_bids.prediction.kernels import FeatureKernel, HarmonizedKernel
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target, Unit

N = 40


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    confounds = rng.standard_normal((N, 2))
    features = {
        "fc": rng.standard_normal((N, 70)) + confounds @ rng.standard_normal((2, 70)),
        "sc": 5 * rng.standard_normal((N, 30)),
    }
    labels = features["fc"][:, 0] + features["sc"][:, 0] + confounds[:, 0] + 40
    labels[-8:] = np.nan
    return features, confounds, labels


def _evaluated(features, confounds, target):
    cohort = Cohort(
        units=tuple(Unit(str(i)) for i in range(N)),
        kernels={key: FeatureKernel(values) for key, values in features.items()},
        confounds=Confounds(("fd", "age"), confounds),
        groups=tuple(map(str, range(N))),
        exchange=exchange_of(tuple(map(str, range(N)))),
    )
    return evaluate(target, cohort, Options(4, 1, 0)), cohort


@pytest.mark.parametrize("gaps", [False, True])
def test_heads_predict_as_the_fits_that_they_keep(data, gaps):
    features, confounds, labels = data
    if gaps:
        features["fc"][3, 5] = features["fc"][-1, 9] = np.nan
        confounds[4, 0] = confounds[-2, 1] = np.nan
    evaluation, cohort = _evaluated(features, confounds, Target("age", REGRESSION, labels))
    heads = heads_of(evaluation, cohort, features.__getitem__)
    assert set(heads) == {"fc", "sc", "fc_sc"}
    for key, head in heads.items():
        expected = evaluation.predictions[key].unlabelled[-8:]
        np.testing.assert_allclose(head.raw(features, confounds)[-8:, 0], expected, atol=1e-4)


def test_a_head_is_ridge_on_features_without_their_confounds(data):
    features, confounds, labels = data
    target = Target("age", REGRESSION, labels)
    evaluation, cohort = _evaluated(features, confounds, target)
    head = heads_of(evaluation, cohort, features.__getitem__)["fc"]
    known = target.labelled
    penalty = evaluation.fits["fc"].penalty * cohort.kernels["fc"].scale(known)
    taken = LinearRegression().fit(confounds[known], features["fc"][known])
    residual = features["fc"] - taken.predict(confounds)
    expected = Ridge(penalty).fit(residual[known], labels[known]).predict(residual)
    np.testing.assert_allclose(head.raw(features, confounds)[:, 0], expected, atol=1e-4)


def test_classes_have_probabilities(data):
    features, confounds, labels = data
    classes = np.where(np.isfinite(labels), labels > np.nanmedian(labels), np.nan)
    target = Target("sex", CLASSIFICATION, classes, ("F", "M"))
    evaluation, cohort = _evaluated(features, confounds, target)
    file = HeadFile(
        heads_of(evaluation, cohort, features.__getitem__),
        {"Target": "sex", "TaskType": CLASSIFICATION},
    )
    predicted = file.predict("fc", features, confounds)
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    expected = evaluation.predictions["fc"].unlabelled[-8:]
    np.testing.assert_allclose(predicted[-8:], expected, atol=1e-4)
    np.testing.assert_allclose(file.heads["fc"].shares, 0.5, atol=0.02)


def test_a_file_gives_back_what_was_written(data, tmp_path):
    features, confounds, labels = data
    evaluation, cohort = _evaluated(features, confounds, Target("age", REGRESSION, labels))
    heads = heads_of(evaluation, cohort, features.__getitem__)
    about = {"Target": "age", "TaskType": REGRESSION, "Scores": {"fc": {"mae": 3.5}}}
    path = tmp_path / "deep" / "age.npz"
    with pytest.raises(CannotCreateOutputError):
        write_heads(path, HeadFile(heads, about))
    assert not path.parent.exists()
    path.parent.mkdir()
    write_heads(path, HeadFile(heads, about))
    back = read_heads(path)
    assert back.about == about
    for key in heads:
        np.testing.assert_array_equal(
            back.predict(key, features, confounds), heads[key].raw(features, confounds)[:, 0]
        )
    assert list(path.parent.iterdir()) == [path]


def test_a_confound_that_nobody_who_trains_has_changes_nothing(data):
    features, confounds, labels = data
    features["fc"][::2] = np.nan
    target = Target("age", REGRESSION, labels)
    others = confounds.copy()
    # Known only of those without these features, and of those without a label.
    others[1:-8:2, 1] = np.nan
    evaluation, cohort = _evaluated(features, others, target)
    heads = heads_of(evaluation, cohort, features.__getitem__)
    assert "age" not in heads["fc"].confounds
    for key, head in heads.items():
        given = others[:, [("fd", "age").index(name) for name in head.confounds]]
        assert np.isfinite(head.raw(features, given)[1::2]).all(), key
    fit = replace(evaluation.fits["fc"], confounds=Confounds(("fd", "age"), others))
    head = heads_module._head({}, fit, np.ones((N, 1)), np.empty(0))
    assert head.confound_means[1] == 0 and head.confound_weights[1] == 0
    assert np.isfinite(head.raw({}, others)).all()


def test_units_without_the_features_have_no_prediction(data):
    features, confounds, labels = data
    evaluation, cohort = _evaluated(features, confounds, Target("age", REGRESSION, labels))
    head = heads_of(evaluation, cohort, features.__getitem__)["fc_sc"]
    features["sc"][2] = np.nan
    raw = head.raw(features, confounds)
    assert np.isnan(raw[2]).all() and np.isfinite(np.delete(raw, 2, axis=0)).all()


@pytest.mark.parametrize(("name", "said"), [("absent/h.npz", "no folder"), ("", "is a folder")])
def test_where_no_head_can_be_written_is_told_first(tmp_path, name, said):
    asked = {"bids_dir": tmp_path, "output_dir": tmp_path, "analysis_level": "group"}
    with pytest.raises(CannotCreateOutputError, match=said) as caught:
        RunConfig(**asked, predict=("age",), save_head=tmp_path / name)
    assert caught.value.hint
    RunConfig(**asked, predict=("age",), save_head=tmp_path / "h.npz")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_of_heads_is_explained(tmp_path):
    with pytest.raises(InputMissingError, match="no such file"):
        read_heads(tmp_path / "absent.npz")
    path = tmp_path / "age.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(BadDataError, match=r"age\.npz: not a file of predictors"):
        read_heads(path)
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(BadDataError, match="not a file of predictors"):
        read_heads(path)


def test_harmonized_features_depend_on_who_trains_and_never_on_who_is_tested():
    rng = np.random.default_rng(1)
    sites = np.array(["a", "b"])[np.arange(N) % 2]
    values = rng.standard_normal((N, 50)) + 3 * (sites == "b")[:, None]
    training = np.arange(N) < 30
    kernel = HarmonizedKernel(values, sites)
    harmonized = kernel.harmonized(training)
    gap = (
        harmonized[training & (sites == "a")].mean() - harmonized[training & (sites == "b")].mean()
    )
    assert abs(gap) < 0.05
    changed = values.copy()
    changed[30:] += 100
    other = HarmonizedKernel(changed, sites).harmonized(training)
    np.testing.assert_array_equal(harmonized[training], other[training])


def test_who_has_a_site_alone_is_left_alone_in_training_as_in_test():
    rng = np.random.default_rng(1)
    sites = np.array(["sub-0", *["a", "b"] * (N // 2 - 1), "sub-1"])
    values = rng.standard_normal((N, 50)) + 3 * (sites == "b")[:, None]
    harmonized = HarmonizedKernel(values, sites).harmonized(np.arange(N) < 30)
    np.testing.assert_array_equal(harmonized[[0, N - 1]], values[[0, N - 1]])
    assert np.abs(harmonized[1:-1] - values[1:-1]).min() > 0
