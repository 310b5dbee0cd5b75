"""Embeddings of a run and reconstruction of held-out ROIs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_tiny import (
    ROIS,
    STEPS,
    WIDTH,
    one_thread,  # noqa: F401 (used by every test)
    tiny_model,
    tiny_states,
    tiny_windows,
)
from scipy.stats import pearsonr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.metrics import mean_absolute_error, r2_score

from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony, embed_windows, reconstruction_quality
from bsym_bids.model.baselines import linear_reconstruction
from bsym_bids.model.embed import embedding_similarity, masked_embedding
from bsym_bids.model.reconstruction import spread_evenly

NONE_MISSING = np.zeros(ROIS, bool)
TWO_MISSING = np.isin(np.arange(ROIS), [2, 9])


# --- embeddings ----------------------------------------------------------------------------------


def test_embedding_of_a_complete_run():
    model, windows = tiny_model(), tiny_windows(3)
    embedding = embed_windows(model, windows, NONE_MISSING, threads=1)
    output = model(fmri=windows)
    np.testing.assert_allclose(embedding.windows, output.functional_embedding, atol=1e-6)
    np.testing.assert_allclose(embedding.mean, output.functional_embedding.mean(0), atol=1e-6)
    np.testing.assert_allclose(embedding.attention_roi, output.attention_roi.mean(0), atol=1e-6)
    np.testing.assert_allclose(embedding.attention_time, output.attention_time, atol=1e-6)
    np.testing.assert_array_equal(embedding.masked, masked_embedding(model, windows.shape[1:]))
    assert embedding.threads == 1
    arrays = [value for value in vars(embedding).values() if isinstance(value, np.ndarray)]
    assert {value.dtype for value in arrays} == {np.dtype("f4"), np.dtype(bool)}


def test_similarity_is_the_fisher_mean_of_correlations():
    draw = np.random.default_rng(1)
    embeddings = draw.standard_normal((4, ROIS, WIDTH)).astype(np.float32)
    empty = draw.standard_normal((ROIS, WIDTH)).astype(np.float32)
    off = ~np.eye(ROIS, dtype=bool)
    z = np.mean([np.arctanh(np.corrcoef(e - empty) * off) for e in embeddings], axis=0)
    similarity = embedding_similarity(embeddings, empty)
    np.testing.assert_allclose(similarity[off], np.tanh(z)[off], atol=1e-6)
    assert (similarity.diagonal() == 1).all()
    np.testing.assert_array_equal(similarity, similarity.T)


def test_similarity_without_any_data_is_undefined():
    empty = np.random.default_rng(0).standard_normal((ROIS, WIDTH)).astype(np.float32)
    embeddings = np.stack([empty, empty])
    embeddings[:, 1:] += np.arange(WIDTH) ** 2
    similarity = embedding_similarity(embeddings, empty)
    assert np.isnan(similarity[0]).all()
    np.testing.assert_allclose(similarity[1:, 1:], 1, atol=1e-6)


def test_masked_embedding_is_that_of_a_fully_masked_window():
    model, windows = tiny_model(), tiny_windows(1)
    output = model(fmri=windows, roi_mask=np.ones((1, ROIS), bool))
    np.testing.assert_allclose(
        masked_embedding(model, windows.shape[1:]), output.functional_embedding[0], atol=1e-6
    )
    embedding = embed_windows(model, windows, NONE_MISSING)
    expected = np.corrcoef(embedding.windows[0] - masked_embedding(model, windows.shape[1:]))
    np.testing.assert_allclose(embedding.similarity, expected, atol=1e-4)


def test_missing_rois_are_held_out_and_not_reported():
    model, windows = tiny_model(), tiny_windows(2)
    windows[:, TWO_MISSING] = np.nan
    embedding = embed_windows(model, windows, TWO_MISSING)
    filled = np.nan_to_num(windows)
    output = model(fmri=filled, roi_mask=np.stack([TWO_MISSING] * 2))
    seen = ~TWO_MISSING
    np.testing.assert_allclose(
        embedding.windows[:, seen], output.functional_embedding[:, seen], atol=1e-6
    )
    both = np.ix_(seen, seen)
    np.testing.assert_allclose(
        embedding.attention_roi[both], output.attention_roi.mean(0)[both], atol=1e-6
    )
    np.testing.assert_allclose(embedding.attention_time[:, seen].sum(-1), 1, atol=1e-5)
    for square in (embedding.similarity, embedding.attention_roi):
        assert np.isfinite(square[both]).all()
        assert np.isnan(square[TWO_MISSING]).all()
        assert np.isnan(square[:, TWO_MISSING]).all()
    for rows in (embedding.windows[0], embedding.mean, embedding.attention_time[1]):
        np.testing.assert_array_equal(np.isnan(rows).all(1), TWO_MISSING)


@pytest.mark.parametrize("call", [embed_windows, lambda *a: reconstruction_quality(*a, seed=0)])
def test_what_cannot_be_used_is_refused(call):
    model, windows = tiny_model(), tiny_windows()
    with pytest.raises(BadDataError, match="3 of 12 ROIs are missing"):
        call(model, windows, np.arange(ROIS) < 3)
    with pytest.raises(BadDataError, match="windows"):
        call(model, windows[0], NONE_MISSING)
    with pytest.raises(BadDataError, match="windows"):
        call(model, windows[:0], NONE_MISSING)
    with pytest.raises(BadDataError, match="missing"):
        call(model, windows, NONE_MISSING[:-1])
    with pytest.raises(BadDataError, match="not finite"):
        call(model, np.where(TWO_MISSING[:, None], np.nan, windows), NONE_MISSING)
    part = BrainSymphony.from_state_dicts(spatial=tiny_states()["spatial"], spatial_heads=2)
    with pytest.raises(BadDataError, match="the network"):
        call(part, windows, NONE_MISSING)


@pytest.mark.parametrize("count", [1, 3])
def test_results_do_not_hang_on_the_number_of_threads(count):
    model, windows = tiny_model(), tiny_windows(count)
    one, three = (embed_windows(model, windows, NONE_MISSING, threads=n) for n in (1, 3))
    for name in ("windows", "masked", "similarity", "attention_roi", "attention_time"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
    one, three = (
        reconstruction_quality(model, windows, NONE_MISSING, seed=0, n_folds=3, threads=n)
        for n in (1, 3)
    )
    np.testing.assert_array_equal(one.r2, three.r2)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    embed_windows(tiny_model(), tiny_windows(1), NONE_MISSING, threads=before + 1)
    with pytest.raises(BadDataError):
        embed_windows(tiny_model(), tiny_windows(1) * np.nan, NONE_MISSING, threads=before + 1)
    assert torch.get_num_threads() == before


# --- reconstruction ------------------------------------------------------------------------------


class Reconstructor:
    """Stands for a network: keeps what it is shown and answers with a rule."""

    def __init__(self, rule):
        self.rule, self.masks, self.shown = rule, [], []

    def __call__(self, *, fmri, roi_mask, attention_maps, context_prediction):
        assert attention_maps is context_prediction is False
        visible = np.where(roi_mask[0][:, None], np.nan, fmri[0])
        self.masks.append(roi_mask[0].copy())
        self.shown.append(visible)
        return SimpleNamespace(reconstruction=torch.from_numpy(self.rule(visible)[None]))


def test_every_measured_roi_is_held_out_once_per_window():
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    windows = tiny_windows(3)
    quality = reconstruction_quality(model, windows, TWO_MISSING, seed=0, n_folds=4, max_windows=2)
    assert quality.windows == (0, 2)
    assert len(model.masks) == 2 * 2 * 4  # windows, plain and permuted, folds
    for start in range(0, 16, 4):
        masks = np.stack(model.masks[start : start + 4])
        assert masks[:, TWO_MISSING].all()
        assert (masks[:, ~TWO_MISSING].sum(0) == 1).all()
        assert np.ptp(masks.sum(1)) <= 1
    for window, start in ((0, 0), (2, 8)):
        for visible in model.shown[start : start + 4]:
            shown = np.isfinite(visible)
            np.testing.assert_array_equal(visible[shown], windows[window][shown])


def test_permuted_series_are_the_same_series_elsewhere():
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    windows = tiny_windows(1)
    reconstruction_quality(model, windows, TWO_MISSING, seed=1, n_folds=2)
    measured = np.flatnonzero(~TWO_MISSING)
    shown = np.where(np.isfinite(model.shown[2]), model.shown[2], model.shown[3])
    places = [int(np.flatnonzero((shown == windows[0, roi]).all(1))[0]) for roi in measured]
    assert sorted(places) == list(measured)
    assert places != list(measured)
    # ... and the fold that is hidden is the same ROIs, wherever they are
    for plain, permuted in zip(model.masks[:2], model.masks[2:], strict=True):
        hidden = np.isin(places, np.flatnonzero(permuted))
        np.testing.assert_array_equal(hidden, plain[measured])


def test_scores_are_those_of_the_series_left_out():
    draw = np.random.default_rng(5)
    answer = draw.standard_normal((ROIS, STEPS))
    windows = (answer + 0.7 * draw.standard_normal((2, ROIS, STEPS))).astype(np.float32)
    quality = reconstruction_quality(Reconstructor(lambda _: answer), windows, TWO_MISSING, seed=0)
    for roi in np.flatnonzero(~TWO_MISSING):
        pairs = [(window[roi].astype(float), answer[roi]) for window in windows]
        # around each window's own mean, as if the windows were one series
        centred = [(series - series.mean(), found - series.mean()) for series, found in pairs]
        r2 = r2_score(*np.concatenate(centred, axis=1))
        rho = np.mean([pearsonr(*pair).statistic for pair in pairs])
        mae = np.mean([mean_absolute_error(*pair) for pair in pairs])
        scores = (quality.r2[roi], quality.rho[roi], quality.mae[roi])
        np.testing.assert_allclose(scores, (r2, rho, mae), rtol=1e-6)
    for name in ("r2", "rho", "mae", "permuted_r2", "permuted_rho", "permuted_mae"):
        np.testing.assert_array_equal(np.isnan(getattr(quality, name)), TWO_MISSING)


def test_a_quiet_window_does_not_rule_the_score():
    draw = np.random.default_rng(9)
    windows = draw.standard_normal((2, ROIS, STEPS))
    windows[1] *= 1e-3
    quality = reconstruction_quality(
        Reconstructor(lambda _: windows[0]), windows.astype(np.float32), NONE_MISSING, seed=0
    )
    assert (quality.r2 > -1.5).all()  # a mean of two R2 is about -500,000


def test_interpolated_frames_are_shown_but_not_scored():
    windows = tiny_windows(2)
    censored = np.zeros((2, STEPS), bool)
    censored[0, 3:9] = censored[1, -2:] = True
    spoiled = windows.copy()
    spoiled[censored[:, None].repeat(ROIS, 1)] = 50
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    options = {"seed": 0, "censored": censored}
    quality = reconstruction_quality(model, spoiled, NONE_MISSING, **options)
    assert np.nanmax(model.shown[0]) == 50
    expected = reconstruction_quality(model, windows, NONE_MISSING, **options)
    np.testing.assert_array_equal(quality.r2, expected.r2)
    np.testing.assert_array_equal(quality.mae, expected.mae)
    for roi in range(ROIS):
        error = [windows[w, roi][~censored[w]] for w in range(2)]
        assert quality.mae[roi] == pytest.approx(np.abs(np.concatenate(error)).mean())


def test_permuted_labels_cost_what_is_known_about_the_roi():
    answer = np.random.default_rng(6).standard_normal((ROIS, STEPS))
    windows = np.stack([answer, answer]).astype(np.float32)
    quality = reconstruction_quality(Reconstructor(lambda _: answer), windows, NONE_MISSING, seed=0)
    np.testing.assert_allclose(quality.r2, 1, atol=1e-6)
    assert quality.permuted_r2.mean() < 0


def test_permuted_labels_cost_nothing_for_the_global_signal():
    common = np.random.default_rng(7).standard_normal(STEPS)
    own = np.random.default_rng(8).standard_normal((1, ROIS, STEPS))
    windows = (common + 0.5 * own).astype(np.float32)
    average = Reconstructor(lambda visible: np.nanmean(visible, 0) + np.zeros_like(visible))
    quality = reconstruction_quality(average, windows, NONE_MISSING, seed=0)
    assert quality.r2.mean() > 0.5
    np.testing.assert_allclose(quality.permuted_r2, quality.r2, atol=1e-6)


def test_constant_series_have_no_r2_but_an_error():
    windows = tiny_windows(1)
    windows[0, 4] = 2
    quality = reconstruction_quality(Reconstructor(np.zeros_like), windows, NONE_MISSING, seed=0)
    assert np.isnan(quality.r2[4])
    assert np.isnan(quality.rho).all()  # the reconstruction is constant
    assert quality.mae[4] == 2
    assert quality.network_means(["a"] * ROIS)["all"]["n_rois"] == ROIS - 1


def test_network_means():
    answer = np.random.default_rng(5).standard_normal((ROIS, STEPS))
    quality = reconstruction_quality(
        Reconstructor(lambda _: answer), tiny_windows(2), TWO_MISSING, seed=0
    )
    names = ["Vis", "Lone", "Lone"] + ["Vis"] * (ROIS - 3)
    names[2] = "Gone"
    means = quality.network_means(names)
    assert list(means) == ["Vis", "Lone", "Gone", "all"]
    vis = [roi for roi in range(ROIS) if names[roi] == "Vis" and not TWO_MISSING[roi]]
    assert means["Vis"]["r2"] == pytest.approx(np.mean(quality.r2[vis]))
    assert means["Vis"]["n_rois"] == len(vis)
    assert means["Lone"]["permuted_mae"] == pytest.approx(quality.permuted_mae[1])
    assert np.isnan(means["Gone"]["rho"])
    assert means["Gone"]["n_rois"] == 0
    assert means["all"]["rho"] == pytest.approx(np.nanmean(quality.rho))
    with pytest.raises(BadDataError, match="network names"):
        quality.network_means(names[:-1])


def test_same_seed_same_scores():
    model, windows = tiny_model(), tiny_windows(2)
    one, again, other = (
        reconstruction_quality(model, windows, NONE_MISSING, seed=seed, n_folds=3)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.permuted_r2, again.permuted_r2)
    assert not np.array_equal(one.r2, other.r2)


def test_the_held_out_series_does_not_enter():
    model, windows = tiny_model(), tiny_windows(1)
    every = reconstruction_quality(model, windows, NONE_MISSING, seed=0, n_folds=ROIS)
    alone = model(fmri=windows, roi_mask=np.arange(ROIS)[None] == 7).reconstruction[0, 7].numpy()
    assert every.r2[7] == pytest.approx(r2_score(windows[0, 7], alone), abs=1e-4)


@pytest.mark.parametrize("numbers", [{"n_folds": 1}, {"n_folds": 13}, {"max_windows": 0}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(BadDataError, match="out of range"):
        reconstruction_quality(tiny_model(), tiny_windows(), NONE_MISSING, seed=0, **numbers)


@pytest.mark.parametrize(
    ("n_windows", "at_most", "expected"),
    [(1, 4, (0,)), (3, 4, (0, 1, 2)), (4, 4, (0, 1, 2, 3)), (10, 4, (0, 3, 6, 9)), (9, 1, (4,))],
)
def test_windows_are_spread_evenly(n_windows, at_most, expected):
    assert spread_evenly(n_windows, at_most) == expected


# --- the linear baseline -------------------------------------------------------------------------


def a_correlation(seed=0, rois=ROIS):
    """Return a correlation matrix that is far from the identity."""
    factors = np.random.default_rng(seed).standard_normal((rois, 4))
    covariance = factors @ factors.T + 0.3 * np.eye(rois)
    spread = np.sqrt(np.diag(covariance))
    return covariance / np.outer(spread, spread)


def test_linear_baseline_is_kriging():
    """As a Gaussian process over ROIs, frame by frame, whose covariance is the correlation."""
    correlation, window = a_correlation(), tiny_windows(1)[0].astype(float)
    hidden = np.isin(np.arange(ROIS), [1, 5, 6])
    found = linear_reconstruction(window, hidden, correlation)
    process = GaussianProcessRegressor(Looked(correlation), alpha=0.05, optimizer=None)
    process.fit(np.flatnonzero(~hidden)[:, None], window[~hidden])
    expected = process.predict(np.flatnonzero(hidden)[:, None])
    np.testing.assert_allclose(found[hidden], expected, atol=1e-9)
    assert np.isnan(found[~hidden]).all()


class Looked(Kernel):
    """A covariance that is looked up in a table."""

    def __init__(self, table):
        self.table = table

    def __call__(self, X, Y=None, eval_gradient=False):
        Y = X if Y is None else Y
        return self.table[np.ix_(X[:, 0].astype(int), Y[:, 0].astype(int))]

    def diag(self, X):
        return self.table.diagonal()[X[:, 0].astype(int)]

    def is_stationary(self):
        return False


def test_linear_baseline_is_the_mean_of_draws_that_agree_with_what_is_seen():
    """By brute force: draw all ROIs and the noise, keep what comes close to the seen values."""
    correlation, hidden = a_correlation(rois=3), np.array([False, True, False])
    draw = np.random.default_rng(0)
    truth = draw.multivariate_normal(np.zeros(3), correlation, 4_000_000)
    noisy = truth[:, ~hidden] + np.sqrt(0.05) * draw.standard_normal((len(truth), 2))
    seen = np.array([0.6, -0.4])
    near = (np.abs(noisy - seen) < 0.05).all(1)
    window = np.array([[seen[0]], [np.nan], [seen[1]]])
    found = linear_reconstruction(window, hidden, correlation)[1, 0]
    spread = truth[near, 1].std() / np.sqrt(near.sum())
    assert abs(found) > 0.2
    assert found == pytest.approx(truth[near, 1].mean(), abs=4 * spread)


@given(st.permutations(range(ROIS)))
def test_linear_baseline_knows_rois_by_their_correlation_only(order):
    correlation, window = a_correlation(), tiny_windows(1)[0]
    hidden, order = np.isin(np.arange(ROIS), [1, 5, 6]), np.array(order)
    found = linear_reconstruction(window, hidden, correlation)
    moved = linear_reconstruction(window[order], hidden[order], correlation[np.ix_(order, order)])
    np.testing.assert_allclose(moved, found[order], atol=1e-9)


def test_linear_baseline_does_not_see_what_is_hidden_or_missing():
    correlation, windows = a_correlation(), tiny_windows(2)
    spoiled = windows.copy()
    spoiled[:, TWO_MISSING] = np.nan
    options = {"seed": 0, "correlation": correlation, "n_folds": 3}
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    one = reconstruction_quality(model, windows, TWO_MISSING, **options)
    other = reconstruction_quality(model, spoiled, TWO_MISSING, **options)
    for name in ("linear_r2", "linear_rho", "linear_mae", "linear_permuted_r2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(np.isnan(getattr(one, name)), TWO_MISSING)


def test_linear_baseline_holds_out_the_folds_of_the_network():
    correlation, windows = a_correlation(), tiny_windows(2)
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    options = {"seed": 3, "n_folds": 3}
    quality = reconstruction_quality(
        model, windows, TWO_MISSING, correlation=correlation, **options
    )
    found = np.full(windows.shape, np.nan)
    for index, window in enumerate(windows):
        for hidden in model.masks[6 * index : 6 * index + 3]:
            answer = linear_reconstruction(window, hidden, correlation)
            scored = hidden & ~TWO_MISSING
            found[index, scored] = answer[scored]
    for roi in np.flatnonzero(~TWO_MISSING):
        rho = np.mean([np.corrcoef(windows[w, roi], found[w, roi])[0, 1] for w in range(2)])
        assert quality.linear_rho[roi] == pytest.approx(rho)
        error = np.abs(windows[:, roi] - found[:, roi]).mean()
        assert quality.linear_mae[roi] == pytest.approx(error)
    # the network is scored as it is without a baseline
    alone = reconstruction_quality(model, windows, TWO_MISSING, **options)
    np.testing.assert_array_equal(quality.permuted_mae, alone.permuted_mae)
    assert np.isnan(alone.linear_r2).all()


def test_linear_baseline_explains_what_the_correlation_explains():
    correlation = a_correlation()
    factor = np.linalg.cholesky(correlation)
    draw = np.random.default_rng(0)
    windows = (factor @ draw.standard_normal((4, ROIS, 3000))).astype(np.float32)
    model = Reconstructor(lambda visible: np.zeros_like(visible))
    quality = reconstruction_quality(
        model, windows, NONE_MISSING, seed=0, correlation=correlation, n_folds=ROIS
    )
    # held out one by one, without noise: 1 - 1 / (the diagonal of the inverse), in theory
    expected = 1 - 1 / np.linalg.inv(correlation).diagonal()
    assert (quality.linear_r2 < expected + 0.02).all()
    assert (quality.linear_r2 > expected - 0.12).all()
    assert quality.linear_permuted_r2.mean() < quality.linear_r2.mean() - 0.3


@pytest.mark.parametrize(
    ("correlation", "hidden", "message"),
    [
        (np.eye(ROIS + 1), NONE_MISSING, "correlation of shape"),
        (np.eye(ROIS), NONE_MISSING[1:], "hidden ROIs of shape"),
        (np.eye(ROIS), ~NONE_MISSING, "every ROI is hidden"),
    ],
)
def test_linear_baseline_refuses_what_does_not_fit(correlation, hidden, message):
    with pytest.raises(BadDataError, match=message):
        linear_reconstruction(tiny_windows(1)[0], hidden, correlation)
