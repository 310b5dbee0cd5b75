"""Group averages and the intraclass correlation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway

from bsym_bids.cohort.edges import edges_of, edges_to_matrix, fisher_z, network_pair_means
from bsym_bids.cohort.reliability import (
    COLUMNS,
    edge_networks,
    group_mean,
    reliability,
    roi_networks,
    table,
)
from bsym_bids.errors import BadDataError

# Shrout & Fleiss 1979, table 2: six targets, four judges; ICC(1,1) is 0.17.
RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
NETWORKS = ["Vis", "Vis", "Default", "Default", "Subcortex"]


def anova_icc(values, people):
    """ICC(1,1) of one feature by the F of scipy's one-way analysis of variance."""
    groups = [values[people == person] for person in np.unique(people)]
    groups = [group[np.isfinite(group)] for group in groups]
    sizes = np.array([group.size for group in groups if group.size])
    f = f_oneway(*[group for group in groups if group.size]).statistic
    k0 = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (sizes.size - 1)
    return (f - 1) / (f - 1 + k0)


def test_icc_of_shrout_and_fleiss():
    found = reliability(RATINGS.reshape(-1, 1), np.repeat(list("abcdef"), 4))
    assert found.icc[0] == pytest.approx(0.1657, abs=1e-4)
    assert found.between[0] == pytest.approx((11.24 - 6.26) / 4, abs=0.01)
    assert (found.n_people, found.n_repeated) == (6, 6)


def test_unequal_numbers_of_scans_and_missing_values():
    rng = np.random.default_rng(0)
    people = np.array(["c", "a", "b", "a", "d", "c", "e", "a", "f", "f", "e"])
    effect = {name: rng.standard_normal(40) for name in "abcdef"}
    features = np.stack([effect[name] for name in people]) + rng.standard_normal((11, 40))
    features[0, :10] = features[8, 5:15] = np.nan
    features[4, 12:20] = np.nan  # person d is not there at all
    features[1, 30] = np.inf  # is missing, too
    found = reliability(features.astype(np.float64), people, block=7)
    expected = [anova_icc(column, people) for column in features.T]
    np.testing.assert_allclose(found.icc, expected, rtol=1e-10)
    assert (found.n_people, found.n_repeated) == (6, 4)


@given(st.floats(0.05, 0.95), st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_the_true_reliability_is_found(truth, seed):
    rng = np.random.default_rng(seed)
    own = np.sqrt(truth) * rng.standard_normal((60, 400))
    features = np.vstack(
        [own + np.sqrt(1 - truth) * rng.standard_normal((60, 400)) for _ in range(2)]
    )
    found = reliability(features, [*range(60), *range(60)])
    assert found.icc.mean() == pytest.approx(truth, abs=0.04)
    pooled = table(found, {})["icc_pooled"][0]
    assert pooled == pytest.approx(truth, abs=0.04)


def test_scale_shift_and_order_do_not_matter():
    rng = np.random.default_rng(0)
    features, people = rng.standard_normal((9, 5)), np.array(list("aabbbccdd"))
    order = rng.permutation(9)
    plain = reliability(features, people).icc
    other = reliability((1e4 * features + 7)[order], people[order]).icc
    np.testing.assert_allclose(plain, other, rtol=1e-9)


def test_what_does_not_vary_has_no_reliability():
    features = np.full((4, 3), np.float32(0.1))
    features[:, 1] = [1, 1, 2, 2]  # all variance between people
    features[:, 2] = [1, 2, 1, 2]  # none
    icc = reliability(features, list("aabb")).icc
    assert np.isnan(icc[0]) and icc[1] == 1 and icc[2] < 0


def test_features_that_nobody_has_twice_have_none():
    features = np.random.default_rng(0).standard_normal((5, 2))
    features[[1, 3], 0] = np.nan
    icc = reliability(features, list("aabbc")).icc
    assert np.isnan(icc[0]) and np.isfinite(icc[1])


@pytest.mark.parametrize("people", [list("abc"), list("aaa")])
def test_no_repeats_or_one_person_are_refused(people):
    with pytest.raises(BadDataError, match="reliability"):
        reliability(np.ones((3, 2)), people)


def test_people_count_once_in_the_average():
    features = np.array([[1.0, 2, np.nan], [3, 4, np.nan], [8, np.nan, 5]])
    found = group_mean(features, list("aab"), block=2)
    np.testing.assert_allclose(found.mean, [5, 3, 5])
    np.testing.assert_allclose(found.deviation, [np.std([2, 8], ddof=1), np.nan, np.nan])
    assert found.n_people.tolist() == [2, 1, 1]
    nobody = group_mean(np.full((2, 1), np.nan), list("ab"))
    assert np.isnan(nobody.mean[0]) and nobody.n_people[0] == 0


def test_summary_by_network():
    rng = np.random.default_rng(0)
    own = rng.standard_normal((30, 10))
    noise = np.array([0.1 if "Vis" in (NETWORKS[i], NETWORKS[j]) else 3 for i, j in pairs()])
    features = np.vstack([own + noise * rng.standard_normal((30, 10)) for _ in range(2)])
    found = reliability(features, [*range(30), *range(30)])
    columns = table(found, edge_networks(NETWORKS))
    assert list(columns) == list(COLUMNS)
    assert columns["network"] == ["all", "Vis", "Default", "Subcortex"]
    assert columns["n_features"] == [10, 7, 7, 4]
    visual = [("Vis" in (NETWORKS[i], NETWORKS[j])) for i, j in pairs()]
    assert columns["icc_median"][1] == pytest.approx(np.median(found.icc[visual]))
    assert columns["icc_mean"][1] > 0.9 > columns["icc_mean"][2]


def test_summary_of_features_by_roi():
    own = roi_networks(NETWORKS, width=3)
    assert own["Vis"].tolist() == [True] * 6 + [False] * 9
    found = reliability(np.random.default_rng(0).standard_normal((6, 15)), list("aabbcc"))
    columns = table(found, {**own, "none": np.zeros(15, dtype=bool)})
    assert columns["n_features"] == [15, 6, 6, 3, 0] and np.isnan(columns["icc_mean"][-1])


def test_edges_there_and_back():
    matrix = np.random.default_rng(0).standard_normal((2, 5, 5))
    matrix += matrix.swapaxes(1, 2)
    edges = edges_of(matrix)
    assert edges.shape == (2, 10)
    back = edges_to_matrix(edges[1], 5)
    off = ~np.eye(5, dtype=bool)
    assert (back[off] == matrix[1][off]).all() and np.isnan(back.diagonal()).all()
    expected = [matrix[0][:2, 2:4].mean(), matrix[0][0, 1]]
    means = network_pair_means(matrix[0], NETWORKS)
    np.testing.assert_allclose([means[0, 1], means[0, 0]], expected)
    assert fisher_z(np.array([0.5, 1.0]))[0] == np.arctanh(0.5)
    assert np.isfinite(fisher_z(np.array([1.0, -1.0]))).all()


def pairs():
    return zip(*np.triu_indices(len(NETWORKS), 1), strict=True)
