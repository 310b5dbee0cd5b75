"""Contrasts of two states of the same people."""

import logging

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, ttest_1samp

from bsym_bids.cohort.contrast import (
    COLUMNS,
    MAX_ENUMERATED,
    SHIFT_COLUMNS,
    Contrast,
    Differences,
    PairedPerson,
    check_labels,
    contrast_maps,
    embedding_differences,
    embedding_shift,
    few_pairs_warning,
    network_means,
    pair_matrix,
    pair_scans,
    paired_tests,
    parse_contrast,
    person_differences,
    read_pairs,
    smallest_p,
)
from bsym_bids.cohort.edges import network_pair_means
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.outputs.tables import Table

NETWORKS = ["Vis"] * 4 + ["Default"] * 5 + ["Subcortex"] * 3
R = len(NETWORKS)
NAMES = [f"roi{roi}" for roi in range(R)]
CONTRAST = Contrast("ses", "drug", "placebo")


def one_scan_each(n):
    return [PairedPerson(f"{p:02d}", ((2 * p,),), ((2 * p + 1,),)) for p in range(n)]


def matrices(n, seed=0):
    values = np.random.default_rng(seed).uniform(-0.6, 0.6, (n, R, R))
    values = (values + values.swapaxes(1, 2)) / 2
    values[:, range(R), range(R)] = 1
    return values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ses-drug-ses-placebo", Contrast("ses", "drug", "placebo")),
        ("task-rest-task-movie01", Contrast("task", "rest", "movie01")),
        (" ses-1-ses-2 ", Contrast("ses", "1", "2")),
    ],
)
def test_a_contrast_is_read(text, expected):
    assert parse_contrast(text) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ses-1", "not two labels"),
        ("ses-1-2", "not two labels"),
        ("ses-1-ses-2-ses-3", "not two labels"),
        ("run-1-run-2", "not two labels"),
        ("ses-a_b-ses-c", "not two labels"),
        ("", "not two labels"),
        ("ses-1-task-rest", "not comparable"),
        ("ses-1-ses-1", "both labels are 1"),
    ],
)
def test_what_is_no_contrast_is_refused_with_its_form(text, what):
    with pytest.raises(UsageError, match=what) as caught:
        parse_contrast(text)
    assert "ses-A-ses-B" in caught.value.hint and caught.value.exit_code == 64


def test_labels_that_nobody_has_are_refused():
    scans = [{"sub": "01", "ses": label} for label in ("drug", "placebo")]
    check_labels(CONTRAST, scans)
    with pytest.raises(UsageError, match="no scan of ses-pacebo") as caught:
        check_labels(Contrast("ses", "drug", "pacebo"), scans)
    assert caught.value.hint == "there are drug, placebo"
    many = [{"sub": "01", "ses": f"visit{number}"} for number in range(30)]
    with pytest.raises(UsageError) as caught:
        check_labels(Contrast("ses", "vist3", "visit4"), many)
    assert "visit3" in caught.value.hint and len(caught.value.hint.split(",")) == 5
    with pytest.raises(UsageError) as caught:
        check_labels(Contrast("task", "rest", "movie"), scans)
    assert caught.value.hint == "no scan has a task- at all"


def test_pairs_are_matched_and_the_others_are_named(caplog):
    def scan(sub, ses, task="rest", **more):
        return {"sub": sub, "ses": ses, "task": task, **more}

    scans = [
        scan("02", "placebo"),
        scan("02", "drug", run="1"),
        scan("02", "drug", run="2"),
        scan("02", "drug", task="movie"),
        scan("01", "drug"),
        scan("01", "placebo"),
        scan("01", "drug", task="movie"),
        scan("01", "placebo", task="movie"),
        scan("03", "drug"),
        scan("04", "drug"),
        scan("04", "placebo", task="movie"),
        scan("05", "follow"),
    ]
    with caplog.at_level(logging.WARNING, logger="bsym_bids"):
        pairs, left_out = pair_scans(CONTRAST, scans, "connectivity")
    assert pairs == [
        PairedPerson("01", ((6,), (4,)), ((7,), (5,))),
        PairedPerson("02", ((1, 2),), ((0,),)),
    ]
    assert left_out == ["03", "04"]
    assert "--contrast ses-drug-ses-placebo, connectivity: left out" in caplog.text
    assert caplog.text.endswith("03, 04\n")


def test_a_task_contrast_stays_within_sessions():
    scans = [
        {"sub": "01", "ses": ses, "task": task}
        for ses, task in (("1", "rest"), ("1", "movie"), ("2", "rest"))
    ]
    contrast = Contrast("task", "rest", "movie")
    pairs, left_out = pair_scans(contrast, scans, "attention")
    assert pairs == [PairedPerson("01", ((0,),), ((1,),))] and not left_out
    assert pair_scans(contrast, scans[1:], "attention") == ([], ["01"])


def test_few_pairs():
    assert [smallest_p(n) for n in (2, 5, 6)] == [0.5, 0.0625, 0.03125]
    said = [few_pairs_warning(CONTRAST, "attention", n) for n in range(7)]
    assert all("ses-drug-ses-placebo, attention" in text for text in said[:6]) and not said[6]
    assert "nobody has both states" in said[0] and "no map" in said[1]
    assert "0.0625" in said[5] and not any("p cannot" in text for text in said[:2])
    values = np.random.default_rng(0).uniform(1, 2, (4, 3))
    tests = paired_tests(values)
    assert tests.exact and (tests.p == smallest_p(4)).all()


def test_incoming_attention_is_what_others_pay():
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.ones(R), size=(4, R))
    found = person_differences("attention", one_scan_each(2), lambda row: attention[row], NETWORKS)
    for state in range(2):
        for roi in range(R):
            others = [attention[state][row, roi] for row in range(R) if row != roi]
            assert found.rois[state, 0, roi] == pytest.approx(np.mean(others))
    np.testing.assert_allclose(found.rois[0] - found.rois[1], found.rois[2], atol=1e-15)
    np.testing.assert_allclose(found.networks[2, 1, 0], found.rois[2, 1, :4].mean())


@pytest.mark.parametrize("measure", ["connectivity", "similarity"])
def test_strength_is_the_mean_of_fishers_z(measure):
    values = matrices(2)
    found = person_differences(measure, one_scan_each(1), lambda row: values[row], NETWORKS)
    z = np.arctanh(np.where(np.eye(R), np.nan, values))
    np.testing.assert_allclose(found.rois[:2, 0], np.nanmean(z, axis=2))
    np.testing.assert_allclose(found.pairs[2, 0], network_pair_means(z[0] - z[1], NETWORKS))


def test_edges_that_one_state_lacks_count_in_neither():
    values = matrices(2)
    values[1] = values[0]
    values[1][3], values[1][:, 3] = np.nan, np.nan
    found = person_differences("connectivity", one_scan_each(1), lambda row: values[row], NETWORKS)
    measured = np.arange(R) != 3
    np.testing.assert_allclose(found.rois[2, 0, measured], 0, atol=1e-15)
    np.testing.assert_allclose(found.rois[0, 0, measured], found.rois[1, 0, measured])
    assert np.isnan(found.rois[:, 0, 3]).all()
    np.testing.assert_allclose(found.networks[2], 0, atol=1e-15)


def test_runs_are_averaged_and_tasks_count_in_equal_parts():
    values = matrices(5)
    values[0][2], values[0][:, 2] = np.nan, np.nan
    pair = PairedPerson("01", ((0, 1), (2,)), ((3,), (4,)))
    found = person_differences("connectivity", [pair], lambda row: values[row], NETWORKS)
    z = np.arctanh(np.where(np.eye(R), np.nan, values))
    runs = np.where(np.isnan(z[0]), z[1], (z[0] + z[1]) / 2)
    expected = (runs + z[2]) / 2 - (z[3] + z[4]) / 2
    np.testing.assert_allclose(found.rois[2, 0], np.nanmean(expected, axis=1))


def test_statistics_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((15, 6)) + np.array([0, 0.3, 0.6, -0.5, 1, 0])
    values[:4, 1] = np.nan
    tests = paired_tests(values, n_permutations=100)
    expected = ttest_1samp(values, 0, nan_policy="omit")
    np.testing.assert_allclose(tests.t, expected.statistic)
    low, high = tests.interval
    np.testing.assert_allclose(low, expected.confidence_interval().low)
    np.testing.assert_allclose(high, expected.confidence_interval().high)
    deviation = np.nanstd(values, axis=0, ddof=1)
    np.testing.assert_allclose(tests.d_z, np.nanmean(values, axis=0) / deviation)
    assert tests.n.tolist() == [15, 11, 15, 15, 15, 15] and not tests.exact
    assert tests.n_flips == 101


@pytest.mark.parametrize("n", [2, 5, 9])
def test_exact_p_is_that_of_scipy(n):
    values = np.random.default_rng(n).standard_normal((n, 3)) + np.array([0, 0.5, 1])
    tests = paired_tests(values)
    assert tests.exact and tests.n_flips == 2 ** (n - 1)
    for column, p in zip(values.T, tests.p, strict=True):
        other = permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        assert p == pytest.approx(other.pvalue)


def test_random_flips_come_close_to_all_flips(monkeypatch):
    values = np.random.default_rng(1).standard_normal((12, 8)) + 0.4
    exact = paired_tests(values)
    monkeypatch.setattr("bsym_bids.cohort.contrast.MAX_ENUMERATED", 5)
    random = paired_tests(values, n_permutations=20000, seed=1)
    assert exact.exact and not random.exact
    np.testing.assert_allclose(random.p, exact.p, atol=0.015)
    np.testing.assert_allclose(random.p_corrected, exact.p_corrected, atol=0.015)


def test_corrected_p_is_by_the_largest_statistic():
    from itertools import product

    values = np.random.default_rng(0).standard_normal((7, 4)) + np.array([0, 1, 0, 0.5])
    values[:, 3] *= 100  # each ROI by its own scale
    flips = np.array(list(product([-1, 1], repeat=7)))
    flipped = np.abs(ttest_1samp(flips[:, :, None] * values, 0, axis=1).statistic)
    observed = np.abs(ttest_1samp(values, 0).statistic)
    tests = paired_tests(values)
    alone = (flipped >= observed * (1 - 1e-9)).mean(axis=0)
    largest = (flipped.max(axis=1)[:, None] >= observed * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_allclose(tests.p, alone)
    np.testing.assert_allclose(tests.p_corrected, largest)
    assert (tests.p_corrected >= tests.p).all()


@pytest.mark.parametrize(("n", "permutations"), [(8, 0), (16, 199)])
def test_family_wise_error_is_held(n, permutations):
    """Correlated, skew-free nulls of unequal variance: false positives in 5 % of the families."""
    rng = np.random.default_rng(7)
    mixing = rng.standard_normal((20, 20)) * np.geomspace(0.1, 10, 20)
    false = 0
    for seed in range(300):
        values = rng.standard_normal((n, 20)) @ mixing * rng.uniform(0.5, 2, (n, 1))
        tests = paired_tests(values, n_permutations=permutations, seed=seed)
        false += (tests.p_corrected <= 0.05).any()
    low, high = binomtest(15, 300).proportion_ci(0.999)
    assert low <= false / 300 <= high


def test_a_planted_effect_is_found_with_its_direction():
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal((40, R, R))
    values = np.tanh(0.2 + (noise + noise.swapaxes(1, 2)) / 2)
    values[::2, :4, 4:9] = np.tanh(np.arctanh(values[::2, :4, 4:9]) + 0.1)
    values[::2, 4:9, :4] = values[::2, :4, 4:9].swapaxes(1, 2)
    found = person_differences("connectivity", one_scan_each(20), lambda row: values[row], NETWORKS)
    maps = contrast_maps(CONTRAST, found, NAMES, NETWORKS, n_permutations=500)
    assert list(maps) == ["rois", "networks", "pairs"]
    assert maps["rois"].significant.tolist() == [True] * 9 + [False] * 3
    assert maps["pairs"].significant.tolist() == [False, True, False, False, False, False]
    assert maps["pairs"].names[1] == "Vis-Default"
    assert maps["pairs"].tests.difference[1] == pytest.approx(0.1, abs=0.02)
    columns = maps["rois"].table()
    assert columns["direction"] == ["ses-drug"] * 9 + [""] * 3
    turned = paired_tests(-found.rois[2], n_permutations=500)
    np.testing.assert_allclose(turned.t, -maps["rois"].tests.t)
    np.testing.assert_array_equal(turned.p_corrected, maps["rois"].tests.p_corrected)


def test_what_few_people_have_is_not_tested():
    values = np.random.default_rng(0).standard_normal((10, 5)) + 3
    values[:6, 0] = np.nan
    values[:5, 1] = np.nan
    values[:, 2] = 1.5  # the same in everyone
    values[:, 3] = 0
    tests = paired_tests(values)
    assert np.isfinite(tests.p).tolist() == [False, True, False, False, True]
    assert np.isfinite(tests.t).tolist() == np.isfinite(tests.p_corrected).tolist()
    assert tests.difference[2] == 1.5 and np.isnan(tests.interval[0][2])
    nothing = paired_tests(np.zeros((4, 2)))
    assert np.isnan(nothing.p).all() and nothing.n_flips == 0


def test_without_permutations_there_is_no_p(tmp_path):
    values = matrices(2 * (MAX_ENUMERATED + 1))
    values[::2, :4] += 0.2  # would be significant
    people = one_scan_each(MAX_ENUMERATED + 1)
    found = person_differences("attention", people, lambda row: values[row], NETWORKS)
    result = contrast_maps(CONTRAST, found, NAMES, NETWORKS, n_permutations=0)["rois"]
    assert np.isfinite(result.tests.t).all() and result.tests.n_flips == 0
    assert np.isnan([result.tests.p, result.tests.p_corrected]).all()
    assert not result.significant.any() and set(result.table()["direction"]) == {""}
    Table(result.table()).write(tmp_path / "rois.tsv")
    header, first, *_ = (tmp_path / "rois.tsv").read_text().splitlines()
    assert dict(zip(header.split("\t"), first.split("\t"), strict=True))["p_corrected"] == "n/a"
    differences = np.random.default_rng(0).standard_normal((13, R, 4)) + 4
    shift = embedding_shift(CONTRAST, differences, NAMES, NETWORKS, n_permutations=0)
    assert np.isnan([shift.p, shift.p_corrected]).all() and (shift.relative_size > 5).all()


def test_who_cannot_be_read_stops_no_other(caplog):
    def read(pair):
        if pair.participant == "01":
            raise BadDataError("a.tsv: cut off")
        return pair.participant

    found = read_pairs(CONTRAST, one_scan_each(3), read, "similarity")
    assert found == (["00", "02"], ["01"])
    assert "ses-placebo, similarity: left out, sub-01: a.tsv: cut off" in caplog.text


def test_people_can_be_read_one_at_a_time():
    values = matrices(6)
    apart = [
        person_differences("similarity", [pair], lambda row: values[row], NETWORKS)
        for pair in one_scan_each(3)
    ]
    joined = Differences.joined(apart)
    together = person_differences("similarity", one_scan_each(3), lambda row: values[row], NETWORKS)
    for name in ("rois", "networks", "pairs"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(together, name))


def test_one_pair_is_refused():
    with pytest.raises(BadDataError, match="1 people have both states"):
        paired_tests(np.ones((1, 3)))
    with pytest.raises(BadDataError, match="0 people"):
        embedding_shift(CONTRAST, np.ones((0, R, 2)), NAMES, NETWORKS)


def test_tables_can_be_written(tmp_path):
    values = matrices(6)
    values[1][3], values[1][:, 3] = np.nan, np.nan
    found = person_differences("similarity", one_scan_each(3), lambda row: values[row], NETWORKS)
    maps = contrast_maps(CONTRAST, found, NAMES, NETWORKS)
    assert list(maps["rois"].table()) == list(COLUMNS)
    assert [name for name in COLUMNS if name not in maps["pairs"].table()] == ["network"]
    Table(maps["rois"].table()).write(tmp_path / "rois.tsv")
    lines = (tmp_path / "rois.tsv").read_text().splitlines()
    assert len(lines) == R + 1 and lines[1].startswith("similarity\troi0\tVis\t3\t")
    attention = person_differences("attention", one_scan_each(3), lambda row: values[row], NETWORKS)
    assert list(contrast_maps(CONTRAST, attention, NAMES, NETWORKS)) == ["rois", "networks"]


def test_pairs_of_networks_as_a_matrix():
    values = np.arange(6.0)
    expected = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    assert pair_matrix(values, 3).tolist() == expected


def test_means_by_network_leave_out_what_is_missing():
    values = np.arange(R, dtype=float)
    values[[0, 9, 10, 11]] = np.nan
    found = network_means(values, NETWORKS)
    np.testing.assert_allclose(found, [2, 6, np.nan])


def test_the_null_of_a_shift_is_one_on_average():
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((400, 10, R, 6)) * np.geomspace(0.01, 100, R)[:, None]
    sizes = [
        embedding_shift(CONTRAST, one, NAMES, NETWORKS, n_permutations=0).relative_size
        for one in differences[:60]
    ]
    assert np.mean(sizes) == pytest.approx(1, abs=0.06)
    small = [
        embedding_shift(CONTRAST, one[:6], NAMES, NETWORKS).p_corrected.min() <= 0.05
        for one in differences
    ]
    low, high = binomtest(round(400 / 32), 400).proportion_ci(0.999)  # p is 1/32 or above 0.05
    assert low <= np.mean(small) <= high


def test_a_shift_that_people_share_is_found():
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((20, R, 8)).astype(np.float32)
    differences[:, 5] += 0.8
    differences[:, 6] *= 10  # large, but in every direction
    differences[3, 2] = np.nan
    found = embedding_shift(CONTRAST, differences, NAMES, NETWORKS, n_permutations=400)
    assert np.flatnonzero(found.p_corrected < 0.05).tolist() == [5]
    mean = np.nanmean(differences, axis=0)
    np.testing.assert_allclose(found.size, np.linalg.norm(mean, axis=1), rtol=1e-5)
    assert found.n[2] == 19 and np.isfinite(found.p[2])
    assert list(found.table()) == list(SHIFT_COLUMNS)
    alike = np.repeat(differences[:1], 20, axis=0)
    assert embedding_shift(CONTRAST, alike, NAMES, NETWORKS).relative_size[0] == pytest.approx(20)


def test_exact_p_of_a_shift_counts_the_true_signs():
    rng = np.random.default_rng(0)
    differences = (rng.standard_normal((9, R, 50)) + 5).astype(np.float32)
    found = embedding_shift(CONTRAST, differences, NAMES, NETWORKS)
    assert found.exact and (found.p == smallest_p(9)).all()


def test_embeddings_are_subtracted():
    values = np.random.default_rng(0).standard_normal((6, R, 4)).astype(np.float32)
    values[3, 2] = np.nan
    found = embedding_differences(one_scan_each(3), lambda row: values[row])
    np.testing.assert_allclose(found, values[::2] - values[1::2], rtol=1e-5, atol=1e-6)
