"""The extension of the BIDS schema takes the app's names and refuses others."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bsym_bids.outputs.dataset import describe_dataset
from bsym_bids.outputs.names import (
    RunNames,
    ScanNames,
    cohort_products,
    dataset_path,
    dataset_products,
    fusion_products,
    products,
    scan_products,
    sidecar_of,
)
from tests.bids_validation import extended_schema_file, validate

ATLAS = "atlas-Schaefer2018Tian2020_scale-450"
RUN = f"sub-01_task-rest_space-MNI152NLin6Asym_{ATLAS}"


def dataset(folder: Path, names: list[Path]) -> Path:
    describe_dataset(folder, {})
    (folder / ".bidsignore").unlink()
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".nii.gz"):
            nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), path)
        else:
            path.write_text("a\n1\n")
        document = {"Description": "x", "Resolution": "x", "Density": "x", "Sources": []}
        document |= {"SpatialReference": "orig", "SkullStripped": False}
        sidecar_of(path).write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return extended_schema_file(tmp_path_factory.mktemp("schema"))


def errors(folder, schema):
    return {issue.location for issue in validate(folder, schema) if issue.severity == "error"}


def test_every_product_of_every_kind_of_run_is_accepted(tmp_path, schema):
    full = {"sub": "01", "ses": "a", "task": "x", "acq": "m", "ce": "c", "rec": "r", "dir": "AP"}
    full |= {"run": "01", "echo": "1", "part": "mag"}
    names = [
        names.path(key)
        for names in (
            RunNames(tmp_path, full, "MNI152NLin2009cAsym", resolution="2"),
            RunNames(tmp_path, {"sub": "02", "task": "x"}, "fsLR", density="91k", method="pca"),
        )
        for key in [*products(), *fusion_products()]
        if key != "mean_bold" or names.space != "fsLR"
    ]
    scaled = RunNames(tmp_path, full, "fsLR", density="91k", cohort_scaled=True)
    names += [scaled.path(key) for key in cohort_products()]
    assert len({*names}) == len(names)
    assert errors(dataset(tmp_path, names), schema) == set()


def test_every_product_of_every_kind_of_scan_is_accepted(tmp_path, schema):
    full = {"sub": "01", "ses": "a", "acq": "m", "rec": "r", "dir": "AP", "run": "01"}
    full |= {"part": "mag"}
    names = [
        path
        for names in (
            ScanNames(tmp_path, full, "ACPC", tractogram="trx"),
            ScanNames(tmp_path, {"sub": "02"}, tractogram="tck", fibre_capacity=False),
        )
        for path in map(names.path, scan_products())
    ]
    assert len(names) == 2 * len(scan_products())
    assert errors(dataset(tmp_path, names), schema) == set()


def test_every_product_of_the_dataset_is_accepted(tmp_path, schema):
    names = [dataset_path(tmp_path, key, "lab-x_1") for key in dataset_products()]
    assert [path.name for path in names] == [
        "desc-labx1reconstruction_qc.tsv",
        "desc-labx1edges_qc.tsv",
        "desc-labx1networks_qc.tsv",
        "desc-cohortscaling_qc.tsv",
        "desc-labx1_predictions.tsv",
        "desc-labx1scores_predictions.tsv",
        "desc-labx1comparisons_predictions.tsv",
        "desc-labx1_predictions.html",
        "desc-labx1applied_predictions.tsv",
        "desc-identification_stat.tsv",
        "desc-reliability_stat.tsv",
        "desc-networkrecovery_stat.tsv",
        "desc-labx1_stat.tsv",
        "desc-labx1_figure.svg",
        "desc-labx1mean_relmat.tsv",
    ]
    assert errors(dataset(tmp_path, names), schema) == set()


@pytest.mark.parametrize(
    "name", ["desc-x_qc.tsv", "desc-xedges_qc.npz", "desc-edges_embedding.tsv", "desc-x_relmat.tsv"]
)
def test_other_names_at_the_root_are_refused(tmp_path, schema, name):
    assert f"/{name}" in errors(dataset(tmp_path, [tmp_path / name]), schema)


@pytest.mark.parametrize(
    "name",
    [
        f"{RUN}_desc-unknown_embedding.tsv",
        f"{RUN}_stat-pearsoncorrelation_desc-x_relmat.tsv",
        f"{RUN}_stat-median_timeseries.tsv",
        f"{RUN}_desc-functional_embedding.npz",
        f"{RUN}_desc-functional_embeddings.tsv",
        f"{RUN}_desc-fusedcohort_embedding.tsv",
        f"{RUN}_desc-functionalcohort_embedding.npz",
        f"{RUN}_desc-censoringcohort_timeseries.tsv",
        f"{RUN}_desc-runcohort_qc.tsv",
        f"{RUN}_boldref.nii.gz",
        "sub-01_task-rest_space-MNI152NLin6Asym_stat-mean_timeseries.tsv",
        f"sub-01_task-rest_space-T1w_{ATLAS}_stat-mean_timeseries.tsv",
        f"sub-01_space-MNI152NLin6Asym_{ATLAS}_stat-mean_timeseries.tsv",
    ],
)
def test_other_names_are_refused(tmp_path, schema, name):
    path = tmp_path / "sub-01" / "func" / name
    found = errors(dataset(tmp_path, [path]), schema)
    assert f"/sub-01/func/{name}" in found


@pytest.mark.parametrize(
    "name",
    [
        f"sub-01_{ATLAS}_desc-counts_relmat.tsv",
        f"sub-01_space-MNI152NLin6Asym_{ATLAS}_desc-count_relmat.tsv",
        f"sub-01_task-rest_{ATLAS}_desc-count_relmat.tsv",
        f"sub-01_{ATLAS}_desc-functional_embedding.tsv",
        f"sub-01_{ATLAS}_desc-structural_embedding.npz",
        f"sub-01_{ATLAS}_desc-run_qc.tsv",
        f"sub-01_{ATLAS}_dwiref.nii.gz",
        f"sub-01_{ATLAS}_desc-fa_dwimap.nii.gz",
        f"sub-01_{ATLAS}_desc-head_mask.nii.gz",
        f"sub-01_{ATLAS}_desc-tissues_dseg.nii.gz",
        f"sub-01_{ATLAS}_tractogram.trk",
        "sub-01_desc-count_relmat.tsv",
    ],
)
def test_other_names_of_scans_are_refused(tmp_path, schema, name):
    found = errors(dataset(tmp_path, [tmp_path / "sub-01" / "dwi" / name]), schema)
    assert f"/sub-01/dwi/{name}" in found
