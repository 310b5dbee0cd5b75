"""Network recovery: the classifier, and what is compared."""

import numpy as np
import pytest
from model_tiny import ROIS, STEPS, one_thread, tiny_model, tiny_windows  # noqa: F401

from bsym_bids.model.networks import FEATURES, Recovery, network_recovery, recovery_of_run

LABELS = ["a", "b", "c"] * 40
SIDES = ["L"] * 60 + ["R"] * 60


def test_features_that_tell_and_features_that_do_not():
    rng = np.random.default_rng(0)
    told = np.eye(3)[[ord(label) - 97 for label in LABELS]] + 0.1 * rng.standard_normal((120, 3))
    assert network_recovery(told, LABELS, SIDES) == Recovery(1.0, 1.0)
    guessed = network_recovery(rng.standard_normal((120, 3)), LABELS, SIDES)
    assert 0.15 < guessed.folds < 0.55 and 0.15 < guessed.left_to_right < 0.55


def test_one_hemisphere_may_not_tell_the_other():
    rng = np.random.default_rng(0)
    codes = np.array([ord(label) - 97 for label in LABELS])
    codes[60:] = (codes[60:] + 1) % 3  # the right one has the codes of other networks
    features = np.eye(3)[codes] + 0.1 * rng.standard_normal((120, 3))
    assert network_recovery(features, LABELS, SIDES).left_to_right == 0


def test_scale_and_order_of_features_do_not_matter():
    rng = np.random.default_rng(0)
    features = np.eye(3)[[ord(label) - 97 for label in LABELS]] + rng.standard_normal((120, 3))
    plain = network_recovery(features, LABELS, SIDES)
    assert network_recovery(features[:, ::-1] * [1e3, 1, 1e-3] + 7, LABELS, SIDES) == plain


@pytest.fixture
def seen(monkeypatch):
    """The features that reach the classifier, in order."""
    features = []

    def note(values, networks, hemispheres, seed=0):
        features.append((np.asarray(values), networks, hemispheres))
        return Recovery(0.0, 0.0)

    monkeypatch.setattr("bsym_bids.model.networks.network_recovery", note)
    return features


def test_what_is_compared(seen):
    model, windows = tiny_model(), tiny_windows(3)
    missing = np.zeros(ROIS, bool)
    missing[4] = True
    networks, sides = [f"n{i % 3}" for i in range(ROIS)], ["L", "R"] * (ROIS // 2)
    names = list(recovery_of_run(model, windows, missing, networks, sides))
    assert names == list(FEATURES)
    found = dict(zip(names, (values for values, _, _ in seen), strict=True))
    assert all(
        values.shape[0] == ROIS - 1 and np.isfinite(values).all() for values in found.values()
    )
    assert seen[0][1] == [n for i, n in enumerate(networks) if i != 4]
    np.testing.assert_array_equal(found["series"], windows[0][~missing])
    expected = np.mean([np.corrcoef(window[~missing]) for window in windows], 0)
    np.testing.assert_allclose(found["connectivity"], expected)
    np.testing.assert_array_equal(found["series_and_code"][:, :STEPS], found["series"])
    np.testing.assert_array_equal(found["series_and_code"][:, STEPS:], found["code"])
    assert not np.allclose(found["embedding"], found["shuffled"])
