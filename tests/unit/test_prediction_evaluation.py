import numpy as np
from sklearn.linear_model import LinearRegression

from bsym_bids.prediction.evaluation import Cohort, harmonized_as_others, without_confounds
from bsym_bids.prediction.exchange import exchange_of
from bsym_bids.prediction.kernels import FeatureKernel, HarmonizedKernel
from bsym_bids.prediction.nuisance import Confounds, no_confounds
from bsym_bids.prediction.records import Unit


def test_embeddings_lose_what_confounds_explain_in_training():
    rng = np.random.default_rng(0)
    confounds = rng.standard_normal((30, 2))
    values = rng.standard_normal((30, 4, 3)) + confounds[:, :1, None] * rng.standard_normal((4, 3))
    values = values.astype(np.float32)
    training = np.arange(30) < 20
    design = Confounds(("fd", "age"), confounds).design(training)
    found = without_confounds(values, design, training)
    flat = values.reshape(30, -1)
    fitted = LinearRegression().fit(confounds[training], flat[training])
    centred = confounds - confounds.mean(axis=0)  # as the design has them
    expected = flat - centred @ fitted.coef_.T
    np.testing.assert_allclose(found.reshape(30, -1), expected, atol=1e-5)


def test_absent_rois_stay_absent_and_test_people_change_nothing():
    rng = np.random.default_rng(1)
    confounds = rng.standard_normal((30, 1))
    values = rng.standard_normal((30, 4, 3)).astype(np.float32)
    values[3, 2] = values[25, 1] = np.nan
    training = np.arange(30) < 20
    design = Confounds(("fd",), confounds).design(training)
    found = without_confounds(values, design, training)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    changed = values.copy()
    changed[20:] *= 100
    other = without_confounds(changed, design, training)
    np.testing.assert_array_equal(found[training], other[training])


def test_without_confounds_there_is_nothing_to_take_out():
    values = np.random.default_rng(2).standard_normal((10, 4, 3)).astype(np.float32)
    training = np.ones(10, bool)
    np.testing.assert_array_equal(without_confounds(values, np.ones((10, 1)), training), values)


def test_the_gate_gets_what_the_other_candidates_get():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((20, 4, 3)).astype(np.float32)
    sites = np.array(["a", "b"])[np.arange(20) % 2]
    training = np.arange(20) < 15
    flat = values.reshape(20, -1)
    kernels = {"harmonized": HarmonizedKernel(flat, sites), "plain": FeatureKernel(flat)}
    people = tuple(map(str, range(20)))
    cohort = Cohort(
        tuple(map(Unit, people)), kernels, no_confounds(20), people, exchange_of(people)
    )
    found = harmonized_as_others(cohort, "harmonized", values, training)
    np.testing.assert_array_equal(found.reshape(20, -1), kernels["harmonized"].harmonized(training))
    assert np.abs(found - values).max() > 0.1
    np.testing.assert_array_equal(harmonized_as_others(cohort, "plain", values, training), values)
