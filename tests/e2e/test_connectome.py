"""From a diffusion series with known connections to connectomes and embeddings, by the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import participant_level

from bsym_bids import atlas
from bsym_bids.outputs.names import fusion_products, products, scan_products, sidecar_of
from bsym_bids.simulation.diffusion import make_phantom, score_connectome
from bsym_bids.simulation.diffusion_files import write_phantom
from tests.dataset_checks import (
    assert_columns_are_described,
    assert_sources_resolve,
    assert_strictly_valid,
)
from tests.page_checks import check_page

SUB = "03"  # has a BOLD run too
DIPY = ("--engine", "dipy", "--preset", "fast", "--participant-label", SUB)
DWI_ALONE = ("--modalities", "dwi")


@pytest.fixture(scope="module")
def bids(dataset, tmp_path_factory) -> Path:
    """A participant with a BOLD run and a series as QSIPrep makes it, all directions of a shell."""
    bids = tmp_path_factory.mktemp("connectome") / "bids"
    shutil.copytree(dataset, bids)
    # A high b-value does with few voxels and streamlines.
    phantom = make_phantom(
        0,
        voxel_mm=3.5,
        t1w_mm=2.0,
        shells=((0, 2), (2500, 30)),
        rotation=(0, 0, 0),
        motion=0,
        bias=0,
    )
    write_phantom(phantom, bids, SUB, derivatives="qsiprep")
    return bids


@pytest.fixture(scope="module")
def by_dipy(bids, tmp_path_factory):
    out = tmp_path_factory.mktemp("dipy") / "out"
    return out, participant_level(bids, out, *DIPY, "--nprocs", "2", reports=True)


def matrix(out: Path, desc: str) -> np.ndarray:
    (path,) = out.glob(f"sub-{SUB}/**/*_desc-{desc}_relmat.tsv")
    table = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False, index_col="Node")
    assert list(table.index) == list(table.columns) == list(atlas.roi_names())
    return table.to_numpy(np.float64)


def sidecar(out: Path, desc: str) -> dict:
    (path,) = out.glob(f"sub-{SUB}/**/*_desc-{desc}_relmat.json")
    return json.loads(path.read_text())


def assert_recovered(out: Path, bids: Path, desc: str) -> None:
    truth = np.load(bids / "sourcedata" / "simulation" / f"sub-{SUB}_dwi_truth.npz")["weights"]
    score = score_connectome(np.nan_to_num(matrix(out, desc)), truth)
    assert score.auc >= 0.9 and score.r >= 0.7, score


def test_every_product_of_both_modalities_is_there(by_dipy, bids):
    out, result = by_dipy
    assert result.code == 0, result.err
    keys = set(scan_products()) - {"sift2", "tractogram"}
    of_the_run = set(products()) - {"mean_bold"}  # grayordinates
    data = [path for path in out.glob(f"sub-{SUB}/**/*") if path.suffix in (".tsv", ".npz", ".gz")]
    assert len(data) == len(keys) + len(of_the_run) + len(fusion_products())
    for path in data:
        assert {"Description", "Sources", "Fingerprint"} <= set(
            json.loads(sidecar_of(path).read_text())
        )


def test_outputs_are_valid_bids(by_dipy, tmp_path):
    assert_strictly_valid(by_dipy[0], tmp_path)


def test_columns_are_described_and_sources_are_there(by_dipy):
    assert_columns_are_described(by_dipy[0])
    assert_sources_resolve(by_dipy[0])


def test_the_page_shows_both_modalities(by_dipy):
    page = check_page(by_dipy[0] / f"sub-{SUB}.html")
    assert {
        "Mean b0 image with the borders of the ROIs",
        "Mean b0 image with brain mask and white matter",
        "Volume of each ROI in the person's space",
        "Fractional anisotropy, coloured by direction",
        "Streamlines through each voxel",
        "Sampling reliability by the number of streamlines",
        "Structural connectivity, network by network",
        "Degree of each ROI on the brain",
        "Length of the structural embedding of each ROI",
        "Share of the functional embedding in the fused one",
        "Functional connectivity, network by network",
    } <= set(page.labels)
    for words in ("Registration", "Check of the gradients", "dipy", "preprocessing: none"):
        assert words in page.said
    assert "cannot be shown" not in page.said


def test_connections_are_recovered_by_dipy(by_dipy, bids):
    assert_recovered(by_dipy[0], bids, "count")
    assert_recovered(by_dipy[0], bids, "invnodevol")


def test_sidecar_says_how_it_was_made_and_how_reliable_it_is(by_dipy):
    about = sidecar(by_dipy[0], "count")
    assert about["SamplingReliability"] >= 0.95
    assert about["Tracking"]["SamplingRule"]["StoppedBy"] == "reliability"
    assert about["Streamlines"] == about["Tracking"]["SamplingReliabilityCurve"][-1][0]
    assert about["Anatomy"]["RegistrationQuality"]["Verdict"] == "good"
    assert about["Preprocessing"]["GradientCheck"]["Action"] == "none"
    assert about["FibreOrientations"]["AnatomicallyConstrained"] is True
    assert any("not processed again" in note for note in about["Notes"])


def test_edges_are_of_the_same_streamlines(by_dipy):
    out, _ = by_dipy
    counts, lengths, per_volume = (matrix(out, d) for d in ("count", "meanlength", "invnodevol"))
    np.testing.assert_array_equal(counts, counts.T)
    linked = np.nan_to_num(counts) > 0
    np.testing.assert_array_equal(np.isfinite(lengths), linked)
    assert np.nanmin(lengths) >= 20 and np.nanmax(lengths) <= 250
    (path,) = out.glob(f"sub-{SUB}/**/*_desc-rois_qc.tsv")
    volumes = pd.read_csv(path, sep="\t")["volume"].to_numpy()
    expected = counts / ((volumes + volumes[:, None]) / 2)
    np.testing.assert_allclose(per_volume, expected, rtol=1e-6)


def test_work_files_are_gone(by_dipy):
    out, _ = by_dipy
    (folder,) = (out / "work").glob(f"*/sub_{SUB}/sub_{SUB}_space_ACPC_*")
    steps = {path.name for path in folder.iterdir() if path.is_dir()}
    assert steps == {"write_connectome", "write_structural", "tidy"}


def test_any_number_of_processes_gives_the_same_files(by_dipy, bids, tmp_path):
    out = tmp_path / "out"
    result = participant_level(bids, out, *DIPY, *DWI_ALONE, "--nprocs", "1")
    assert result.code == 0, result.err
    compared = 0
    for path in sorted(out.glob(f"sub-{SUB}/dwi/*")):
        if path.suffix in (".tsv", ".gz"):
            assert path.read_bytes() == (by_dipy[0] / path.relative_to(out)).read_bytes(), path
            compared += 1
    assert compared >= 11


def test_the_check_finds_what_the_participant_level_found(by_dipy, tmp_path):
    """Of the same connectome, at the depth of the model, by the person's volumes."""
    # Without the series, which take longer, and are checked in test_check.
    kept = shutil.ignore_patterns("func", "work")
    out = shutil.copytree(by_dipy[0], tmp_path / "out", ignore=kept)
    command = [Path(sys.executable).with_name("bsym-model"), "check", out, "--model", "bsym-sim-v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (recorded,) = out.glob(f"sub-{SUB}/dwi/*_desc-edges_qc.tsv")
    assert json.loads(recorded.with_suffix(".json").read_text())["DepthFactor"] > 2
    wanted = pd.read_csv(recorded, sep="\t").iloc[0]
    found = pd.read_csv(out / "desc-bsymsimv1edges_qc.tsv", sep="\t")
    found = found[found["in_use"]].iloc[0]
    for score in wanted.index:
        assert found[score] == pytest.approx(wanted[score], rel=1e-3, abs=1e-3), score


def test_another_convention_embeds_anew_without_tracking(by_dipy, bids):
    out, _ = by_dipy
    counts = {path: path.stat().st_mtime_ns for path in out.glob(f"sub-{SUB}/dwi/*count_relmat*")}
    before = matrix(out, "modelinput")
    options = ("--sc-transform", "log10", "--nprocs", "2")
    result = participant_level(bids, out, *DIPY, *options, "-v")
    assert result.code == 0, result.err
    assert "embed: end" in result.err and "track" not in result.err
    assert counts == {path: path.stat().st_mtime_ns for path in counts}
    assert not np.array_equal(matrix(out, "modelinput"), before)
    again = participant_level(bids, out, *DIPY, *options)
    assert "unchanged" in again.err and "done" not in again.err


@pytest.mark.mrtrix3
def test_connections_are_recovered_by_mrtrix3(bids, small_model, tmp_path):
    out = tmp_path / "out"
    # A tenth of what it takes to be reliable by itself, which is tested with DIPY.
    options = ("--preset", "fast", "--streamlines", "6000", "--save-tractogram", "trx")
    who = ("--participant-label", SUB, "--engine", "mrtrix3")
    result = participant_level(bids, out, *small_model, *DWI_ALONE, *options, *who)
    assert result.code == 0, result.err
    for desc in ("count", "invnodevol", "sift2"):
        assert_recovered(out, bids, desc)
    counts, capacity = matrix(out, "count"), matrix(out, "sift2")
    edges = np.nan_to_num(counts) > 20
    assert np.ptp(capacity[edges] / counts[edges]) > 0.1 * np.mean(capacity[edges] / counts[edges])
    from trx.trx_file_memmap import load

    (path,) = out.glob(f"sub-{SUB}/dwi/*.trx")
    tractogram = load(str(path))
    assert len(tractogram.streamlines) == sidecar(out, "count")["Streamlines"]
    tractogram.close()
