import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.prediction import gate
from bsym_bids.prediction.gate import fit_gate

R, D, TRAINING, TESTED = 450, 8, 100, 130
N = TRAINING + TESTED
GROUPS = [f"p{unit // 2}" for unit in range(N)]
NETWORKS = np.array(atlas.networks())
TRAINS = np.arange(N) < TRAINING


def cohort(functional=0.7, structural=0.7, seed=0):
    """Return embeddings that carry a label in half of the dimensions each, and the label."""
    rng = np.random.default_rng(seed)
    labels = rng.standard_normal(N)
    signs = rng.choice([-1.0, 1.0], D)
    carried = labels[:, None] * signs
    made = []
    for strength, own in (
        (functional, np.arange(D) < D // 2),
        (structural, np.arange(D) >= D // 2),
    ):
        person = rng.standard_normal((N, 1, D)) + strength * (carried * own)[:, None]
        roi = rng.standard_normal((R, D)) * 5
        made.append((person + rng.standard_normal((N, R, D)) + roi).astype(np.float32))
    return made[0], made[1], 40 + 10 * labels


def means(values):
    return np.concatenate(
        [values[:, name == NETWORKS].mean(axis=1) for name in dict.fromkeys(NETWORKS)], axis=1
    )


def by_hand(head, functional, structural):
    """Return the head's raw output, with plain numpy."""
    both = []
    for place, part in enumerate((functional, structural)):
        own = (part.astype(float) - head.mean[place]) / head.spread[place]
        both.append(np.where(np.isfinite(own), own, 0))
    mix = expit(np.concatenate(both, axis=2) @ head.gate_weight.T + head.gate_bias)
    fused = mix * both[0] + (1 - mix) * both[1]
    return means(fused) @ head.head_weight.T + head.head_bias


@pytest.fixture(scope="module")
def split():
    return cohort()


@pytest.fixture(scope="module")
def head(split):
    return fit_gate(*split, TRAINS, GROUPS, None, 0)


def test_better_than_each_embedding_and_than_half_and_half(split, head):
    functional, structural, labels = split
    scores = [r2_score(labels[~TRAINS], head.predict(functional, structural)[~TRAINS])]
    scaled = [(x - x[TRAINS].mean(axis=0)) / x[TRAINS].std(axis=0) for x in split[:2]]
    for values in (*scaled, (scaled[0] + scaled[1]) / 2):
        features = means(values)
        best = 0
        for penalty in 10.0 ** np.arange(-2, 5):
            fitted = Ridge(alpha=penalty).fit(features[TRAINS], labels[TRAINS])
            best = max(best, r2_score(labels[~TRAINS], fitted.predict(features[~TRAINS])))
        scores.append(best)
    assert scores[0] > max(scores[1:]) + 0.02
    opened = expit(head.gate_bias)
    assert opened[: D // 2].mean() > 0.6 > 0.4 > opened[D // 2 :].mean()
    assert head.steps[0] > 0
    assert head.held_out_error[1] < head.held_out_error[0]


def test_predicts_as_the_gates_equations_say(split, head):
    expected = by_hand(head, *split[:2])[:, 0]
    np.testing.assert_allclose(head.predict(*split[:2]), expected, rtol=1e-4)


def test_standardised_by_the_training_units(split, head):
    for place, values in enumerate(split[:2]):
        own = values[TRAINS].astype(float)
        np.testing.assert_allclose(head.mean[place], own.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(head.spread[place], own.std(axis=0), rtol=1e-5)


def test_repeatable_on_any_number_of_threads(split, head):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = fit_gate(*split, TRAINS, GROUPS, None, 0)
    finally:
        torch.set_num_threads(before)
    for name, values in head.state().items():
        np.testing.assert_array_equal(again.state()[name], values)


def test_nothing_is_learned_from_others(split, head):
    altered = [values.copy() for values in split]
    for values in altered:
        values[~TRAINS] = 1e4
    altered[2][~TRAINS] = np.nan
    again = fit_gate(*altered, TRAINS, GROUPS, None, 0)
    for name, values in head.state().items():
        np.testing.assert_array_equal(again.state()[name], values)


@pytest.mark.parametrize("seed", range(2))
def test_shuffled_labels_are_not_predicted(split, seed):
    shuffled = np.random.default_rng(seed).permutation(split[2])
    head = fit_gate(*split[:2], shuffled, TRAINS, GROUPS, None, 0)
    assert r2_score(shuffled[~TRAINS], head.predict(*split[:2])[~TRAINS]) < 0.05


def test_missing_rois_are_as_the_training_mean(split):
    functional, structural, labels = (values.copy() for values in split)
    functional[3::7, 10:14] = np.nan
    structural[:, 20] = np.nan  # in nobody
    functional[:, 30, 2] = 0.1  # the same in everyone
    structural[-1] = np.nan
    functional[-2] = np.nan
    labels[0] = np.nan
    head = fit_gate(functional, structural, labels, TRAINS, GROUPS, None, 0)
    assert np.isinf(head.spread[1, 20]).all() and np.isinf(head.spread[0, 30, 2])
    predicted = head.predict(functional, structural)
    assert np.isnan(predicted[-2:]).all()
    np.testing.assert_allclose(
        predicted[:-2], by_hand(head, functional, structural)[:-2, 0], rtol=1e-4
    )
    assert r2_score(labels[~TRAINS][:-2], predicted[~TRAINS][:-2]) > 0.4
    functional[3::7, 10:14] = head.mean[0, 10:14]
    functional[:, 30, 2] = 7
    np.testing.assert_array_equal(head.predict(functional, structural)[:-2], predicted[:-2])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_classes_are_told_apart(split, n_classes):
    functional, structural, labels = split
    edges = np.quantile(labels, np.arange(1, n_classes) / n_classes)
    classes = np.digitize(labels, edges).astype(float)
    head = fit_gate(functional, structural, classes, TRAINS, GROUPS, n_classes, 0)
    predicted = head.predict(functional, structural)
    assert predicted.shape == (N, n_classes)
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    raw = by_hand(head, functional, structural)
    chances = expit(raw) if n_classes == 2 else np.exp(raw)
    chances = np.hstack([1 - chances, chances]) if n_classes == 2 else chances
    chances /= chances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predicted, chances, atol=1e-4)
    right = (predicted.argmax(axis=1) == classes)[~TRAINS]
    assert right.mean() > 1 / n_classes + 0.2


def test_left_out_error_is_that_of_fits_without_each_fold():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((30, 50)), rng.standard_normal((30, 2))
    folds = rng.permutation(np.arange(30) % 4)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(4)]
    predicted = cross_val_predict(Ridge(alpha=7.0), features, targets, cv=splits)
    found = gate._left_out_error(*map(torch.from_numpy, (features, targets, folds)), 7.0)
    assert float(found) == pytest.approx(((targets - predicted) ** 2).mean(), rel=1e-9)


def test_gradient_of_all_weights_is_that_of_the_left_out_error(split):
    functional, structural, labels = (values[:12] for values in split)
    inputs = gate._Inputs.learned(functional, structural, np.arange(12))
    targets = ((labels - labels.mean()) / labels.std())[:, None]
    problem = gate._Problem.of(inputs, np.arange(12), targets, np.arange(12) % 3, 2)
    readout = gate._readout(D, torch.linspace(-1, 1, D))
    with torch.no_grad():
        readout.gate.gate_proj.weight.copy_(torch.from_numpy(np.eye(D, 2 * D, 3) * 0.1))
    slopes = gate._gradient(problem, readout, problem.features(readout))
    weight = readout.gate.gate_proj.weight
    for place, step in (((2, 5), 0.02), ((7, 10), 0.02), ((0, 15), 0.02)):
        errors = []
        for side in (1, -1):
            with torch.no_grad():
                weight[place] += side * step
                errors.append(float(problem.left_out_error(problem.features(readout))))
                weight[place] -= side * step
        assert slopes[0][place].item() == pytest.approx(
            (errors[0] - errors[1]) / (2 * step), rel=0.02, abs=1e-5
        )


def test_groups_are_set_aside_together():
    own = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 3)).astype(str)
    target = gate.Target("label", gate.REGRESSION, np.arange(60.0))
    folds = gate._folds(target, own, 0)
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    assert all(len(set(folds[own == name].tolist())) == 1 for name in own)


def test_what_does_not_fit_is_refused(split, head):
    functional, structural, labels = split
    with pytest.raises(BadDataError, match="needs 3 groups of labelled units"):
        fit_gate(functional, structural, labels, TRAINS, ["one", "two"] * (N // 2), None, 0)
    with pytest.raises(BadDataError, match=r"structural embeddings are of shape \(230, 450, 5\)"):
        fit_gate(functional, structural[:, :, :5], labels, TRAINS, GROUPS, None, 0)
    with pytest.raises(BadDataError, match=r"functional embeddings .* not 230 times 450 x 8"):
        head.predict(functional[:, :400], structural)
