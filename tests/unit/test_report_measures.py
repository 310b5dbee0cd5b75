"""Quality numbers: those of the files, n/a where there are none, and no file read twice."""

import json
import math
import os

import numpy as np
import pandas as pd
import pytest
from test_docs import write_participant_files

from bsym_bids import atlas
from bsym_bids.outputs.names import RunNames, ScanNames, sidecar_of
from bsym_bids.outputs.tables import Json, Table
from bsym_bids.reports import measures as measuring
from bsym_bids.reports.lights import AMBER, DATA, lights_of, overall
from bsym_bids.reports.measures import (
    BOLD,
    DWI,
    find_participants,
    measure_all,
    measure_participant,
    measures,
    measures_of,
    robust_limits,
    spreads,
)

SPACE = "MNI152NLin6Asym"
N = atlas.N_ROIS
RUN = {
    "n_volumes": 300,
    "repetition_time": 2.0,
    "duration": 600.0,
    "fd_mean": 0.1234567,
    "fd_max": 1.5,
    "n_censored": 60,
    "percent_censored": 20.0,
    "n_regressors": 26,
    "degrees_of_freedom": 180,
    "n_rois": 445,
    "tsnr_median": 98.5,
    "fc_mean_absolute": 0.21,
    "fd_dvars_correlation_raw": 0.4,
    "fd_dvars_correlation_cleaned": -0.05,
    "fd_global_change_correlation_raw": 0.3,
    "fd_global_change_correlation_cleaned": None,
}
SCORES = {
    f"{way}{score}": value
    for way, values in (
        ("", (0.5, 0.7, 0.4)),
        ("permuted_", (0.03, 0.3, 0.6)),
        ("linear_", (0.45, 0.68, 0.42)),
        ("linear_permuted_", (-0.1, 0.2, 0.61)),
    )
    for score, value in zip(("r2", "rho", "mae"), values, strict=True)
}
OF_RUN = {
    "SpatialReference": SPACE,
    "TimeSeriesSettings": {
        "ParcelMethod": "mean",
        "FDThreshold": 0.5,
        "NuisanceStrategy": {"name": "36p"},
    },
}
OF_MODEL = {
    "Model": {"Name": "tiny", "Trained": True},
    "ModelDomain": {"Verdict": "in domain", "Reason": "gain 0.47, beside 0.45"},
    "ModelContractDeviations": [],
    "WindowOnsets": [0.0, 80.0, 160.0],
    "WindowsLeftOut": 1,
    "MissingROIs": ["a", "b"],
}
SCAN = {
    "streamlines": 260000,
    "assigned": 200000,
    "assigned_share": 0.7692308,
    "sampling_reliability": 0.951,
    "density": 0.38,
    "absent_rois": 3,
    "rois_without_streamlines": 2,
    "mean_length": 95.3,
    "registration": "good",
    "mean_translation": 0.4,
    "mean_rotation": 0.3,
    "gradient_check": "none",
}
OF_SCAN = {
    "SpatialReference": "orig",
    "ConnectomeSettings": {"Engine": "mrtrix3", "Preset": {"name": "fast"}},
    "Preprocessing": {
        "NumberOfVolumesByB": {"1000": 64, "0": 6, "5": 1},
        "NumberOfVolumesLeftOut": 1,
        "MotionCorrection": {"Tool": "dwifslpreproc", "MeanFramewiseDisplacementMm": 0.45,
                             "SusceptibilityCorrected": True},
        "SignalToNoiseB0": 31.5,
        "GradientCheck": {"Ratio": 1.02},
    },
    "Anatomy": {"RegistrationQuality": {"MaskDice": 0.97, "Folded": None}, "ROIsCut": ["a"]},
    "FibreOrientations": {"Directions": 64},
    "Tracking": {"SamplingRule": {"StoppedBy": "reliability"}},
    "Notes": ["FSL is not there."],
}  # fmt: skip
EDGES = {
    f"{population}{way}{score}": 0.1 * (1 + place)
    for population in ("", "edges_")
    for place, way in enumerate(("", "permuted_", "group_"))
    for score in ("r2", "rho", "mae")
}


def put(path, content, sidecar):
    path.parent.mkdir(parents=True, exist_ok=True)
    content.write(path)
    Json(sidecar).write(sidecar_of(path))
    return path


def row(values):
    return Table({key: [value] for key, value in values.items()})


def coverage(left_out=()):
    included = np.ones(N, dtype=bool)
    included[list(left_out)] = False
    return Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "coverage": np.where(included, 0.95, 0.2),
            "n_voxels": np.full(N, 9),
            "n_voxels_expected": np.full(N, 10),
            "included": included,
        }
    )


def write_run(out, sub, *, ses=None, task="rest", left_out=(), quality=(), scores=(), model=()):
    """Write the quality files of a BOLD run, with changes; return its names."""
    entities = {"sub": sub, "ses": ses, "task": task}
    names = RunNames(out, {key: value for key, value in entities.items() if value}, SPACE)
    of_model = {**OF_MODEL, **dict(model)}
    put(names.path("run_quality"), row({**RUN, **dict(quality)}), OF_RUN)
    put(names.path("coverage"), coverage(left_out), OF_RUN)
    displacement = np.array([0.0, 0.1, 0.2, 0.3, 0.9])
    censoring = Table({"framewise_displacement": displacement, "censored": displacement > 0.5})
    put(names.path("censoring"), censoring, OF_RUN)
    own = {**SCORES, **dict(scores)}
    table = {"network": ["Vis", "all"], "n_rois": [60, 445]}
    table |= {key: [-1.0, value] for key, value in own.items()}
    put(names.path("reconstruction_networks"), Table(table), of_model)
    gate = Table({"name": atlas.roi_names(), "network": atlas.networks(), "gate": np.full(N, 0.6)})
    put(names.path("gate"), gate, OF_RUN)
    names.path("denoised").touch()
    Json(of_model).write(sidecar_of(names.path("embedding")))
    return names


def write_scan(out, sub, *, ses=None, quality=(), sidecar=(), model=(), edges=()):
    """Write the quality files of a diffusion scan, with changes; return its names."""
    names = ScanNames(out, {"sub": sub, **({"ses": ses} if ses else {})})
    document = {**OF_SCAN, **dict(sidecar)}
    put(names.path("scan_quality"), row({**SCAN, **dict(quality)}), document)
    volume = np.arange(N, dtype=float)
    rois = {"name": atlas.roi_names(), "network": atlas.networks(), "volume": volume}
    rois |= {"streamlines": np.where(volume < 3, 0, 9), "present": volume > 0}
    put(names.path("rois"), Table(rois), document)
    of_model = {**OF_MODEL, "DepthFactor": 2.5, **dict(model)}
    put(names.path("edge_quality"), row({"n_edges": 39000, **EDGES, **dict(edges)}), of_model)
    names.path("count").touch()
    Json(of_model).write(sidecar_of(names.path("structural_embedding")))
    return names


def one(out, label="01"):
    (found,) = measure_participant(out, label)
    return found


def known(series):
    """Return the measures that a series has a value of."""
    missing = ("n/a", None)
    return {
        key: value
        for key, value in series.values.items()
        if value not in missing and value == value
    }


def test_numbers_of_a_run_are_those_of_its_files(tmp_path):
    write_run(tmp_path, "01", ses="a", left_out=[0, 1, 2])
    series = one(tmp_path)
    assert (series.participant, series.session, series.modality) == ("01", "a", BOLD)
    assert series.series == f"sub-01_ses-a_task-rest_space-{SPACE}"
    assert not series.problems
    for key, value in RUN.items():
        if value is not None:
            assert series.number(key) == value, key
    assert math.isnan(series.number("fd_global_change_correlation_cleaned"))
    for key, value in SCORES.items():
        assert series.number(f"reconstruction_{key}") == value, key
    assert series.number("reconstruction_rois") == 445
    networks = pd.Series(atlas.networks())
    lowest = 100 * (1 - 3 / (networks == networks[0]).sum())
    for key, value in {
        "minutes_kept": 8.0,
        "missing_rois": 5,
        "percent_fd_above_0_2": 40.0,
        "percent_rois_included": 100 * 447 / 450,
        "coverage_mean": 95 - 75 * 3 / 450,
        "network_included_lowest": lowest,
        "gate_mean": 0.6,
        "windows": 3,
        "windows_left_out": 1,
        "model_missing_rois": 2,
        "contract_deviations": 0,
        "reconstruction_gain": 0.47,
        "reconstruction_over_linear": 0.05,
        "fd_threshold": 0.5,
    }.items():
        assert series.number(key) == pytest.approx(value), key
    texts = {"network_lowest": networks[0], "space": SPACE, "nuisance_strategy": "36p"}
    texts |= {"model": "tiny", "model_domain": "in domain", "parcel_method": "mean"}
    assert {key: series.text(key) for key in texts} == texts
    assert series.text("model_warning") == "" and series.values["model_warning"] == "n/a"


def test_numbers_of_a_scan_are_those_of_its_files(tmp_path):
    write_scan(tmp_path, "01")
    series = one(tmp_path)
    assert (series.session, series.modality, series.series) == (None, DWI, "sub-01_dwi")
    assert not series.problems
    for key, value in SCAN.items():
        key = "missing_rois" if key == "absent_rois" else key
        assert series.values[key] == value, key
    for key, value in EDGES.items():
        name = f"present_{key}" if key.startswith("edges_") else f"edges_{key}"
        assert series.number(name) == pytest.approx(value), key
    for key, value in {
        "n_volumes": 71,
        "n_b0": 7,
        "volumes_left_out": 1,
        "fd_mean": 0.45,
        "snr_b0": 31.5,
        "gradient_ratio": 1.02,
        "mask_dice": 0.97,
        "directions": 64,
        "rois_cut": 1,
        "depth_factor": 2.5,
        "roi_volume_median": 225,
        "edges_gain": -0.1,
        "edges_over_group": -0.2,
    }.items():
        assert series.number(key) == pytest.approx(value), key
    assert series.number("network_connected_lowest") < 100
    texts = {"shells": "0: 6, 5: 1, 1000: 64", "engine": "mrtrix3", "preset": "fast"}
    texts |= {"susceptibility_corrected": "true", "sampling_stopped_by": "reliability"}
    assert {key: series.text(key) for key in texts} == texts
    assert math.isnan(series.number("folded")) and not series.text("registration_reason")


def test_what_is_poor_about_a_registration_is_said(tmp_path):
    note = "Registration is flagged as poor: masks overlap little (0.79). Look at the atlas first."
    write_scan(tmp_path, "01", sidecar={"Notes": ["x", note]})
    assert one(tmp_path).text("registration_reason") == "masks overlap little (0.79)"


@pytest.fixture(scope="module")
def really_written(tmp_path_factory):
    return write_participant_files(tmp_path_factory.mktemp("written"))


def test_all_that_the_writers_write_is_found(really_written):
    """Tables, columns and keys of the sidecars have the names that the data file has."""
    run, scan = measure_participant(really_written, "01")
    assert run.series == "sub-01_ses-1_task-rest_space-fsLR_res-2_den-91k"
    assert scan.series == "sub-01_ses-1_space-ACPC_dwi"
    assert not run.problems and not scan.problems
    for series, folder in ((run, "ses-1/func"), (scan, "ses-1/dwi")):
        tables = {
            path.name: pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)
            for path in (really_written / "sub-01" / folder).glob("*_qc.tsv")
        }
        for measure in measures_of(series.modality):
            source = measure.source[series.modality]
            if "table" not in source:
                continue
            name = {
                "run_quality": "run",
                "reconstruction_networks": "reconstructionnetworks",
                "scan_quality": "scan",
                "edge_quality": "edges",
            }[source["table"]]
            (table,) = (t for path, t in tables.items() if path.endswith(f"_desc-{name}_qc.tsv"))
            table = table[table["network"] == "all"] if "network" in table else table
            value = table[source.get("column", measure.key)].iloc[0]
            if pd.isna(value):
                assert measure.key not in known(series), measure.key
            elif measure.is_text:
                assert series.text(measure.key) == str(value), measure.key
            else:
                assert series.number(measure.key) == pytest.approx(value), measure.key
    assert {"model_domain", "model", "windows", "coverage_mean", "gate_mean"} <= known(run).keys()
    assert {"model_domain", "engine", "preset", "depth_factor"} <= known(scan).keys()
    assert run.text("model_domain") == scan.text("model_domain") == "not trained"


def test_what_is_not_there_is_not_available(tmp_path):
    names = RunNames(tmp_path, {"sub": "01", "task": "rest"}, SPACE)
    put(names.path("denoised"), Table({"x": [1.0]}), {})
    series = one(tmp_path)
    assert not known(series)
    assert [said.partition(": ")[2] for said in series.problems] == [
        "there is no file of: quality of the run",
        "there is no file of: how much of each ROI was measured",
    ]
    assert series.values.keys() == {measure.key for measure in measures_of(BOLD)}
    (tmp_path / "sub-02").mkdir()
    assert measure_participant(tmp_path, "02") == measure_participant(tmp_path, "03") == []


@pytest.mark.parametrize(
    ("product", "damage", "said", "lost", "kept"),
    [
        ("run_quality", b"", "cannot be read as a table", "fd_mean", "coverage_mean"),
        ("run_quality", b"fd_mean\n0.1\n0.2\n", "2 rows instead of one", "fd_mean", "windows"),
        ("run_quality", b"fd_mean\tn_rois\n0.1\n", "cannot be read", "fd_mean", "windows"),
        ("run_quality", b"fd_mean\nmuch\n", "'much' instead of a number", "fd_mean", "windows"),
        ("run_quality", b"fd_mean\n\xff\n", "cannot be read", "fd_mean", "windows"),
        ("run_quality", b"fd_mean\ninf\n", "'inf' instead of a number", "fd_mean", "windows"),
        ("run_quality", b"x\n1\n", "", "fd_mean", "windows"),
        ("reconstruction_networks", b"network\tr2\nVis\t1\n", "0 rows", "reconstruction_r2",
         "fd_mean"),
        ("coverage", b"name\n", "it has no rows", "coverage_mean", "fd_mean"),
        ("censoring", None, "its table is not there", "percent_fd_above_0_2", "fd_mean"),
    ],
)  # fmt: skip
def test_a_broken_table_is_a_problem_of_its_series(tmp_path, product, damage, said, lost, kept):
    path = write_run(tmp_path, "01").path(product)
    path.unlink() if damage is None else path.write_bytes(damage)
    series = one(tmp_path)
    assert math.isnan(series.number(lost)) and not math.isnan(series.number(kept))
    assert len(series.problems) == bool(said)
    assert all(said in problem and "sub-01/func/" in problem for problem in series.problems)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff", b"null", b"[" * 100_000])
def test_a_broken_sidecar_is_a_problem_of_its_series(tmp_path, damage):
    names = write_run(tmp_path, "01")
    path = names.path("reconstruction_networks")
    Json({}).write(sidecar_of(names.path("embedding")))
    sidecar_of(path).write_bytes(damage)
    series = one(tmp_path)
    assert not series.text("model_domain") and series.number("reconstruction_r2") == 0.5
    assert len(series.problems) == 1 and sidecar_of(path).name in series.problems[0]


@pytest.mark.parametrize(
    ("write", "product", "said"),
    [
        (write_run, "denoised", "series after cleaning"),
        (write_run, "embedding", "mean embedding of each ROI"),
        (write_scan, "count", "streamlines"),
        (write_scan, "structural_embedding", "structural embedding of each ROI"),
    ],
)
def test_what_should_be_there_is_a_problem_of_its_series(tmp_path, write, product, said):
    path = write(tmp_path, "01").path(product)
    assert not one(tmp_path).problems
    for own in (path, sidecar_of(path)):
        own.unlink(missing_ok=True)
    (problem,) = one(tmp_path).problems
    assert problem.endswith(f"there is no file of: {said}")
    assert overall(lights_of(one(tmp_path)), DATA).colour == AMBER


@pytest.mark.parametrize("value", [3, "x", ["a"], None, {"Verdict": {"a": [1]}}, {"Verdict": True}])
def test_sidecars_may_hold_anything(tmp_path, value):
    keys = ("ModelDomain", "ModelContractDeviations", "WindowOnsets", "Model", "WindowsLeftOut")
    write_run(tmp_path, "01", model=dict.fromkeys(keys, value))
    odd = {"Preprocessing": {"NumberOfVolumesByB": value, "MotionCorrection": value}}
    write_scan(tmp_path, "01", sidecar={**odd, "Notes": value, "Anatomy": value})
    run, scan = measure_participant(tmp_path, "01")
    for series in (run, scan):
        for measure in measures_of(series.modality):
            assert isinstance(series.values[measure.key], str if measure.is_text else float)
    json.dumps([known(run), known(scan)], allow_nan=False)


def test_a_table_without_a_sidecar_is_not_complete(tmp_path):
    path = write_run(tmp_path, "01").path("run_quality")
    sidecar_of(path).unlink()
    series = one(tmp_path)
    assert math.isnan(series.number("fd_mean"))
    assert any("no sidecar: not complete" in problem for problem in series.problems)


def test_a_link_to_nothing_is_a_problem_of_its_series(tmp_path):
    path = write_run(tmp_path, "01").path("run_quality")
    path.unlink()
    path.symlink_to(tmp_path / "annex")
    series = one(tmp_path)
    assert len(series.problems) == 1 and "No such file" in series.problems[0]
    assert series.number("windows") == 3


def test_verdicts_are_there_without_the_scores(tmp_path):
    names = write_run(tmp_path, "01")
    path = names.path("reconstruction_networks")
    path.unlink()
    sidecar_of(path).unlink()
    put(names.path("embedding"), Table({"x": [1.0]}), {"ModelDomain": {"Verdict": "doubtful"}})
    assert one(tmp_path).text("model_domain") == "doubtful"


def test_other_files_and_cohort_scaling_are_left_alone(tmp_path):
    names = write_run(tmp_path, "01")
    folder = names.folder
    for name in (
        "sub-01_task-rest_desc-run_qc.tsv",
        "sub-01_task-rest_atlas-Other_scale-450_desc-run_qc.tsv",
        f"{names.stem}_desc-reconstructionnetworkscohort_qc.tsv",
        ".hidden.part",
    ):
        (folder / name).write_text("x")
    assert len(measure_participant(tmp_path, "01")) == 1
    assert not one(tmp_path).problems


def test_participants_are_folders(tmp_path):
    for name in ("sub-2", "sub-10", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub-2.html").touch()
    assert find_participants(tmp_path) == ["10", "2"]


def test_series_are_in_order(tmp_path):
    write_scan(tmp_path, "01")
    for task in ("b", "a"):
        write_run(tmp_path, "01", task=task)
    found = [series.series for series in measure_participant(tmp_path, "01")]
    runs = [f"sub-01_task-{task}_space-{SPACE}" for task in "ab"]
    assert found == [*runs, "sub-01_dwi"]


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    read = []
    real = measuring.measure_files
    monkeypatch.setattr(
        measuring,
        "measure_files",
        lambda out, files: read.append(files[0].path) or real(out, files),
    )
    for label in ("01", "02", "03"):
        write_run(tmp_path, label)
        write_scan(tmp_path, label)
    first, kept = measure_all(tmp_path, {})
    assert len(read) == 3 and len(first) == 6
    read.clear()
    kept = json.loads(json.dumps(kept, allow_nan=False))
    again, same = measure_all(tmp_path, kept)
    assert not read and same == kept
    assert [known(series) for series in again] == [known(series) for series in first]
    # A change of size, of time, a new file, and one that went.
    path = write_run(tmp_path, "02").path("run_quality")
    path.write_text(path.read_text().replace("0.1234567", "0.2"))
    os.utime(path, ns=(1, 1))
    changed, kept = measure_all(tmp_path, kept)
    assert len(read) == 1 and "sub-02" in read[0]
    assert [x.number("fd_mean") for x in changed if x.participant == "02"] == [0.2, 0.45]
    read.clear()
    sidecar_of(path).unlink()
    changed, kept = measure_all(tmp_path, kept)
    assert len(read) == 1 and any(x.problems for x in changed)
    # Matrices are not looked at.
    write_run(tmp_path, "03").path("connectivity").write_text("x")
    read.clear()
    _, kept = measure_all(tmp_path, kept)
    (tmp_path / "sub-03" / "func" / "other.txt").touch()
    read.clear()
    measure_all(tmp_path, kept)
    assert not read
    for path in sorted((tmp_path / "sub-01").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "sub-01").rmdir()
    left, kept = measure_all(tmp_path, kept)
    assert {series.participant for series in left} == {"02", "03"} == kept["participants"].keys()


@pytest.mark.parametrize(
    "kept",
    [
        {"version": "x", "participants": {"01": None}},
        {"version": None},
        {"participants": []},
        {"version": measuring._version(), "participants": {"01": {"files": [], "series": [[1]]}}},
        {"version": measuring._version(), "participants": {"01": 3}},
        {"version": measuring._version(), "participants": 3},
    ],
)
def test_what_was_kept_otherwise_is_not_used(tmp_path, kept):
    write_run(tmp_path, "01")
    (series,), _ = measure_all(tmp_path, kept)
    assert series.number("fd_mean") == RUN["fd_mean"]


def test_every_measure_is_declared_in_full():
    kinds = {"higher", "lower", "none"}
    for measure in measures().values():
        assert measure.title and measure.description.endswith("."), measure.key
        assert measure.worse in kinds and measure.show in ("table", "plot", "more"), measure.key
        assert measure.modality in (BOLD, DWI, "both") and measure.decimals >= 0
        assert set(measure.source) == {m for m in (BOLD, DWI) if measure.is_of(m)}
        assert not (measure.is_text and measure.worse != "none"), measure.key
        assert not (measure.is_text and measure.unit), measure.key
    titles = [measure.titled for measure in measures().values()]
    assert len(set(titles)) == len(titles)


def test_robust_limits_are_those_of_the_rule():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])
    middle, mad = 5.5, 2.5
    assert robust_limits(values) == pytest.approx(
        (middle - 3 * 1.4826 * mad, middle + 3 * 1.4826 * mad)
    )
    assert np.isnan(robust_limits(values[:9])).all()
    assert np.isnan(robust_limits(np.array([1.0] * 6 + [2.0] * 5))).all()


def test_spreads_are_of_what_differs(tmp_path):
    for number in range(12):
        fd = 0.1 + 0.01 * number + 5 * (number == 11)
        write_run(tmp_path, f"{number:02d}", quality={"fd_mean": fd})
    series, _ = measure_all(tmp_path, {})
    (spread,) = spreads(series)
    assert spread.measure.key == "fd_mean" and len(spread.values) == 12
    assert [spread.series[place].participant for place in spread.outside] == ["11"]
    assert spread.is_poor(5.2) and not spread.is_poor(0.1) and not spread.is_poor(-5.0)
