"""Bad input: whoever has it fails with a reason, everybody else is complete, nothing is traced.

One run over a dataset in which each participant has one fault.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import participant_level
from isal import igzip

from bsym_bids.outputs.names import products

#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
SPACE = "space-MNI152NLin2009cAsym"
CORRUPT_AT = 20_000


@dataclass(frozen=True)
class Participant:
    """The files of one participant, to be broken."""

    label: str
    folder: Path

    def path(self, suffix: str, space: str = f"_{SPACE}") -> Path:
        return self.folder / f"sub-{self.label}_ses-1_task-rest{space}_{suffix}"

    @property
    def bold(self) -> Path:
        return self.path("desc-preproc_bold.nii.gz")

    @property
    def mask(self) -> Path:
        return self.path("desc-brain_mask.nii.gz")

    @property
    def sidecar(self) -> Path:
        return self.path("desc-preproc_bold.json")

    @property
    def confounds(self) -> Path:
        return self.path("desc-confounds_timeseries.tsv", space="")

    def change_image(self, change: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
        image = change(nib.load(self.bold))
        self.bold.write_bytes(igzip.compress(image.to_bytes(), compresslevel=1))

    def set_timing(self, in_sidecar: float | None, in_header: float) -> None:
        def change(image):
            image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
            image.header["pixdim"][4] = in_header
            return image

        self.change_image(change)
        timing = {} if in_sidecar is None else {"RepetitionTime": in_sidecar}
        self.sidecar.write_text(json.dumps(timing))


def truncated(one: Participant) -> None:
    one.bold.write_bytes(one.bold.read_bytes()[: one.bold.stat().st_size // 2])


def truncated_in_the_header(one: Participant) -> None:
    one.bold.write_bytes(one.bold.read_bytes()[:30])


def corrupt(one: Participant) -> None:
    content = bytearray(one.bold.read_bytes())
    content[CORRUPT_AT : CORRUPT_AT + 50] = bytes(50)
    one.bold.write_bytes(content)


def wrong_checksum(one: Participant) -> None:
    content = bytearray(one.bold.read_bytes())
    content[-8] ^= 1
    one.bold.write_bytes(content)


def no_image_at_all(one: Participant) -> None:
    one.bold.write_text("<html>404 Not Found</html>")


def empty(one: Participant) -> None:
    one.bold.write_bytes(b"")


def one_volume(one: Participant) -> None:
    one.change_image(lambda image: image.slicer[..., 0])


def no_repetition_time(one: Participant) -> None:
    one.set_timing(None, 0.0)


def zero_repetition_time(one: Participant) -> None:
    one.set_timing(0.0, 0.0)


def sidecar_is_no_json(one: Participant) -> None:
    one.sidecar.write_text("{")


def outside_the_field_of_view(one: Participant) -> None:
    def change(image):
        affine = image.affine.copy()
        affine[:3, 3] += 1000
        return nib.Nifti1Image(np.asarray(image.dataobj), affine)

    one.change_image(change)
    one.mask.unlink()


def only_nan(one: Participant) -> None:
    one.change_image(
        lambda image: nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine)
    )


def another_grid_of_the_mask(one: Participant) -> None:
    mask = nib.load(one.mask)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), mask.affine), one.mask)


def empty_mask(one: Participant) -> None:
    mask = nib.load(one.mask)
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), one.mask)


def missing_rows_of_confounds(one: Participant) -> None:
    lines = one.confounds.read_text().splitlines()
    one.confounds.write_text("\n".join(lines[:-3]) + "\n")


def no_confounds(one: Participant) -> None:
    one.confounds.unlink()


def confounds_that_are_no_numbers(one: Participant) -> None:
    one.confounds.write_text(one.confounds.read_text().replace("\n", "\nbad\t", 1))


def another_space(one: Participant) -> None:
    one.bold.rename(Path(str(one.bold).replace(SPACE, "space-MNI152NLin6Sym")))


def not_downloaded(one: Participant) -> None:
    one.bold.unlink()
    one.bold.symlink_to("../../../.git/annex/objects/none")


def short_after_resampling(one: Participant) -> None:
    one.set_timing(2.0, 2.0)


def output_that_cannot_be_replaced(one: Participant) -> None:
    """Nothing is wrong with the input: see `outputs`."""


# What is done to whom, the words that the reason must have, and the exit code it asks for alone.
FAULTS = {
    "a01": (truncated, ("desc-preproc_bold.nii.gz", "of 60 volumes")),
    "a02": (truncated_in_the_header, ("desc-preproc_bold.nii.gz", "cannot be read")),
    "a03": (corrupt, ("desc-preproc_bold.nii.gz", "of 60 volumes")),
    "a04": (wrong_checksum, ("desc-preproc_bold.nii.gz", "CRC check failed")),
    "a05": (no_image_at_all, ("desc-preproc_bold.nii.gz", "cannot be read")),
    "a06": (empty, ("desc-preproc_bold.nii.gz", "cannot be read")),
    "a07": (one_volume, ("has 3 dimensions, but a series has 4",)),
    "a08": (no_repetition_time, ("repetition time",)),
    "a09": (zero_repetition_time, ("RepetitionTime is 0.0",)),
    "a10": (sidecar_is_no_json, ("desc-preproc_bold.json", "JSON")),
    "a11": (outside_the_field_of_view, ("no ROI of the atlas lies in its field of view",)),
    "a12": (only_nan, ("holds no data",)),
    "a13": (another_grid_of_the_mask, ("desc-brain_mask.nii.gz", "is not on the grid")),
    "a14": (empty_mask, ("desc-brain_mask.nii.gz", "the mask is empty")),
    "a15": (missing_rows_of_confounds, ("57 rows, but the run has 60 volumes",)),
    "a16": (no_confounds, ("needs a confounds file",)),
    "a17": (confounds_that_are_no_numbers, ("desc-confounds_timeseries.tsv",)),
    "a18": (another_space, ("none of its spaces can be used", "MNI152NLin6Sym")),
    "a19": (not_downloaded, ("not downloaded", "datalad get")),
    "a20": (short_after_resampling, ("too short: 148 frames of 0.8 s", "needs 200")),
    "a21": (output_that_cannot_be_replaced, ("_stat-mean_timeseries.tsv", "Is a directory")),
}
WITH_SERIES = ("a20",)  # time series are made before the model finds the run too short
GOOD, WITH_NAN, BLOCKED = "03", "01", "a21"
N_NAN_SLICES = 3


def blocked(out: Path, label: str) -> Path:
    """Return a path that an output of a participant has to take."""
    name = (
        f"sub-{label}_ses-1_task-rest_{SPACE}_atlas-Schaefer2018Tian2020_scale-450"
        "_stat-mean_timeseries.tsv"
    )
    return out / f"sub-{label}" / "ses-1" / "func" / name


@pytest.fixture(scope="module")
def broken(dataset, tmp_path_factory) -> Path:
    """The made dataset, the volume with NaN in it, and one short copy of it for every fault."""
    bids = tmp_path_factory.mktemp("broken") / "bids"
    shutil.copytree(dataset, bids)
    prep = bids / "derivatives" / "fmriprep"
    whole = Participant(WITH_NAN, prep / f"sub-{WITH_NAN}" / "ses-1" / "func")
    image = nib.load(whole.bold)
    short = igzip.compress(image.slicer[..., :60].to_bytes(), compresslevel=1)
    rows = "\n".join(whole.confounds.read_text().splitlines()[:61]) + "\n"
    for label, (breaks, _) in FAULTS.items():
        one = Participant(label, prep / f"sub-{label}" / "ses-1" / "func")
        one.folder.mkdir(parents=True)
        one.bold.write_bytes(short)
        one.confounds.write_text(rows)
        shutil.copy(whole.mask, one.mask)
        shutil.copy(whole.sidecar, one.sidecar)
        if label == BLOCKED:
            shutil.copy(whole.bold, one.bold)
            shutil.copy(whole.confounds, one.confounds)
        breaks(one)
    whole.change_image(_with_nan)
    return bids


def _with_nan(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the series with its lowest slices not measured, and one volume of a slice lost."""
    values = image.get_fdata(dtype=np.float32)
    measured = np.flatnonzero(values[..., 0].any(axis=(0, 1)))
    values[:, :, measured[:N_NAN_SLICES]] = np.nan
    values[:, :, measured[len(measured) // 2], 7] = np.nan
    return nib.Nifti1Image(values, image.affine, None)


@pytest.fixture(scope="module")
def outcome(broken, small_model, tmp_path_factory):
    """The run over all of them: output folder, result, and the summary by participant."""
    out = tmp_path_factory.mktemp("broken") / "out"
    (blocked(out, BLOCKED) / "something").mkdir(parents=True)
    result = participant_level(broken, out, *small_model, "--window-step", "200")
    (summary,) = (out / "logs").glob("*_summary.tsv")
    table = pd.read_csv(summary, sep="\t", dtype=str, keep_default_na=False)
    return out, result, table.set_index("participant")


def data_files(out: Path, label: str) -> list[Path]:
    found = out.glob(f"sub-{label}/**/*")
    return [path for path in found if path.is_file() and path.suffix in (".tsv", ".npz")]


def test_nothing_is_traced_and_the_exit_code_says_some(outcome):
    _, result, table = outcome
    assert result.code == 1
    assert "Traceback" not in result.err and "Error:" not in result.err
    assert sorted(table.index) == sorted([*FAULTS, GOOD, WITH_NAN])


@pytest.mark.parametrize("label", FAULTS, ids=lambda label: FAULTS[label][0].__name__)
def test_reason_is_in_the_summary_and_on_the_console(outcome, label):
    out, result, table = outcome
    row = table.loc[label]
    assert row["status"] == "failed"
    for word in FAULTS[label][1]:
        assert word in row["reason"]
    assert "crash-" not in row["reason"]  # an explained reason needs no crash file
    assert f"sub-{label}" in result.err
    expected = sum(p.group == "timeseries" for p in SURE)
    assert len(data_files(out, label)) == (expected if label in WITH_SERIES else 0)
    assert not [p for p in out.glob(f"sub-{label}/**/*") if p.name.endswith(".part")]


@pytest.mark.parametrize("label", [GOOD, WITH_NAN])
def test_the_others_are_complete(outcome, label):
    out, _, table = outcome
    assert table.loc[label, "status"] == "done"
    assert len(data_files(out, label)) == len(SURE)


def test_voxels_without_a_number_cost_coverage_only(outcome):
    out, _, _ = outcome
    (path,) = out.glob(f"sub-{WITH_NAN}/**/*_stat-coverage_bold.tsv")
    coverage = pd.read_csv(path, sep="\t", na_values="n/a").set_index("name")
    lost = coverage.index[coverage["coverage"] == 0]
    assert 0 < len(lost) < 100
    for pattern in ("*_desc-denoised_timeseries.tsv", "*_relmat.tsv", "*functional_embedding.tsv"):
        for table in out.glob(f"sub-{WITH_NAN}/**/{pattern}"):
            text = table.read_text()
            assert "nan" not in text.lower().replace("n/a", "") and "inf" not in text.lower()
    (series,) = out.glob(f"sub-{WITH_NAN}/**/*_desc-denoised_timeseries.tsv")
    values = pd.read_csv(series, sep="\t", na_values="n/a")
    assert values[lost].isna().all(axis=None)
    included = coverage.index[coverage["included"]]
    assert len(included) > 400 and values[included].notna().all(axis=None)
    assert values.drop(columns=included).isna().all(axis=None)


def test_repaired_participants_are_made_and_the_others_left_alone(outcome, small_model, broken):
    out, _, _ = outcome
    before = {path: path.stat().st_mtime_ns for path in data_files(out, GOOD)}
    shutil.rmtree(blocked(out, BLOCKED))
    arguments = ("--participant-label", BLOCKED, GOOD, "--window-step", "200")
    result = participant_level(broken, out, *small_model, *arguments)
    assert result.code == 0, result.err
    assert "1 done, 1 unchanged" in result.err
    assert len(data_files(out, BLOCKED)) == len(SURE)
    assert before == {path: path.stat().st_mtime_ns for path in data_files(out, GOOD)}
