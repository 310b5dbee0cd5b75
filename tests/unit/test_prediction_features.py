"""What outputs become features, and which outputs can be put together."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.connectome import ConnectivityMeasure, vec_to_sym_matrix
from scipy.linalg import eigvalsh
from sklearn.covariance import oas
from threadpoolctl import threadpool_limits
from written_outputs import (
    STUB,
    N,
    correlations,
    square,
    write_run,
    write_scan,
)

from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.errors import BadDataError, InputMissingError, NothingSelectedError
from bsym_bids.inputs.selection import Selection
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.prediction.consistency import check_consistent
from bsym_bids.prediction.features import available_kinds, feature_kinds
from bsym_bids.prediction.inventory import BOLD, DWI, take_inventory
from bsym_bids.prediction.records import Unit
from bsym_bids.prediction.tangent import complete, oas_shrinkage, tangent_features, to_tangent

PAIRS = np.triu_indices(N, 1)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of small decompositions wait for each other on a busy machine."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def read(key, names, *products):
    return feature_kinds()[key].read(tuple(names.path(product) for product in products))


def covariance(draw, size, frames=None):
    series = draw.standard_normal((frames or 3 * size, size))
    return np.cov(series.T)


# --- features -----------------------------------------------------------------------------------


def test_correlations_become_fishers_z(out):
    matrix = correlations(missing=[7])
    matrix[1, 2] = matrix[2, 1] = 1.0
    names = write_run(out, "01", matrix, similarity=matrix)
    vector = read("fc", names, "connectivity")
    assert vector.shape == (101_025,)
    expected = np.arctanh(np.minimum(matrix[PAIRS], 1 - 1e-7))
    np.testing.assert_allclose(vector, expected, rtol=1e-5)
    assert np.isnan(vector).sum() == N - 1
    np.testing.assert_array_equal(read("bs_functional", names, "similarity"), vector)


def test_counts_become_logarithms(out):
    counts = np.random.default_rng(0).poisson(3, (N, N)).astype(float)
    counts += counts.T
    counts[3] = counts[:, 3] = np.nan
    names = write_scan(out, "01", counts)
    vector = read("sc", names, "count")
    np.testing.assert_allclose(vector, np.log10(counts[PAIRS] + 1))
    counts[0, 1] = -1
    square(counts).write(names.path("count"))
    with pytest.raises(BadDataError, match="negative"):
        read("sc", names, "count")


def test_embeddings_are_flattened_by_roi(out):
    values = np.random.default_rng(0).standard_normal((N, 3))
    values[5] = np.nan
    names = write_run(out, "01", embedding=values)
    scan = write_scan(out, "01", embedding=values)
    for vector in (
        read("bs_functional_mean", names, "embedding"),
        read("bs_structural", scan, "structural_embedding"),
    ):
        np.testing.assert_allclose(vector, values.ravel(), rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "name\tnetwork\tdim000\nx\tVis\t1\n", "Node\tA\n1\tB\n", "name\tdim000\n"],
)
def test_a_table_that_is_no_embedding(out, text):
    names = write_run(out, "01", embedding=np.ones((N, 2)))
    names.path("embedding").write_text(text)
    with pytest.raises(BadDataError, match="functional_embedding"):
        read("bs_functional_mean", names, "embedding")


def test_shrinkage_is_scikit_learns():
    for frames in (30, 80, 400):
        draw = np.random.default_rng(frames)
        series = draw.standard_normal((frames, 60)) + draw.standard_normal((frames, 1))
        series = (series - series.mean(0)) / series.std(0)
        shrunk, amount = oas(series)
        correlation = np.corrcoef(series.T)
        assert oas_shrinkage(correlation, frames) == pytest.approx(amount, rel=1e-10)
        mine = (1 - amount) * correlation + amount * np.eye(60)
        np.testing.assert_allclose(mine, shrunk, atol=1e-12)


def test_shrinkage_of_nothing_in_common_is_complete():
    assert oas_shrinkage(np.eye(5), 100) == 1


def test_the_tangent_is_nilearns():
    draw = np.random.default_rng(1)
    reference, matrix = covariance(draw, 12), covariance(draw, 12)
    measure = ConnectivityMeasure(kind="tangent", vectorize=True, standardize=False)
    measure.fit([draw.standard_normal((50, 12)) for _ in range(3)])
    values, vectors = np.linalg.eigh(reference)
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    measure.mean_, measure.whitening_ = reference, whitening
    people = [draw.standard_normal((200, 12)) @ np.linalg.cholesky(matrix).T for _ in range(2)]
    for series, vector in zip(people, measure.transform(people), strict=True):
        given = measure.cov_estimator_.fit(series - series.mean(0)).covariance_
        expected = vec_to_sym_matrix(vector)
        np.testing.assert_allclose(to_tangent(given, whitening), expected, atol=1e-10)


def test_tangent_features_are_the_logarithm_at_the_average_of_others(out):
    matrix = correlations(frames=120)
    names = write_run(out, "01", matrix, freedom=90)
    vector = read("fc_tangent", names, "connectivity", "run_quality")
    assert vector.shape == (101_475,)
    amount = oas_shrinkage(matrix, 90)
    shrunk = (1 - amount) * matrix + amount * np.eye(N)
    # The eigenvalues of G^-1 C are those of the whitened matrix.
    ratios = eigvalsh(shrunk, group_functional_connectivity())
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(np.log(ratios)), rel=1e-5)
    assert vector[N * (N - 1) // 2 :].sum() == pytest.approx(np.log(ratios).sum(), rel=1e-4)


def test_the_average_itself_is_the_origin():
    vector = tangent_features(np.array(group_functional_connectivity()), 1e12)
    np.testing.assert_allclose(vector, 0, atol=1e-8)


def test_missing_rois_are_missing_in_the_tangent():
    matrix = correlations(missing=[0, 449], frames=700)
    vector = tangent_features(matrix, 600)
    edges, diagonal = np.split(vector, [N * (N - 1) // 2])
    assert np.flatnonzero(np.isnan(diagonal)).tolist() == [0, 449]
    missing = np.isin(PAIRS, [0, 449]).any(axis=0)
    np.testing.assert_array_equal(np.isnan(edges), missing)
    # The others hardly change by it: not by how much people differ.
    whole = tangent_features(correlations(frames=700), 600)
    other = tangent_features(correlations(seed=1, frames=700), 600)
    known = ~np.isnan(vector)
    lost, differ = (np.linalg.norm((whole - x)[known]) for x in (vector, other))
    assert lost < differ / 5
    assert np.isnan(tangent_features(np.full((N, N), np.nan), 5)).all()


def test_a_matrix_with_single_gaps_or_without_samples_has_no_tangent():
    matrix = correlations()
    with pytest.raises(BadDataError, match="degrees of freedom"):
        tangent_features(matrix, np.nan)
    matrix[3, 4] = np.nan
    with pytest.raises(BadDataError, match="single cells"):
        tangent_features(matrix, 10)


@given(seed=st.integers(0, 999), n_absent=st.integers(1, 7), strength=st.floats(0.01, 30))
@settings(max_examples=40, deadline=None)
def test_what_is_filled_in_adds_no_distance(seed, n_absent, strength):
    draw = np.random.default_rng(seed)
    reference, given = covariance(draw, 8, 12), strength * covariance(draw, 8, 12)
    present = draw.permutation(8) >= n_absent
    filled = complete(given, present, reference)
    inside = np.ix_(present, present)
    np.testing.assert_allclose(filled[inside], given[inside])

    def distance(matrix, origin):
        return np.linalg.norm(np.log(eigvalsh(matrix, origin)))

    assert np.linalg.eigvalsh(filled).min() > 0
    expected = distance(given[inside], reference[inside])
    assert distance(filled, reference) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(complete(reference, present, reference), reference, atol=1e-10)


# --- inventory ----------------------------------------------------------------------------------


def test_everything_is_found(out):
    write_run(out, "02", STUB, ses="b", run="1", embedding=STUB)
    write_run(out, "02", STUB, ses="a", task="movie")
    write_run(out, "01", STUB, similarity=STUB)
    write_scan(out, "03", STUB, embedding=STUB)
    inventory = take_inventory(out)
    assert inventory.participants == ("01", "02", "03")
    assert inventory.sessions == ("a", "b") and inventory.tasks == ("movie", "rest")
    assert [(r.participant, r.session, r.task) for r in inventory.of_modality(BOLD)] == [
        ("01", "", "rest"),
        ("02", "a", "movie"),
        ("02", "b", "rest"),
    ]
    run = inventory.records[2]
    assert set(run.files) == {
        "denoised",
        "connectivity",
        "run_quality",
        "embedding",
        "window_embeddings",
    }
    assert run.model_domain == "in domain" and inventory.records[0].model_domain == "in domain"
    (scan,) = inventory.of_modality(DWI)
    assert set(scan.files) == {"count", "structural_embedding"}
    assert all(path.is_file() for r in inventory.records for path in r.files.values())
    assert inventory.model["Name"] == "tiny" and not inventory.model_warning
    assert [kind.key for kind in available_kinds(inventory)] == [
        "fc",
        "fc_tangent",
        "sc",
        "bs_functional_mean",
        "bs_functional",
        "bs_structural",
    ]
    assert not inventory.warnings and check_consistent(inventory) == ()


def test_each_sidecar_is_read_once(out, monkeypatch):
    write_run(out, "01", STUB, embedding=STUB, similarity=STUB)
    write_scan(out, "01", STUB, embedding=STUB)
    loads, texts = json.loads, []
    monkeypatch.setattr(json, "loads", lambda text, **how: texts.append(text) or loads(text, **how))
    check_consistent(take_inventory(out))
    assert len(texts) == 7  # all but the one of the table of quality


def test_incomplete_and_unreadable_outputs_are_left_out(out):
    names = write_run(out, "01", STUB, embedding=STUB)
    sidecar_of(names.path("connectivity")).unlink()
    sidecar_of(names.path("embedding")).write_text("{")
    gone = write_run(out, "02", STUB)
    sidecar_of(gone.path("denoised")).unlink()
    scan = write_scan(out, "03", STUB)
    sidecar_of(scan.path("count")).unlink()
    inventory = take_inventory(out)
    (run,) = inventory.records
    assert set(run.files) == {"denoised", "run_quality", "window_embeddings"}
    for path in (
        names.path("connectivity"),
        sidecar_of(names.path("embedding")),
        gone.path("denoised"),
        scan.path("count"),
    ):
        assert any(path.name in warning for warning in inventory.warnings)
    assert len(inventory.warnings) == 4


def test_selection(out):
    for sub in ("01", "02"):
        for ses in ("a", "b"):
            for task in ("rest", "movie"):
                write_run(out, sub, ses=ses, task=task, run="01")
        write_scan(out, sub, STUB, ses="a")
    chosen = take_inventory(
        out, Selection(participants=("02",), sessions=("a",), tasks=("rest",), runs=("1",))
    )
    assert [r.label for r in chosen.records] == [
        "sub-02_ses-a_task-rest_run-01_space-MNI152NLin6Asym",
        "sub-02_ses-a",
    ]
    assert take_inventory(out, Selection(sessions=("b",))).of_modality(DWI) == ()
    for wrong in (Selection(participants=("03",)), Selection(tasks=("rst",))):
        with pytest.raises(NothingSelectedError):
            take_inventory(out, wrong)
    with pytest.raises(InputMissingError):
        take_inventory(out / "none")


def test_a_run_in_two_spaces_counts_once_in_the_commoner_one(out):
    write_run(out, "01", space="fsLR")
    write_run(out, "02", space="fsLR")
    write_run(out, "02", space="MNI152NLin2009cAsym")
    inventory = take_inventory(out)
    assert ["fsLR" in record.label for record in inventory.records] == [True, True]
    assert any("fsLR" in warning for warning in inventory.warnings)


def test_what_belongs_to_a_unit(out):
    for ses in ("a", "b"):
        write_run(out, "01", ses=ses)
        write_run(out, "01", ses=ses, task="movie")
    for ses in ("a", "c"):
        write_scan(out, "01", STUB, ses=ses)
    inventory = take_inventory(out)

    def found(modality, **unit):
        records = inventory.of_unit(Unit("01", **unit), modality)
        return [f"{record.session}{record.task[:1]}" for record in records]

    assert found(BOLD) == ["am", "ar", "bm", "br"] and found(DWI) == ["a", "c"]
    assert found(BOLD, session="b") == ["bm", "br"]
    assert found(DWI, session="c") == ["c"]
    assert found(DWI, session="b") == ["a"]  # a connectome changes little
    assert found(BOLD, session="c") == []
    assert found(BOLD, state="task-movie") == ["am", "bm"]
    assert found(BOLD, session="a", state="task-movie") == ["am"]
    assert found(BOLD, state="ses-b") == ["bm", "br"]
    assert found(DWI, state="ses-b") == [] and found(DWI, state="task-movie") == []
    assert inventory.of_unit(Unit("02"), BOLD) == ()
    with pytest.raises(ValueError, match="neither"):
        found(BOLD, state="placebo")


# --- mixed outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "other"),
    [
        ("TimeSeriesSettings.HighPass", "0.02", "0.01"),
        ("TimeSeriesSettings.NuisanceStrategy.name", "36p", "none"),
        ("EmbeddingSettings.Seed", "5", "0"),
        ("EmbeddingSettings.Scaling", "zscore", "not stated"),
        ("Model.Fingerprint", "eeee", "ffff"),
        ("Model.Name", "large", "tiny"),
    ],
)
def test_runs_that_were_made_otherwise_are_refused(out, setting, value, other):
    for sub in ("01", "02", "03"):
        number = json.loads(value) if value[0].isdigit() and "." in value else value
        one = {setting: number} if sub == "03" else {}
        write_run(out, sub, STUB, embedding=STUB, settings=one)
    with pytest.raises(BadDataError) as raised:
        check_consistent(take_inventory(out))
    assert raised.value.exit_code == 65 and raised.value.hint
    (line,) = [line for line in str(raised.value).splitlines() if line.strip().startswith(setting)]
    assert value in line and "(1 participant, such as sub-03)" in line
    assert other in line and "(2 participants, such as sub-01)" in line


def test_scans_and_runs_of_different_models_are_refused(out):
    write_run(out, "01", embedding=STUB)
    write_scan(out, "01", STUB, embedding=STUB, settings={"Model.Fingerprint": "0" * 64})
    with pytest.raises(BadDataError, match=r"Model\.Fingerprint: "):
        check_consistent(take_inventory(out))
    # What is not used does not matter.
    assert check_consistent(take_inventory(out), {"embedding"}) == ()


def test_connectomes_of_other_settings_are_refused(out):
    for sub, seed in (("01", 0), ("02", 1)):
        write_scan(out, sub, STUB, settings={"ConnectomeSettings.Seed": seed})
    with pytest.raises(BadDataError, match=r"ConnectomeSettings\.Seed: 0 \(1.*sub-01\), 1 \(1.*02"):
        check_consistent(take_inventory(out))


def test_what_may_differ(out):
    write_run(out, "01", STUB)
    write_run(out, "02", STUB, task="movie", settings={"RepetitionTime": 0.8})
    words = {"TimeSeriesSettings.NuisanceStrategy.description": "nothing at all"}
    write_run(out, "03", STUB, settings=words)
    assert check_consistent(take_inventory(out)) == ()
    write_run(out, "04", STUB, settings={"SoftwareVersions.numpy": "2.1"})
    write_scan(out, "01", STUB)
    tools = {"ConnectomeSettings.EngineVersion": "1.13", "Preprocessing.Denoising.Tool": "MRtrix3"}
    write_scan(out, "02", STUB, settings=tools)
    warnings = "\n".join(check_consistent(take_inventory(out)))
    assert "numpy: 2.0 (3 participants, such as sub-01), 2.1 (1 participant, such as sub-04)" in (
        warnings
    )
    assert "EngineVersion: 1.12" in warnings and "Denoising.Tool" in warnings
    assert len(warnings.splitlines()) == 3


def test_many_differences_are_told_in_few_lines(out):
    for sub in range(9):
        many = {f"TimeSeriesSettings.x{key}": sub for key in range(20)}
        write_run(out, f"{sub:02d}", settings=many)
    with pytest.raises(BadDataError) as raised:
        check_consistent(take_inventory(out))
    lines = str(raised.value).splitlines()
    assert len(lines) == 10 and lines[-1].strip() == "and 12 more settings"
    assert "and 4 more values" in lines[1]
