"""Statistics of a cohort, and scaling by them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsym_bids import atlas
from bsym_bids.bold.scaling import RoiStatistics, scale
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.cohort import scaling as module
from bsym_bids.cohort.scaling import (
    cohort_statistics,
    inputs_fingerprint,
    kept_series,
    measure_cohort,
    weighted_quantiles,
)
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.outputs.cohort import read_cohort_scaling, write_cohort_scaling
from bsym_bids.outputs.descriptions import column_names
from bsym_bids.outputs.names import (
    RunNames,
    cohort_products,
    products,
    products_of,
    sidecar_of,
)
from bsym_bids.outputs.reading import WrittenSeries, run_of
from bsym_bids.outputs.tables import Json, Matrix

N = atlas.N_ROIS
OUTPUTS = Path(__file__).parents[2] / "docs" / "outputs.md"
SETTINGS = {"NuisanceStrategy": {"name": "36p"}, "HighPass": 0.01}


def series(seed, frames, rois=6, spread=1.0):
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((rois, frames)) * spread + draw.normal(size=(rois, 1))).astype(
        "f4"
    )


def expected(people):
    """Quartiles of frames that are repeated until all participants have as many."""
    joined = [np.concatenate(runs, axis=1) for runs in people]
    many = np.lcm.reduce([values.shape[1] for values in joined])
    pooled = np.concatenate(
        [np.repeat(values, many // values.shape[1], axis=1) for values in joined], axis=1
    )
    return np.percentile(pooled.astype(float), [25, 50, 75], axis=1, method="averaged_inverted_cdf")


@pytest.mark.parametrize("lengths", [[[30], [20], [60]], [[30, 10], [20], [5, 5, 5]], [[11]]])
def test_everyone_has_the_same_weight_however_many_runs_and_frames(lengths, tmp_path):
    people = [
        [series((person, run), frames, spread=person + 1.0) for run, frames in enumerate(runs)]
        for person, runs in enumerate(lengths)
    ]
    parts = [(f"{person}", values) for person, runs in enumerate(people) for values in runs]
    statistics, count = cohort_statistics(parts, tmp_path)
    low, median, high = expected(people)
    np.testing.assert_allclose(statistics.location, median, rtol=1e-6)
    np.testing.assert_allclose(statistics.spread, high - low, rtol=1e-6)
    assert count.tolist() == [len(people)] * 6
    assert not list(tmp_path.iterdir())


def test_order_of_runs_and_size_of_blocks_do_not_matter(monkeypatch):
    parts = [(name, series(seed, 17 + seed)) for seed, name in enumerate("abcab")]
    whole, count = cohort_statistics(parts)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * sum(p.shape[1] for _, p in parts) * 4)
    other, again = cohort_statistics(parts[::-1])
    np.testing.assert_array_equal(other.location, whole.location)
    np.testing.assert_array_equal(other.spread, whole.spread)
    np.testing.assert_array_equal(again, count)


def test_an_roi_has_the_statistics_of_those_who_have_it():
    parts = [("a", series(0, 40)), ("a", series(1, 20)), ("b", series(2, 30)), ("c", series(3, 9))]
    for part, rois in ((0, [1]), (2, [1, 2]), (3, [1, 2, 3]), (1, [3])):
        parts[part][1][rois] = np.nan
    statistics, count = cohort_statistics(parts)
    assert count.tolist() == [3, 1, 1, 2, 3, 3]
    cases = {
        0: [[parts[0][1], parts[1][1]], [parts[2][1]], [parts[3][1]]],
        1: [[parts[1][1]]],
        2: [[parts[0][1], parts[1][1]]],
        3: [[parts[0][1]], [parts[2][1]]],
    }
    for roi, people in cases.items():
        low, median, high = expected([[values[[roi]] for values in runs] for runs in people])
        np.testing.assert_allclose(statistics.location[roi], median[0], rtol=1e-6)
        np.testing.assert_allclose(statistics.spread[roi], (high - low)[0], rtol=1e-6)


def test_an_roi_that_nobody_has_has_none():
    values = series(0, 40)
    values[2] = np.nan
    statistics, count = cohort_statistics([("a", values), ("b", values)])
    assert np.flatnonzero(np.isnan(statistics.location)).tolist() == [2]
    assert np.flatnonzero(np.isnan(statistics.spread)).tolist() == [2]
    assert count[2] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=12),
    st.sampled_from([0.25, 0.5, 0.75, 0.1]),
)
def test_weights_are_as_good_as_repetitions(pairs, share):
    values, weights = np.array(pairs, float).T
    (found,) = weighted_quantiles(values, weights / 7, [share])
    repeated = np.repeat(values, weights.astype(int))
    assert found == np.percentile(repeated, 100 * share, method="averaged_inverted_cdf")


def test_quantiles_of_uneven_weights_are_numpys():
    draw = np.random.default_rng(0)
    values, weights = draw.normal(size=501), draw.random(501)
    found = weighted_quantiles(values, weights, [0.25, 0.5, 0.75])
    theirs = np.quantile(values, [0.25, 0.5, 0.75], weights=weights, method="inverted_cdf")
    np.testing.assert_array_equal(found, theirs)


def written_run(out, label, values, censored=(), **sidecar):
    """Write a table of denoised series as the participant level does."""
    names = RunNames(out, {"sub": label, "task": "rest"}, "fsLR", density="91k")
    path = names.path("denoised")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.copy()
    values[list(censored)] = np.nan
    Matrix(values, atlas.roi_names()).write(path)
    document = {"RepetitionTime": 2.0, "CensoredVolumes": list(censored), "Fingerprint": label}
    document |= {"TimeSeriesSettings": SETTINGS}
    Json(document | sidecar).write(sidecar_of(path))
    return run_of(path)


def test_frames_that_are_censored_and_rois_that_are_not_measured_do_not_count(tmp_path):
    values = series(0, 12, N).T.astype(float)
    values[:, 3] = np.nan
    values[:, 5] = 7.0
    kept = kept_series(written_run(tmp_path, "01", values, censored=[0, 4, 11]))
    assert kept.shape == (N, 9)
    assert np.flatnonzero(np.isnan(kept).all(axis=1)).tolist() == [3, 5]
    others = np.setdiff1d(np.arange(N), [3, 5])
    np.testing.assert_allclose(kept[others], np.delete(values, [0, 4, 11], 0).T[others], rtol=1e-6)
    with pytest.raises(BadDataError, match="every frame is censored"):
        kept_series(written_run(tmp_path, "02", values, censored=range(12)))


def test_what_is_read_back_is_what_was_measured(tmp_path):
    runs = [written_run(tmp_path, f"{k}", series(k, 30 + k, N).T.astype(float)) for k in range(2)]
    broken = written_run(tmp_path, "9", series(9, 30, N).T.astype(float))
    broken.path.write_text("a\tb\n1\t2\n")
    found = measure_cohort([*runs, broken], work_dir=tmp_path, n_workers=0)
    assert found.participants == ("0", "1")
    assert found.runs == tuple(run.path for run in runs)
    assert len(found.left_out) == 1 and str(broken.path) in found.left_out[0]
    assert found.timeseries == SETTINGS
    parts = [(run.participant, kept_series(run)) for run in runs]
    np.testing.assert_array_equal(found.statistics.spread, cohort_statistics(parts)[0].spread)
    path = write_cohort_scaling(found, tmp_path, "expected")
    again = read_cohort_scaling(tmp_path)
    for name in ("location", "spread"):
        mine, theirs = getattr(found.statistics, name), getattr(again.statistics, name)
        np.testing.assert_array_equal(mine, theirs)
    assert (again.participants, again.runs) == (found.participants, found.runs)
    assert again.fingerprint == found.fingerprint
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(lines[4].split("\t")[2], "1")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadDataError, match="not those that the sidecar is of"):
        read_cohort_scaling(tmp_path)


def test_statistics_know_no_label_of_a_participant(tmp_path):
    """The same people under other names, with other entries of the sidecar, have the same ones."""
    found = []
    for folder, names in (("a", ("01", "02")), ("b", ("old", "young"))):
        runs = [
            written_run(tmp_path / folder, name, series(k, 25, N).T.astype(float), Age=80 * k)
            for k, name in enumerate(names)
        ]
        found.append(measure_cohort(runs, n_workers=2 if folder == "a" else 0).fingerprint)
    assert found[0] == found[1]


def test_another_state_of_the_inputs_is_seen(tmp_path):
    runs = [written_run(tmp_path, f"{k}", series(k, 20, N).T.astype(float)) for k in range(2)]
    before = inputs_fingerprint(runs)
    assert before == inputs_fingerprint(runs)
    assert before != inputs_fingerprint(runs[:1])
    other = replace(runs[1], space="MNI152NLin6Asym")
    assert before == inputs_fingerprint([*runs, other])  # of two spaces, one is taken
    runs[1].path.write_text(runs[1].path.read_text() + "\n")
    assert before != inputs_fingerprint(runs)


def test_runs_of_different_settings_are_refused_by_name(tmp_path):
    values = series(0, 20, N).T.astype(float)
    runs = [
        written_run(tmp_path, "01", values),
        written_run(tmp_path, "02", values, TimeSeriesSettings=SETTINGS | {"HighPass": 0.1}),
    ]
    with pytest.raises(BadDataError, match=r"2 different settings \(HighPass\).*sub-01.*sub-02"):
        measure_cohort(runs)
    with pytest.raises(InputMissingError, match="no denoised time series"):
        measure_cohort([])


def test_nothing_that_can_be_read(tmp_path):
    run = written_run(tmp_path, "01", series(0, 20, N).T.astype(float))
    run.path.write_text("")
    with pytest.raises(BadDataError, match=re.escape(str(run.path))):
        measure_cohort([run], n_workers=0)


@pytest.fixture
def statistics():
    return RoiStatistics(np.linspace(-1, 1, 5), np.linspace(1, 3, 5))


def test_scaling_by_statistics(statistics):
    values = series(0, 100, 5).T.astype(float)
    kept = np.ones(100, bool)
    found = scale(values, kept, statistics)
    np.testing.assert_allclose(found, (values - statistics.location) / statistics.spread)
    own = RoiStatistics(
        np.median(values, axis=0), np.subtract(*np.percentile(values, [75, 25], axis=0))
    )
    np.testing.assert_allclose(scale(values, kept, own), scale(values, kept, "robust"))


def test_rois_are_missing_without_statistics_without_variation_or_far_away(statistics):
    values = series(0, 100, 5).T.astype(float)
    values[:, 0] = 3.0  # does not vary, so that robust scaling has it missing, too
    values[:, 1] += 1e4
    statistics.spread[2] = np.nan
    found = scale(values, np.ones(100, bool), statistics)
    assert np.isnan(found).all(axis=0).tolist() == [True, True, True, False, False]
    assert np.isnan(scale(values, np.ones(100, bool), "robust")[:, 0]).all()


def test_a_run_in_other_units_is_refused(statistics):
    values = 1e4 * series(0, 100, 5).T.astype(float)
    with pytest.raises(BadDataError, match="no ROI can be scaled") as caught:
        scale(values, np.ones(100, bool), statistics)
    assert "units" in caught.value.hint
    censored = np.zeros(100, bool)
    with pytest.raises(BadDataError, match=r"^run\.tsv: no ROI"):
        windows_for_model(
            WrittenSeries(values, censored, 0.8), scaling=statistics, source="run.tsv"
        )


def test_names_of_both_scalings_never_meet():
    names = RunNames(Path("out"), {"sub": "01"}, "fsLR", density="91k")
    scaled = replace(names, cohort_scaled=True)
    assert set(cohort_products()) == {product.key for product in products_of("embedding")}
    own = {names.path(key) for key in products()} | set(names.possible_paths("fused"))
    anew = {scaled.path(key) for key in cohort_products()}
    assert len(anew) == len(cohort_products()) and not own & anew
    assert not {*map(sidecar_of, own)} & {*map(sidecar_of, anew)}
    assert scaled.path("similarity").name.endswith("_desc-functionalsimilaritycohort_relmat.tsv")
    assert set(scaled.group_paths("embedding")) == anew == set(scaled.possible_paths("embedding"))
    others = [key for key in products() if key not in cohort_products()]
    assert all(scaled.path(key) == names.path(key) for key in others)


def test_cohort_scaling_is_of_the_group_level():
    with pytest.raises(UsageError, match="group level") as caught:
        RunConfig(Path("in"), Path("out"), "participant", scaling="cohort")
    assert "group --scaling cohort" in caught.value.hint
    assert RunConfig(Path("in"), Path("out"), "group", scaling="cohort").scaling == "cohort"


def test_every_file_column_and_key_is_described(tmp_path):
    text = OUTPUTS.read_text("utf-8")
    runs = [written_run(tmp_path, f"{k}", series(k, 20, N).T.astype(float)) for k in range(2)]
    path = write_cohort_scaling(measure_cohort(runs, n_workers=0), tmp_path, "x")
    keys = set(json.loads(sidecar_of(path).read_text())) | set(SETTINGS)
    names = [path.name, *column_names("cohort_scaling"), *keys]
    names += [
        f"desc-{product.desc}_{product.suffix}{product.extension}"
        for product in cohort_products().values()
    ]
    assert [name for name in names if f"`{name}`" not in text] == []
