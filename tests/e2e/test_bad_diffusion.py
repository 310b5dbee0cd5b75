"""Bad diffusion data: its scan fails with a reason, time series of the same person are done.

One run over a dataset in which each participant's scan has one fault.
"""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import participant_level

from bsym_bids.outputs.names import products
from bsym_bids.simulation.diffusion import make_phantom
from bsym_bids.simulation.diffusion_files import write_phantom

#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
TRANSFORM = "from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"
WITH_BOLD, WITHOUT_SCAN = "03", "01"


class Scan:
    """The files of one participant, to be broken."""

    def __init__(self, bids: Path, label: str) -> None:
        self.stem = bids / f"sub-{label}" / "dwi" / f"sub-{label}_dwi"
        self.anat = bids / "derivatives" / "fmriprep" / f"sub-{label}" / "anat" / f"sub-{label}"

    @property
    def image(self) -> Path:
        return self.stem.with_name(self.stem.name + ".nii.gz")

    def gradients(self, kind: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{kind}")

    def anatomy(self, suffix: str) -> Path:
        return self.anat.with_name(f"{self.anat.name}_{suffix}")

    def change(self, path: Path, change) -> None:
        image = nib.load(path)
        values = change(np.asanyarray(image.dataobj))
        nib.save(nib.Nifti1Image(values, image.affine, None), path)


def truncated(scan: Scan) -> None:
    scan.image.write_bytes(scan.image.read_bytes()[: scan.image.stat().st_size // 2])


def one_b_value_too_few(scan: Scan) -> None:
    values = np.loadtxt(scan.gradients("bval"))
    np.savetxt(scan.gradients("bval"), values[None, :-1], "%g")


def no_b0(scan: Scan) -> None:
    values = np.loadtxt(scan.gradients("bval"))
    vectors = np.loadtxt(scan.gradients("bvec"))
    vectors[0, values == 0] = 1
    values[:] = 1000
    np.savetxt(scan.gradients("bval"), values[None], "%g")
    np.savetxt(scan.gradients("bvec"), vectors, "%g")


def five_directions(scan: Scan) -> None:
    values, vectors = (np.loadtxt(scan.gradients(kind)) for kind in ("bval", "bvec"))
    kept = np.sort(np.argsort(values, kind="stable")[:7])  # both b0 and the first five
    np.savetxt(scan.gradients("bval"), values[None, kept], "%g")
    np.savetxt(scan.gradients("bvec"), vectors[:, kept], "%g")
    scan.change(scan.image, lambda values: values[..., kept])


def only_nan(scan: Scan) -> None:
    scan.change(scan.image, lambda values: np.full(values.shape, np.nan, np.float32))


def half_of_the_volumes_empty(scan: Scan) -> None:
    scan.change(scan.image, lambda values: values * (np.arange(values.shape[3]) < 7))


def tiny_field_of_view(scan: Scan) -> None:
    scan.change(scan.image, lambda values: values[:, :, 10:15])


def empty_brain_mask(scan: Scan) -> None:
    scan.change(scan.anatomy("desc-brain_mask.nii.gz"), np.zeros_like)


def transform_for_another_person(scan: Scan) -> None:
    import SimpleITK as sitk

    affine = sitk.AffineTransform(3)
    affine.SetTranslation((0.0, 60.0, 30.0))
    sitk.WriteTransform(sitk.CompositeTransform(affine), str(scan.anatomy(TRANSFORM)))


def transform_that_is_none(scan: Scan) -> None:
    scan.anatomy(TRANSFORM).write_bytes(b"<!DOCTYPE html>")


# Of each fault, words of the reason.
FAULTS = {
    "11": (truncated, ("sub-11_dwi.nii.gz",)),
    "12": (one_b_value_too_few, ("sub-12_dwi.bval", "13", "14")),
    "13": (no_b0, ("sub-13_dwi", "without diffusion weighting")),
    "14": (five_directions, ("sub-14_dwi", "5 directions")),
    "15": (only_nan, ("sub-15_dwi.nii.gz", "hold nothing")),
    "16": (half_of_the_volumes_empty, ("sub-16_dwi.nii.gz", "7 of 14 volumes hold nothing")),
    "17": (tiny_field_of_view, ("sub-17_dwi.nii.gz", "field of view")),
    "18": (empty_brain_mask, ("sub-18_desc-brain_mask.nii.gz", "empty")),
    "19": (transform_for_another_person, (f"sub-19_{TRANSFORM}", "does not bring")),
    "20": (transform_that_is_none, (f"sub-20_{TRANSFORM}", "cannot be read")),
}
ANATOMICAL = (empty_brain_mask, transform_for_another_person, transform_that_is_none)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(
        0,
        voxel_mm=5.0,
        t1w_mm=3.0,
        n_bundles=4,
        shells=((0, 2), (1000, 12)),
        rotation=(0, 0, 0),
        motion=0,
    )


def first_volumes(phantom, n: int):
    """Return the phantom with a shorter series."""
    kept = {name: getattr(phantom, name)[:n] for name in ("bvals", "bvecs", "motion")}
    return replace(phantom, dwi=phantom.dwi[..., :n], **kept)


@pytest.fixture(scope="module")
def broken(dataset, phantom, tmp_path_factory) -> Path:
    """The made dataset, with a broken scan for one of its participants, and one for each fault."""
    bids = tmp_path_factory.mktemp("broken") / "bids"
    shutil.copytree(dataset, bids)
    short = first_volumes(phantom, 8)
    for label, (breaks, _) in FAULTS.items():
        of_anatomy = breaks in ANATOMICAL  # the others fail as fast without
        # The series of these are processed, each volume registered, although it comes to nothing.
        made = short if of_anatomy else phantom
        write_phantom(made, bids, label, derivatives="fmriprep", with_t1w=of_anatomy)
        breaks(Scan(bids, label))
    write_phantom(phantom, bids, WITH_BOLD, with_t1w=False)
    truncated(Scan(bids, WITH_BOLD))
    return bids


@pytest.fixture(scope="module")
def outcome(broken, small_model, tmp_path_factory):
    """The run over all of them: output folder, result, and the summary by participant."""
    out = tmp_path_factory.mktemp("broken") / "out"
    options = ("--participant-label", *FAULTS, WITH_BOLD, WITHOUT_SCAN)
    scans = ("--engine", "dipy", "--preset", "fast", "--streamlines", "2000")
    result = participant_level(broken, out, *small_model, *options, *scans)
    (summary,) = (out / "logs").glob("*_summary.tsv")
    table = pd.read_csv(summary, sep="\t", dtype=str, keep_default_na=False)
    return out, result, table.set_index(["participant", "run"])


def test_nothing_is_traced_and_the_exit_code_says_some(outcome):
    _, result, table = outcome
    assert result.code == 1
    assert "Traceback" not in result.err and "Error:" not in result.err
    assert len(table) == len(FAULTS) + 3


@pytest.mark.parametrize("label", FAULTS, ids=lambda label: FAULTS[label][0].__name__)
def test_reason_is_in_the_summary_and_on_the_console(outcome, label):
    out, result, table = outcome
    row = table.loc[label, f"sub-{label}_dwi"]
    assert row["status"] == "failed"
    for word in FAULTS[label][1]:
        assert word in row["reason"]
    assert "crash-" not in row["reason"]  # an explained reason needs no crash file
    assert row["hint"] not in ("", "n/a")
    assert f"sub-{label}" in result.err
    assert not [path for path in out.glob(f"sub-{label}/**/*") if path.is_file()]


def test_time_series_of_the_same_person_are_done(outcome):
    out, _, table = outcome
    rows = table.loc[WITH_BOLD]
    assert sorted(rows["status"]) == ["done", "failed"]
    assert f"sub-{WITH_BOLD}_dwi.nii.gz" in rows.loc[f"sub-{WITH_BOLD}_dwi", "reason"]
    files = [p for p in out.glob(f"sub-{WITH_BOLD}/**/*") if p.suffix in (".tsv", ".npz")]
    assert len(files) == len(SURE)


PRESET = """
base: fast
mrtrix3: {response: fa}
"""


@pytest.fixture(scope="module")
def prepared(phantom, tmp_path_factory) -> Path:
    """A folder with a scan as QSIPrep makes it; what an engine is given is made once in it."""
    folder = tmp_path_factory.mktemp("full")
    write_phantom(phantom, folder / "bids", "01", derivatives="qsiprep")
    (folder / "preset.yaml").write_text(PRESET)  # dwi2response is most of it otherwise
    return folder


def assert_full_disk_is_explained(folder: Path, out: Path, engine: str, largest: int, arguments):
    options = ("--preset", folder / "preset.yaml", "--streamlines", "20000")
    result = participant_level(
        folder / "bids",
        out,
        *arguments,
        *("--engine", engine, *options),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert result.code == 74, result.err
    assert "Traceback" not in result.err and "hint" in result.err
    assert not [path for path in out.glob("sub-*/**/*") if path.is_file()]


def test_disk_that_takes_no_series_is_explained(prepared, small_model, tmp_path):
    """Before it comes to an engine."""
    assert_full_disk_is_explained(prepared, tmp_path / "out", "dipy", 100_000, small_model)


@pytest.mark.parametrize("engine", ["dipy", pytest.param("mrtrix3", marks=pytest.mark.mrtrix3)])
def test_disk_that_takes_no_more_is_explained(prepared, small_model, engine):
    """The limit falls into what tracking reads or writes."""
    assert_full_disk_is_explained(prepared, prepared / "out", engine, 4_000_000, small_model)
    assert list((prepared / "out").glob("work/bsym/sub_01/*/place/result_*"))
