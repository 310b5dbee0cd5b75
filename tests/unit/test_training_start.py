"""Starting as a smoother: the attentions learnt from a covariance, and the network that is them."""

import numpy as np
import pytest
import torch

from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony
from bsym_bids.training.release import network_card
from bsym_bids.training.smoother import NOISE, Smoother, learn_smoother, unexplained
from bsym_bids.training.start import _picking_queries, smoothing_state_dicts

ROIS, STEPS = 48, 200


def smooth_correlation(rois=ROIS):
    """ROIs on a line: all alike a little, neighbours and mirror images much."""
    place = np.arange(rois)
    mirrored = np.minimum(place, rois - 1 - place)
    near = np.exp(-((place[:, None] - place) ** 2) / 8)
    homotopic = np.exp(-((mirrored[:, None] - mirrored) ** 2) / 8)
    return 0.2 + 0.4 * near + 0.3 * homotopic + 0.1 * np.eye(rois)


def small_card():
    card = network_card(["spatial", "temporal", "context", "perceiver"])
    card["sizes"]["spatial"]["positions"] = ROIS
    for branch in ("temporal", "perceiver"):
        card["sizes"][branch]["rois"] = ROIS
    return card


@pytest.fixture(scope="module")
def correlation():
    return smooth_correlation()


@pytest.fixture(scope="module")
def smoother(correlation):
    return learn_smoother(correlation, 31, 4, seed=0, steps=300)


@pytest.fixture(scope="module")
def model(correlation):
    card = small_card()
    states = smoothing_state_dicts(card, correlation, seed=0)
    return BrainSymphony.from_state_dicts(**states, **card["network"])


def series(correlation, count=6, seed=1):
    """Return slow windows (W, R, T) that have the correlation, and noise of each ROI."""
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(correlation)
    white = np.fft.rfft(rng.standard_normal((count, STEPS, ROIS)), axis=1)
    white[:, 40:] = 0  # what the 94 cosines of a token hold
    slow = np.fft.irfft(white, STEPS, axis=1)
    slow /= slow.std()
    return (0.7 * (slow @ factor.T)).swapaxes(1, 2).astype(np.float32)


def hidden_rois(seed=3):
    hidden = np.zeros(ROIS, bool)
    hidden[np.random.default_rng(seed).permutation(ROIS)[:7]] = True
    return hidden


def r2(truth, predicted):
    error = ((truth - predicted) ** 2).sum(-1)
    return float((1 - error / ((truth - truth.mean(-1, keepdims=True)) ** 2).sum(-1)).mean())


def conditional_mean(correlation, windows, hidden):
    """Kriging by the inverse: the independent reference."""
    inner = correlation[np.ix_(~hidden, ~hidden)] + NOISE * np.eye((~hidden).sum())
    return correlation[np.ix_(hidden, ~hidden)] @ np.linalg.solve(inner, windows[:, ~hidden])


def test_unexplained_is_what_series_leave(correlation, smoother):
    hidden = hidden_rois()
    rng = np.random.default_rng(0)
    clean = np.linalg.cholesky(correlation) @ rng.standard_normal((ROIS, 200_000))
    noisy = clean + np.sqrt(NOISE) * rng.standard_normal(clean.shape)
    noisy[hidden] = 0
    predicted = smoother(torch.from_numpy(noisy).float(), torch.from_numpy(hidden)).numpy()
    expected = ((predicted - clean)[hidden] ** 2).mean()
    covariance = torch.from_numpy(correlation).float()
    found = unexplained(smoother, covariance, torch.from_numpy(hidden))
    assert float(found) == pytest.approx(expected, rel=0.02)


def test_the_smoother_nears_the_best_linear_prediction(correlation, smoother):
    hidden = hidden_rois()
    inner = correlation[np.ix_(~hidden, ~hidden)] + NOISE * np.eye((~hidden).sum())
    across = correlation[np.ix_(hidden, ~hidden)]
    best = 1 - np.einsum("ij,ji->i", across, np.linalg.solve(inner, across.T)).mean()
    covariance = torch.from_numpy(correlation).float()
    found = float(unexplained(smoother, covariance, torch.from_numpy(hidden)))
    assert best <= found < best + 0.15
    untrained = learn_smoother(correlation, 31, 4, seed=0, steps=1)
    assert found < 0.8 * float(unexplained(untrained, covariance, torch.from_numpy(hidden)))


def test_the_smoother_is_blind_to_hidden_rois(smoother):
    hidden = torch.from_numpy(hidden_rois())
    x = torch.randn(ROIS, 5)
    x[hidden] = 0
    filled = smoother(x, hidden)
    assert filled[hidden].abs().sum() > 0


def test_a_seed_makes_the_same_smoother(correlation):
    first, second = (learn_smoother(correlation, 10, 2, seed=5, steps=20) for _ in range(2))
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(one, other)


def test_the_network_is_the_smoother(model, correlation):
    """The spatial transformer and the Perceiver give what the attentions alone give."""
    windows, hidden = series(correlation), hidden_rois()
    smoother = learn_smoother(correlation, 31, 4, seed=0)
    masks = np.tile(hidden, (len(windows), 1))
    found = model(fmri=windows, roi_mask=masks).reconstruction.numpy()[:, hidden]
    blanked = torch.from_numpy(np.where(masks[..., None], 0, windows))
    expected = np.stack([smoother(x, torch.from_numpy(hidden)).numpy() for x in blanked])
    expected = expected[:, hidden]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    assert r2(windows[:, hidden], found) > r2(windows[:, hidden], expected) - 0.04


def test_the_network_nears_the_conditional_gaussian(model, correlation):
    windows, hidden = series(correlation), hidden_rois()
    masks = np.tile(hidden, (len(windows), 1))
    series_back = model(fmri=windows, roi_mask=masks).reconstruction.numpy()
    found = r2(windows[:, hidden], series_back[:, hidden])
    best = r2(windows[:, hidden], conditional_mean(correlation, windows, hidden))
    order = np.random.default_rng(0).permutation(ROIS)
    shuffled = windows[:, order]
    control = model(fmri=shuffled, roi_mask=masks).reconstruction[:, hidden].numpy()
    assert best > 0.5
    assert found > best - 0.1
    assert r2(shuffled[:, hidden], control) < found - 0.3


def test_visible_rois_come_back(model, correlation):
    windows = series(correlation)
    found = model(fmri=windows).reconstruction.numpy()
    assert np.corrcoef(found.ravel(), windows.ravel())[0, 1] > 0.9


def test_the_first_block_flags_hidden_rois_and_no_others(model, correlation):
    windows, hidden = series(correlation), hidden_rois()
    blanked = torch.from_numpy(np.where(hidden[:, None], 0, windows))
    before, _ = model.spatial.pos_enc(model.spatial.embedding_layer(blanked), None)
    with torch.no_grad():
        written = (model.spatial.layers[0](before) - before).norm(dim=-1).numpy()
    np.testing.assert_allclose(written[:, hidden], 1, atol=1e-3)
    np.testing.assert_allclose(written[:, ~hidden], 0, atol=1e-3)


def test_each_latent_reads_its_own_roi(model, correlation):
    attention = model(fmri=series(correlation, 1)).attention_roi[0].numpy()
    assert np.diag(attention).min() > 0.9


def test_a_query_is_highest_at_its_own_position():
    position = torch.randn(ROIS, 31, generator=torch.Generator().manual_seed(0))
    logits = _picking_queries(position) @ position.mT
    assert (logits.argmax(1) == torch.arange(ROIS)).all()


@pytest.mark.parametrize(
    ("branch", "size", "value"),
    [("spatial", "width", 64), ("perceiver", "projection", 64), ("spatial", "layers", 4)],
)
def test_sizes_that_the_parts_do_not_fit_are_refused(correlation, branch, size, value):
    card = small_card()
    card["sizes"][branch][size] = value
    with pytest.raises(BadDataError, match="start from connectivity"):
        smoothing_state_dicts(card, correlation, seed=0)


def test_without_functional_branches_everything_is_drawn(correlation):
    states = smoothing_state_dicts(network_card(["structural"]), correlation, seed=0)
    assert set(states) == {"structural"}


def test_a_smoother_needs_no_more_than_positions():
    positions = torch.eye(3)
    zeros = torch.zeros(1, 3, 3)
    smoother = Smoother(positions, zeros, zeros, torch.ones(1), torch.full((1,), -1e4))
    hidden = torch.tensor([True, False, False])
    filled = smoother(torch.tensor([[0.0], [1.0], [3.0]]), hidden)
    torch.testing.assert_close(
        filled, torch.tensor([[2.0], [3.0], [5.0]])
    )  # the mean of the others
