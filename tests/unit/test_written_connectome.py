"""What is published of a connectome, and what of an earlier one goes."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bsym_bids.config import RunConfig
from bsym_bids.dwi.connectome import Connectome
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.inputs import Derivatives, DwiImage, DwiScan
from bsym_bids.jobs import ScanJob, ScanSettings
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.connectome import read_counts, write_connectome
from bsym_bids.outputs.names import ScanNames
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.tables import Matrix

N = 450


@pytest.fixture
def job(tmp_path):
    paths = [tmp_path / f"sub-01_dwi.{kind}" for kind in ("nii.gz", "bval", "bvec")]
    for path in paths:
        path.touch()
    scan = DwiScan({"sub": "01"}, (DwiImage(*paths),), Derivatives("raw", tmp_path))
    config = RunConfig(tmp_path, tmp_path / "out", "participant", engine="dipy")
    settings = ScanSettings.of(config, resolve_release("untrained"))
    return ScanJob(scan, ScanNames(config.output_dir, scan.entities), settings)


def write(job, folder: Path, check=None) -> Connectome:
    image = folder / "image.nii"
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), image)
    rng = np.random.default_rng(0)
    counts = np.triu(rng.poisson(3.0, (N, N)), 1).astype(float)
    found = Connectome(
        counts=counts + counts.T,
        sift2=None,
        meanlength=rng.random((N, N)),
        meanfa=rng.random((N, N)),
        roi_volumes=rng.integers(1, 99, N) * 0.5,
        roi_streamlines=(counts + counts.T).sum(0).astype(int),
        curve=np.array([[10, np.nan], [20, 0.7]]),
        sampling_reliability=0.7,
        n_streamlines=20,
        n_assigned=20,
        n_unassigned_ends=0,
    )
    dwi = PreparedDwi(*[str(image)] * 5, details={"GradientCheck": check} if check else {})
    model = FittedModel("dipy", "1", {}, str(image))
    write_connectome(job, dwi, PlacedAnatomy(str(image)), model, found, None)
    return found


def embed(job):
    """Write files where structural embeddings go."""
    files = [
        OutputFile(path, Matrix(np.ones((1, 1)), ["x"]), {})
        for path in job.names.group_paths("structural")
    ]
    publish(files, job.fingerprints["structural"])
    return [file.path for file in files]


def test_what_was_published_is_read_back(job, tmp_path):
    found = write(job, tmp_path)
    counts, volumes = read_counts(job)
    np.testing.assert_array_equal(counts, found.counts)
    np.testing.assert_array_equal(volumes, found.roi_volumes)


@pytest.mark.parametrize("model_embeds", [True, False])
def test_embeddings_of_another_connectome_go(job, tmp_path, model_embeds):
    old = replace(job, settings=replace(job.settings, structural={"Model": "another"}))
    embeddings = embed(old)
    new = job if model_embeds else replace(job, settings=replace(job.settings, structural={}))
    assert all(path.exists() for path in embeddings)
    write(new, tmp_path)
    assert not any(path.exists() for path in embeddings)


def test_embeddings_of_the_same_connectome_stay(job, tmp_path):
    embeddings = embed(job)
    write(job, tmp_path)
    assert all(path.exists() for path in embeddings)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ({"Action": "corrected"}, "corrected"),
        ({"Action": "none"}, "none"),
        ({"Action": "none", "NotChecked": "too few voxels"}, "not checked"),
        (None, "n/a"),
    ],
)
def test_a_check_that_could_not_be_done_is_not_one_that_found_nothing(
    job, tmp_path, check, expected
):
    write(job, tmp_path, check)
    table = pd.read_csv(job.names.path("scan_quality"), sep="\t", keep_default_na=False)
    assert list(table["gradient_check"]) == [expected]
