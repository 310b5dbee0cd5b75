import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsym_bids.prediction.combat as combat
from bsym_bids.errors import BadDataError
from bsym_bids.prediction.combat import fit_combat


def cohort(seed=0, n=60, n_features=15, n_sites=3):
    """Return features that sites shift and stretch, sites, and covariates that shift them, too."""
    rng = np.random.default_rng(seed)
    sites = np.arange(n) % n_sites
    covariates = np.column_stack([rng.normal(40, 10, n), rng.integers(0, 2, n)])
    values = (
        rng.standard_normal((n, n_features)) * rng.uniform(0.5, 2, (n_sites, n_features))[sites]
    )
    values += rng.normal(0, 1, (n_sites, n_features))[sites]
    values += covariates @ rng.normal(0, 0.05, (2, n_features)) + 3
    return values, sites, covariates


def by_the_paper(values, sites, covariates, training):
    """Harmonise feature by feature, written from the equations of Johnson et al. (2007)."""
    names = sorted(set(sites[training]))
    design = np.column_stack([sites == name for name in names]).astype(float)
    if covariates is not None:
        design = np.column_stack([design, covariates])
    n_features = values.shape[1]
    stand, back = np.full(values.shape, np.nan), []
    for g in range(n_features):
        rows = training & np.isfinite(values[:, g])
        fitted = np.linalg.lstsq(design[rows], values[rows, g], rcond=None)[0]
        alpha = sum((sites[rows] == name).sum() * fitted[i] for i, name in enumerate(names))
        alpha /= rows.sum()
        sigma = np.sqrt(np.mean((values[rows, g] - design[rows] @ fitted) ** 2))
        preserved = alpha + design[:, len(names) :] @ fitted[len(names) :]
        stand[:, g] = (values[:, g] - preserved) / sigma
        back.append((preserved, sigma))
    harmonised = values.copy()
    for name in names:
        own = [
            stand[training & (sites == name) & np.isfinite(values[:, g]), g]
            for g in range(n_features)
        ]
        means = [z.mean() for z in own if len(z)]
        spreads = [z.var(ddof=1) for z in own if len(z) > 1]
        gamma_bar, tau_2 = np.mean(means), np.var(means, ddof=1)
        v, s = (np.mean(spreads), np.var(spreads, ddof=1)) if spreads else (1.0, 0.0)
        for g, z in enumerate(own):
            gamma, delta_2 = 0.0, v
            for _ in range(200):
                total = len(z) * np.mean(z) * tau_2 if len(z) else 0.0
                gamma = (total + delta_2 * gamma_bar) / (len(z) * tau_2 + delta_2)
                if spreads:
                    shape, scale = (v**2 + 2 * s) / s, (v**3 + v * s) / s
                    delta_2 = scale + 0.5 * np.sum((z - gamma) ** 2)
                    delta_2 /= len(z) / 2 + shape - 1
            preserved, sigma = back[g]
            rows = sites == name
            moved = sigma / np.sqrt(delta_2) * (stand[rows, g] - gamma)
            harmonised[rows, g] = moved + preserved[rows]
    return harmonised


@pytest.mark.parametrize("with_covariates", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_equals_the_papers_equations(monkeypatch, with_covariates, gaps):
    monkeypatch.setattr(combat, "_BLOCK_BYTES", 8 * 60 * 4)  # four blocks
    values, sites, covariates = cohort()
    training = np.random.default_rng(1).random(len(values)) < 0.7
    if gaps:
        values[np.random.default_rng(2).random(values.shape) < 0.1] = np.nan
        values[sites == 1, 3] = np.nan  # a feature that a site lacks
    covariates = covariates if with_covariates else None
    learned = fit_combat(values, sites, covariates, training)
    np.testing.assert_allclose(
        learned.apply(values, sites, covariates),
        by_the_paper(values, sites, covariates, training),
        rtol=1e-6,
    )


def test_a_site_with_one_training_unit_is_only_shifted():
    values, sites, _ = cohort()
    training = (sites != 2) | (np.arange(60) == 2)
    learned = fit_combat(values, sites, None, training)
    expected = by_the_paper(values, sites, None, training)
    np.testing.assert_allclose(learned.apply(values, sites), expected, rtol=1e-6)
    change = (learned.apply(values, sites) - values)[sites == 2]
    np.testing.assert_allclose(change, change[:1].repeat(len(change), axis=0), atol=1e-9)
    assert np.abs(change).max() > 0.1


def test_sites_do_not_differ_afterwards_and_the_preserved_is_there():
    values, sites, covariates = cohort(n=3000, n_features=40)
    everyone = np.ones(len(values), bool)
    harmonised = fit_combat(values, sites, covariates, everyone).apply(values, sites, covariates)
    design = np.column_stack([np.ones(len(values)), covariates])
    before, after = (np.linalg.lstsq(design, each, rcond=None) for each in (values, harmonised))
    for each, fitted, largest in ((values, before, 10), (harmonised, after, 0.1)):
        residual = each - design @ fitted[0]
        means = np.array([residual[sites == site].mean(axis=0) for site in range(3)])
        spreads = np.array([residual[sites == site].std(axis=0) for site in range(3)])
        assert np.ptp(means, axis=0).max() < largest
        assert np.ptp(spreads, axis=0).max() < largest
        if each is values:
            assert np.ptp(means, axis=0).max() > 1
            assert np.ptp(spreads, axis=0).max() > 0.5
    np.testing.assert_allclose(after[0][1], before[0][1], atol=0.015)  # the slope of age


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), far=st.sampled_from([1e3, np.nan, np.inf]))
def test_nothing_is_learned_from_others(seed, far):
    values, sites, covariates = cohort(seed)
    training = np.random.default_rng(seed).random(60) < 0.6
    learned = fit_combat(values, sites, covariates, training)
    altered, moved = values.copy(), covariates.copy()
    altered[~training] = far
    moved[~training] = 7
    again = fit_combat(altered, sites, moved, training)
    for name in ("mean", "slopes", "spread", "shifts", "factors", "centre"):
        np.testing.assert_array_equal(getattr(again, name), getattr(learned, name))


def test_a_site_without_training_units_is_left_as_it_is():
    values, sites, covariates = cohort()
    learned = fit_combat(values, sites, covariates, sites != 1)
    assert learned.sites.tolist() == [0, 2]
    assert 1 not in learned.sites
    harmonised = learned.apply(values, sites, covariates)
    np.testing.assert_array_equal(harmonised[sites == 1], values[sites == 1])
    assert (harmonised[sites != 1] != values[sites != 1]).all()
    unknown = learned.apply(values, np.full(60, 99), covariates)
    np.testing.assert_array_equal(unknown, values)


def test_names_of_sites_and_their_order_do_not_matter():
    values, sites, covariates = cohort()
    everyone = np.ones(60, bool)
    harmonised = fit_combat(values, sites, covariates, everyone).apply(values, sites, covariates)
    named = np.array(["zurich", "bern", "geneva"])[sites]
    again = fit_combat(values, named, covariates, everyone).apply(values, named, covariates)
    np.testing.assert_allclose(again, harmonised, rtol=1e-9)


def test_one_site_is_left_as_it_is():
    values, sites, _ = cohort(n_sites=1)
    learned = fit_combat(values, sites, None, np.ones(60, bool))
    np.testing.assert_array_equal(learned.apply(values, sites), values)


def test_constant_and_empty_features_are_left_as_they_are():
    values, sites, covariates = cohort()
    expected = fit_combat(values[:, 3:], sites, covariates, np.ones(60, bool))
    values[:, 0] = 0.1
    values[:, 1] = np.nan
    values[:, 2] = sites  # constant within each site
    learned = fit_combat(values.astype(np.float32), sites, covariates, np.ones(60, bool))
    assert learned.spread[:3].tolist() == [0, 0, 0]
    harmonised = learned.apply(values, sites, covariates)
    np.testing.assert_array_equal(harmonised[:, :3], values[:, :3])
    others = expected.apply(values[:, 3:], sites, covariates)
    np.testing.assert_allclose(harmonised[:, 3:], others, atol=1e-5)


def test_covariates_that_are_constant_repeated_or_one_with_the_site_do_no_harm():
    values, sites, covariates = cohort()
    everyone = np.ones(60, bool)
    age = covariates[:, :1]
    spoiled = np.column_stack([age, 2 * age + 1, np.full(60, 0.1), sites])
    plain = fit_combat(values, sites, age, everyone).apply(values, sites, age)
    learned = fit_combat(values, sites, spoiled, everyone)
    np.testing.assert_allclose(learned.apply(values, sites, spoiled), plain, rtol=1e-6)
    np.testing.assert_array_equal(learned.slopes[2:], 0)


def test_single_precision_stays_and_is_as_good():
    values, sites, covariates = cohort()
    values[0, 0] = np.nan
    everyone = np.ones(60, bool)
    exact = fit_combat(values, sites, covariates, everyone).apply(values, sites, covariates)
    single = values.astype(np.float32)
    learned = fit_combat(single, sites, covariates, everyone)
    assert learned.mean.dtype == np.float64
    harmonised = learned.apply(single, sites, covariates)
    assert harmonised.dtype == np.float32
    np.testing.assert_allclose(harmonised, exact, atol=1e-5)
    assert np.isnan(harmonised[0, 0]) and np.isfinite(harmonised).sum() == values.size - 1


def test_twins_alone_at_a_site_do_not_divide_by_nothing():
    values, sites, _ = cohort()
    values[1::3] = values[1]
    learned = fit_combat(values, sites, None, np.ones(60, bool))
    assert np.isfinite(learned.apply(values, sites)).all()
    np.testing.assert_array_equal(learned.factors[1], 1)


def test_a_single_feature_is_harmonised_without_pooling():
    values, sites, _ = cohort()
    learned = fit_combat(values[:, :1], sites, None, np.ones(60, bool))
    harmonised = learned.apply(values[:, :1], sites)
    means = [harmonised[sites == site].mean() for site in range(3)]
    spreads = [harmonised[sites == site].std() for site in range(3)]
    assert np.ptp(means) < 1e-9 and np.ptp(spreads) < 1e-9


def test_what_does_not_fit_is_refused():
    values, sites, covariates = cohort()
    everyone = np.ones(60, bool)
    with pytest.raises(BadDataError, match="a site and a row of covariates for each unit"):
        fit_combat(values, sites[:-1], None, everyone)
    with pytest.raises(BadDataError, match="nobody to learn from"):
        fit_combat(values, sites, None, ~everyone)
    learned = fit_combat(values, sites, covariates, everyone)
    with pytest.raises(BadDataError, match=r"learned 15 features; there are 3"):
        learned.apply(values[:, :3], sites, covariates)
    with pytest.raises(BadDataError, match="2 covariates"):
        learned.apply(values, sites)
    covariates[4, 1] = np.nan
    with pytest.raises(BadDataError, match="missing for 1 of 60 units"):
        learned.apply(values, sites, covariates)
