"""Simulated cohorts whose truth is known, in memory and as files."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from bsym_bids import atlas
from bsym_bids.errors import UsageError
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.outputs.reading import (
    find_connectomes,
    find_runs,
    read_connectome,
    read_matrix,
    read_roi_volumes,
    read_timeseries,
)
from bsym_bids.outputs.tables import Matrix
from bsym_bids.simulation.cohort import (
    KINDS,
    RECIPES,
    Families,
    Sites,
    auc_of,
    simulate_cohort,
    simulate_recipe,
)
from bsym_bids.simulation.cohort_files import Grid, Layout, write_cohort, write_outputs

UPPER = np.triu_indices(450, 1)
N = 1200


@pytest.fixture(scope="module")
def cohort_of():
    """Return cohorts of 40 ROIs by recipe, each simulated once."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = simulate_recipe(name, N, n_rois=40, width=4, seed=7)
        return known[name]

    return get


def oracle(cohort, kinds):
    """Return the R2 of a regression on the scores along all patterns of some kinds."""
    scores = [
        direction.scores(cohort.features[kind])
        for (kind, _), direction in cohort.truth.directions.items()
        if kind in kinds
    ]
    found = np.column_stack(scores)
    return LinearRegression().fit(found, cohort.target).score(found, cohort.target)


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


def partial_correlation(x, y, given):
    given = np.column_stack([np.ones(len(given)), given])
    rest = [v - given @ np.linalg.lstsq(given, v, rcond=None)[0] for v in (x, y)]
    return correlation(*rest)


@pytest.mark.parametrize("name", RECIPES)
def test_an_oracle_reaches_what_is_stated(cohort_of, name):
    cohort = cohort_of(name)
    for kinds in [*[(kind,) for kind in KINDS], ("fc", "sc"), ("fc", "bs_functional"), KINDS]:
        # The standard error of R2 is about 2 (1 - R2) sqrt(R2 / N), at most 0.022.
        assert oracle(cohort, kinds) == pytest.approx(cohort.truth.r2(kinds), abs=0.06), kinds


@pytest.mark.parametrize("name", ["none", "families", "sites"])
def test_without_signal_nothing_is_stated_or_found(cohort_of, name):
    cohort = cohort_of(name)
    assert cohort.truth.r2(KINDS, confounds=True) == 0
    for kind in KINDS:
        assert abs(correlation(cohort.scores(kind), cohort.target)) < 0.1


def test_the_signal_is_where_it_is_said_to_be(cohort_of):
    stated = {name: [cohort_of(name).truth.r2([kind]) for kind in ("fc", "sc")] for name in RECIPES}
    assert stated["fc"] == pytest.approx([0.6, 0])
    assert stated["sc"] == pytest.approx([0, 0.6])
    assert stated["both"] == pytest.approx([0.4, 0.4])
    # Two independent witnesses: r2 / (1 - r2) adds up.
    assert cohort_of("both").truth.r2(["fc", "sc"]) == pytest.approx(8 / 14)
    truth = cohort_of("fc").truth
    assert truth.r2(["fc", "bs_functional"]) == pytest.approx(0.6)  # which adds nothing
    assert truth.r2(["bs_functional"]) == pytest.approx(0.48)
    assert truth.r2(["bs_functional_mean"]) == pytest.approx(0.06)
    truth = cohort_of("network").truth
    assert truth.r2(["fc", "bs_functional"]) > truth.r2(["bs_functional"]) == pytest.approx(0.6)


def test_a_pattern_is_found_without_knowing_it(cohort_of):
    cohort = cohort_of("fc")
    x = cohort.features["fc"] - cohort.features["fc"].mean(0)
    train, test = np.arange(N) < 800, np.arange(N) >= 800
    mean = cohort.age[train].mean()
    gram = x @ x.T
    penalty = np.trace(gram) / N * np.eye(train.sum())
    weights = np.linalg.solve(gram[np.ix_(train, train)] + penalty, cohort.age[train] - mean)
    predicted = mean + gram[np.ix_(test, train)] @ weights
    assert correlation(predicted, cohort.age[test]) ** 2 > 0.45


def test_classes_are_as_far_apart_as_stated(cohort_of):
    cohort = cohort_of("sex")
    found = roc_auc_score(cohort.sex == "M", cohort.scores("fc"))
    assert found == pytest.approx(auc_of(0.5), abs=0.02)
    assert auc_of(0.5) == pytest.approx(0.9214, abs=1e-4)  # the normal distribution at sqrt(2)
    assert auc_of(0) == 0.5
    assert 0.45 < (cohort.sex == "M").mean() < 0.55


def test_motion_carries_age_to_connectivity_and_nothing_else_does(cohort_of):
    cohort = cohort_of("motion")
    displacement, score = cohort.confounds["mean_fd"], cohort.scores("fc", "confound")
    assert correlation(displacement, cohort.age) ** 2 == pytest.approx(0.55, abs=0.06)
    assert correlation(displacement, score) ** 2 == pytest.approx(0.8, abs=0.06)
    assert correlation(score, cohort.age) > 0.5
    assert abs(partial_correlation(score, cohort.age, displacement)) < 0.07
    assert cohort.truth.r2(["fc"]) < cohort.truth.r2([], confounds=True)
    assert cohort.truth.r2(KINDS, True) == pytest.approx(cohort.truth.r2([], True))
    assert correlation(displacement, cohort.confounds["frames_kept"]) < -0.5
    assert abs(correlation(cohort.confounds["roi_volume"], cohort.age)) < 0.07


def test_head_size_carries_sex_to_streamlines(cohort_of):
    cohort = cohort_of("head_size")
    volume, score = cohort.confounds["roi_volume"], cohort.scores("sc", "confound")
    assert correlation(volume, cohort.target) ** 2 == pytest.approx(0.4, abs=0.06)
    assert correlation(score, cohort.target) > 0.4
    assert abs(partial_correlation(score, cohort.target, volume)) < 0.07


def test_relatives_are_alike_and_strangers_are_not(cohort_of):
    cohort = cohort_of("families")
    first, second = np.arange(0, N, 2), np.arange(1, N, 2)
    assert (cohort.family[first] == cohort.family[second]).all()
    assert len(set(cohort.family)) == N / 2
    assert correlation(cohort.age[first], cohort.age[second]) == pytest.approx(0.95, abs=0.02)
    for kind in ("fc", "sc"):
        x = cohort.features[kind]
        x = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
        alike = (x[first] * x[second]).sum(1)
        strange = (x[first] * np.roll(x[second], 1, axis=0)).sum(1)
        assert np.median(alike) > 0.85
        assert abs(np.median(strange)) < 0.1
    # Who has a relative to look up is told their age; who has none is not.
    x = cohort.features["fc"]
    distances = -2 * x @ x.T + (x**2).sum(1)
    np.fill_diagonal(distances, np.inf)
    assert correlation(cohort.age[distances.argmin(1)], cohort.age) > 0.9
    distances[cohort.family[:, None] == cohort.family] = np.inf
    assert abs(correlation(cohort.age[distances.argmin(1)], cohort.age)) < 0.1


def test_sites_move_features_and_have_other_shares_of_classes(cohort_of):
    cohort = cohort_of("sites")
    here = cohort.site == "site1"
    assert here.sum() == N / 2
    share = [(cohort.sex[at] == "M").mean() for at in (here, ~here)]
    assert share[1] - share[0] > 0.3
    x = cohort.features["fc"]
    between = x[here].mean(0) - x[~here].mean(0)
    within = np.sqrt((x[here].var(0) + x[~here].var(0)) / 2)
    assert np.sqrt(np.mean((between / within) ** 2)) > 0.4
    spread = [x[at].std(0).mean() for at in (here, ~here)]
    assert abs(np.log(spread[0] / spread[1])) > 0.05
    # Beside the sites there is nothing.
    score = x @ between
    assert abs(correlation(score, cohort.target)) > 0.2
    for at in (here, ~here):
        assert abs(correlation(score[at], cohort.target[at])) < 0.12


def test_values_are_of_their_kind(cohort_of):
    cohort = cohort_of("both")
    shapes = {kind: features.shape for kind, features in cohort.features.items()}
    edges, dimensions = (N, 780), (N, 160)
    assert shapes == dict(zip(KINDS, [edges, edges, edges, dimensions, dimensions], strict=True))
    for kind, features in cohort.features.items():
        assert features.dtype == np.float32, kind
        assert np.isfinite(features).all(), kind
    assert (np.abs(np.tanh(cohort.features["fc"])) < 1).all()
    counts = 10 ** cohort.features["sc"].astype(float) - 1
    assert (cohort.features["sc"] >= 0).all()
    np.testing.assert_allclose(counts, counts.round(), rtol=2e-6, atol=1e-6)
    assert cohort.age.min() >= 20 and cohort.age.max() <= 80
    assert (cohort.confounds["mean_fd"] > 0).all()
    assert (cohort.confounds["frames_kept"] <= cohort.n_volumes).all()
    assert correlation(cohort.rating, cohort.age) ** 2 == pytest.approx(0.5, abs=0.06)


def test_a_seed_is_a_cohort_and_kinds_do_not_change_each_other():
    cohort = simulate_recipe("both", 30, n_rois=40, seed=1)
    again = simulate_recipe("both", 30, n_rois=40, seed=1, kinds=("bs_functional", "sc"))
    other = simulate_recipe("both", 30, n_rois=40, seed=2)
    assert list(again.features) == ["sc", "bs_functional"]
    np.testing.assert_array_equal(again.age, cohort.age)
    for kind, features in again.features.items():
        np.testing.assert_array_equal(features, cohort.features[kind])
    assert (other.age != cohort.age).any()
    # Patterns are no property of a cohort: what is learnt on one holds in another.
    for key, direction in cohort.truth.directions.items():
        np.testing.assert_array_equal(direction.pattern, other.truth.directions[key].pattern)


def test_correlations_are_positive_definite_where_that_is_asked_for():
    roughly = simulate_recipe("fc", 12, n_rois=60, kinds=("fc",))
    proper = simulate_recipe("fc", 12, n_rois=60, kinds=("fc",), proper=True)
    np.testing.assert_allclose(proper.scores("fc"), roughly.scores("fc"), atol=1e-3)
    lowest = []
    for edges in proper.features["fc"]:
        matrix = np.eye(60)
        matrix[np.triu_indices(60, 1)] = np.tanh(edges)
        lowest.append(np.linalg.eigvalsh(matrix, UPLO="U")[0])
    assert min(lowest) > -0.1
    assert np.median(lowest) > 0


def test_a_part_of_a_cohort_is_of_the_same_people():
    cohort = simulate_cohort(10, n_rois=20, families=Families(5), sites=Sites(3))
    part = cohort.subset([7, 2])
    assert part.participants == ("sim0008", "sim0003")
    np.testing.assert_array_equal(part.age, cohort.age[[7, 2]])
    np.testing.assert_array_equal(part.scores("sc"), cohort.scores("sc")[[7, 2]])
    assert len(cohort.subset(cohort.family == "fam0002")) == 5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"signal": {"fmri": 0.5}}, "fmri"),
        ({"label": "iq"}, "iq"),
        ({"signal": {"fc": 1.5}}, "between 0 and 1"),
        ({"n_rois": 451}, "450"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong, named):
    with pytest.raises(UsageError, match=named):
        simulate_cohort(5, **wrong)
    with pytest.raises(UsageError, match="no recipe"):
        simulate_recipe("age", 5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return three people with all digits, one without each modality, in one session."""
    folder = tmp_path_factory.mktemp("cohort")
    cohort = simulate_recipe("both", 3, width=4, n_volumes=40)
    layout = Layout(
        unlabelled=["sim0002"], without_bold=["sim0002"], without_dwi=["sim0003"], decimals=None
    )
    write_cohort(cohort, folder / "bids", folder / "out", layout)
    return cohort, folder


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


def beside(path, old, new):
    return path.with_name(path.name.replace(old, new))


def test_runs_are_read_back(written):
    cohort, folder = written
    runs = find_runs(folder / "out")
    assert [run.participant for run in runs] == ["sim0001", "sim0003"]
    for run in runs:
        row = cohort.participants.index(run.participant)
        stem = "stat-mean_desc-denoised_timeseries"
        correlations = read_matrix(beside(run.path, stem, "stat-pearsoncorrelation_relmat"))
        np.testing.assert_array_equal(correlations, correlations.T)
        np.testing.assert_array_equal(np.diag(correlations), 1)
        np.testing.assert_allclose(
            correlations[UPPER], np.tanh(cohort.features["fc"][row].astype(float)), rtol=1e-6
        )
        similarity = read_matrix(beside(run.path, stem, "desc-functionalsimilarity_relmat"))
        np.testing.assert_allclose(
            np.arctanh(similarity[UPPER]), cohort.features["bs_functional"][row], atol=2e-6
        )
        embedding = table(beside(run.path, stem, "desc-functional_embedding"))
        assert list(embedding["name"]) == list(atlas.roi_names())
        values = embedding.filter(like="dim").to_numpy().ravel()
        np.testing.assert_allclose(values, cohort.features["bs_functional_mean"][row], rtol=1e-6)
        attention = read_matrix(beside(run.path, stem, "desc-attention_relmat"))
        np.testing.assert_allclose(attention.sum(1), 1, atol=1e-5)
        series, censored = read_timeseries(run)
        quality = table(beside(run.path, stem, "desc-run_qc")).iloc[0]
        assert quality["n_volumes"] == len(series) == cohort.n_volumes
        kept = cohort.confounds["frames_kept"][row]
        assert quality["n_volumes"] - quality["n_censored"] == (~censored).sum() == kept
        assert quality["fd_mean"] == pytest.approx(cohort.confounds["mean_fd"][row], rel=1e-6)
        assert run.sidecar["Simulated"] is True


def test_scans_are_read_back(written):
    cohort, folder = written
    scans = find_connectomes(folder / "out")
    assert [(scan.participant, scan.measure) for scan in scans] == [
        ("sim0001", "count"),
        ("sim0002", "count"),
    ]
    for scan in scans:
        row = cohort.participants.index(scan.participant)
        counts = read_connectome(scan)
        np.testing.assert_array_equal(counts, counts.T.round())
        np.testing.assert_allclose(
            np.log10(1 + counts[UPPER]), cohort.features["sc"][row], atol=1e-6
        )
        total = read_roi_volumes(scan).sum()
        assert total == pytest.approx(cohort.confounds["roi_volume"][row], rel=1e-6)
        rows = table(beside(scan.path, "count_relmat", "rois_qc"))
        np.testing.assert_array_equal(rows["streamlines"], counts.sum(0))
        values = table(beside(scan.path, "count_relmat", "structural_embedding"))
        np.testing.assert_allclose(
            values.filter(like="dim").to_numpy().ravel(),
            cohort.features["bs_structural"][row],
            rtol=1e-6,
        )


def test_labels_are_a_bids_table_with_what_is_not_known_left_out(written):
    cohort, folder = written
    people = table(folder / "bids" / "participants.tsv")
    assert list(people["participant_id"]) == [f"sub-{label}" for label in cohort.participants]
    assert people["age"].isna().tolist() == [False, True, False]
    assert people["age"][0] == cohort.age[0]
    assert list(people["sex"]) == list(cohort.sex)
    described = json.loads((folder / "bids" / "participants.json").read_text())
    assert described["age"]["Units"] == "year"
    assert set(described["sex"]["Levels"]) == {"F", "M"}
    ratings = table(folder / "bids" / "phenotype" / "rating.tsv")
    assert ratings["rating"].isna().tolist() == [False, True, False]


def test_sidecars_say_what_the_real_writers_say_of_everyone_in_turn(written):
    _, folder = written
    for path in (folder / "out").glob("sub-*/*/*.tsv"):
        document = json.loads(sidecar_of(path).read_text())
        label = path.name.split("_")[0]
        assert label in json.dumps(document["Sources"])
        assert "standin" not in json.dumps(document)
        assert "numpy" in document["SoftwareVersions"]
        if "embedding" in path.name or "similarity" in path.name:
            assert document["Model"]["Name"] == "bsym-sim-v1"
            assert document["ModelDomain"]["Verdict"] == "in domain"
    runs = find_runs(folder / "out")
    settings = {json.dumps(run.sidecar["TimeSeriesSettings"]) for run in runs}
    fingerprints = {run.sidecar["Fingerprint"] for run in runs}
    assert (len(settings), len(fingerprints)) == (1, len(runs))


def test_runs_of_a_person_differ_around_the_persons_features(tmp_path):
    cohort = simulate_recipe("fc", 1, kinds=("fc", "bs_functional"), width=4, n_volumes=30)
    layout = Layout(sessions=("A", "B"), runs=2, state_effect=0.3, decimals=None)
    write_cohort(cohort, tmp_path / "bids", tmp_path / "out", layout)
    runs = find_runs(tmp_path / "out")
    assert [run.session for run in runs] == ["A", "A", "B", "B"]
    for run in runs:
        assert run.sidecar["TaskName"] == "rest"
        own = f"ses-{run.session}/func/sub-sim0001_ses-{run.session}_task-rest_run-"
        assert own + run.entities["run"] in run.sidecar["Sources"][0]
    stem = "stat-mean_desc-denoised_timeseries"
    paths = [beside(run.path, stem, "stat-pearsoncorrelation_relmat") for run in runs]
    edges = np.array([np.arctanh(read_matrix(path)[UPPER]) for path in paths])
    np.testing.assert_allclose(edges.mean(0), cohort.features["fc"][0], atol=5e-6)
    default = np.array(atlas.networks()) == "Default"
    inside = default[UPPER[0]] & default[UPPER[1]]
    effect = edges[2:].mean(0) - edges[:2].mean(0)
    assert effect[inside].mean() == pytest.approx(0.3, abs=0.01)
    assert effect[~inside].mean() == pytest.approx(0, abs=0.01)
    attention = [read_matrix(beside(run.path, stem, "desc-attention_relmat")) for run in runs]
    received = np.array([matrix.sum(0)[default].mean() for matrix in attention])
    assert received[2:].min() > received[:2].max()
    sessions = table(tmp_path / "bids" / "sub-sim0001" / "sub-sim0001_sessions.tsv")
    assert list(sessions["session_id"]) == ["ses-A", "ses-B"]
    assert not find_connectomes(tmp_path / "out")


def test_outputs_of_another_model_can_be_added(tmp_path):
    cohort = simulate_recipe("none", 2, kinds=("bs_functional_mean",), width=4, n_volumes=30)
    for row, model in enumerate(("bsym-sim-v1", "untrained")):
        write_outputs(
            cohort.subset([row]), tmp_path / "bids", tmp_path / "out", Layout(model=model)
        )
    found = sorted((tmp_path / "out").glob("sub-*/func/*functional_embedding.json"))
    documents = [json.loads(path.read_text()) for path in found]
    assert [document["Model"]["Trained"] for document in documents] == [True, False]
    assert documents[1]["ModelDomain"]["Verdict"] == "not trained"


def test_few_decimals_are_written_as_rounded_numbers_are(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((7, 5)) * 10.0 ** rng.integers(-4, 3, (7, 5))
    values[2, 3], values[4, 1] = np.nan, 1234.5678
    names, columns = [f"r{row}" for row in range(7)], list("abcde")
    for decimals in (0, 3, 6):
        Grid(values, columns, {"Node": names}, decimals).write(tmp_path / "quick.tsv")
        rounded = np.round(values, decimals) + 0.0  # no negative zeros
        Matrix(rounded, columns, rows=names).write(tmp_path / "usual.tsv")
        assert (tmp_path / "quick.tsv").read_text() == (tmp_path / "usual.tsv").read_text()
    Grid(values, columns, {"Node": names}, None).write(tmp_path / "quick.tsv")
    Matrix(values, columns, rows=names).write(tmp_path / "usual.tsv")
    assert (tmp_path / "quick.tsv").read_text() == (tmp_path / "usual.tsv").read_text()


def test_files_need_all_rois(tmp_path):
    cohort = simulate_cohort(2, n_rois=40)
    with pytest.raises(UsageError, match="40 ROIs"):
        write_cohort(cohort, tmp_path / "bids", tmp_path / "out")
    assert replace(Layout(), sessions=("A", "B", "C")).position({"ses": "B"}) == 0
