"""From a participant's anatomy to atlas and tissues over the series, by every route."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from bsym_bids import atlas
from bsym_bids.dwi import anatomy as module
from bsym_bids.dwi import brain, registration, t1w
from bsym_bids.dwi.anatomy import place_anatomy, prepare_anatomy
from bsym_bids.dwi.records import PreparedAnatomy, PreparedDwi
from bsym_bids.dwi.registration import register_to_template
from bsym_bids.dwi.transforms import Volume, load_volume, resample
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs.records import Anatomy, Derivatives
from bsym_bids.simulation.diffusion import make_phantom
from bsym_bids.simulation.diffusion_anatomy import draw_head
from bsym_bids.simulation.diffusion_files import write_phantom, write_transform

# The nuclei are one grey in the phantom, so that registration cannot tell them apart as it does
# where they have their own intensities.
CORTEX = slice(50, 450)


@pytest.fixture(scope="module", autouse=True)
def _coarser():
    """Registration on coarser grids than in use, so that the tests are fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "STEP", 3.0)
        patch.setattr(brain, "STEP", 3.0)
        yield


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(
        3, n_bundles=1, shells=((0.0, 1), (1000.0, 6)), motion=0, voxel_mm=3.0, t1w_mm=2.0
    )


@pytest.fixture(scope="module")
def bids(phantom, tmp_path_factory):
    """The phantom with the anatomy of fMRIPrep."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(phantom, folder, "01", derivatives="fmriprep")
    return folder


@pytest.fixture(scope="module")
def fmriprep(bids):
    stem = bids / "derivatives" / "fmriprep" / "sub-01" / "anat"

    def named(end):
        return stem / f"sub-01_{end}"

    return Anatomy(
        source="fmriprep",
        t1w=named("desc-preproc_T1w.nii.gz"),
        dataset=Derivatives("fmriprep", bids / "derivatives" / "fmriprep"),
        mask=named("desc-brain_mask.nii.gz"),
        probseg={kind: named(f"label-{kind}_probseg.nii.gz") for kind in ("GM", "WM", "CSF")},
        dseg=named("dseg.nii.gz"),
        template_to_t1w=named("from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"),
    )


@pytest.fixture(scope="module")
def dwi(phantom, tmp_path_factory):
    """The series as preprocessing hands it on."""
    folder = tmp_path_factory.mktemp("dwi")
    np.savetxt(folder / "dwi.bval", phantom.bvals[None])
    np.savetxt(folder / "dwi.bvec", phantom.bvecs.T)
    images = {
        "dwi.nii": phantom.dwi,
        "mask.nii": phantom.mask.astype(np.uint8),
        "b0.nii": phantom.dwi[..., 0],
    }
    for name, data in images.items():
        nib.save(nib.Nifti1Image(data, phantom.affine), folder / name)
    names = ("dwi.nii", "dwi.bval", "dwi.bvec", "mask.nii", "b0.nii")
    return PreparedDwi(*(str(folder / name) for name in names))


@pytest.fixture(scope="module")
def prepared(fmriprep, tmp_path_factory):
    return prepare_anatomy(fmriprep, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def placed(dwi, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    return place_anatomy(dwi, prepared, folder, same_space=False)


@pytest.fixture
def quick(monkeypatch):
    """Fewer iterations, as many as these tests need."""
    fewer = partial(register_to_template, iterations=(40, 15))
    monkeypatch.setattr(module, "register_to_template", fewer)


def distances(labels, true, affine):
    """Return how far the centre of every ROI is from where it should be, in mm."""

    def centres(volume):
        index = center_of_mass(np.ones(volume.shape), volume, np.arange(1, 451))
        return np.array(index) @ affine[:3, :3].T

    return np.linalg.norm(centres(labels) - centres(true), axis=1)


def compare(path, phantom):
    """Return Dice of all labelled voxels with the truth on the series' grid, and distances."""
    found = resample(load_volume(Path(path)), phantom.mask.shape, phantom.affine, order=0).data
    same = ((found == phantom.labels) & (found > 0)).sum()
    dice = 2 * same / ((found > 0).sum() + (phantom.labels > 0).sum())
    return dice, distances(found, phantom.labels, phantom.affine)


def rewritten(path, change, folder, affine=None):
    """Write an image changed, under its own name in another folder."""
    image = nib.load(path)
    folder.mkdir(exist_ok=True)
    data = change(np.asarray(image.dataobj))
    out = folder / path.name
    nib.save(nib.Nifti1Image(data, image.affine if affine is None else affine), out)
    return out


class TestTransformOfDerivatives:
    def test_the_atlas_is_where_it_is(self, placed, phantom):
        dice, apart = compare(placed.labels, phantom)
        assert dice > 0.8
        assert np.nanmedian(apart) < 0.8
        assert np.nanmax(apart) < 3
        assert placed.details["ROIsCut"] == placed.details["ROIsOutside"] == []

    def test_the_files_are_as_the_engines_want_them(self, placed, prepared):
        labels, tissue = nib.load(placed.labels), nib.load(placed.tissue)
        assert labels.get_data_dtype() == np.int16
        assert tissue.get_data_dtype() == np.float32
        assert tissue.shape == (*labels.shape, 5)
        assert np.allclose(labels.affine, tissue.affine)
        assert set(np.unique(labels.dataobj)) == set(range(451))
        assert nib.load(prepared.t1w).shape == labels.shape

    def test_placing_writes_the_same_voxels(self, placed, prepared):
        for name in ("labels", "tissue"):
            before, after = nib.load(getattr(prepared, name)), nib.load(getattr(placed, name))
            assert (np.asarray(before.dataobj) == np.asarray(after.dataobj)).all()
            move = after.affine @ np.linalg.inv(before.affine)
            assert np.allclose(move[:3, :3] @ move[:3, :3].T, np.eye(3), atol=1e-4)

    def test_the_planted_movement_is_found(self, placed, prepared, phantom):
        move = nib.load(placed.labels).affine @ np.linalg.inv(nib.load(prepared.labels).affine)
        points = np.argwhere(phantom.tissues.brain)[::500] @ phantom.t1w_affine[:3, :3].T
        points = np.c_[points + phantom.t1w_affine[:3, 3], np.ones(len(points))]
        apart = (points @ (move - phantom.dwi_from_t1w).T)[:, :3]
        assert np.linalg.norm(apart, axis=1).max() < 1.0

    def test_tissues_are_those_of_the_maps(self, prepared, phantom):
        tissue = np.asarray(nib.load(prepared.tissue).dataobj)
        inside = np.asarray(nib.load(prepared.mask).dataobj) > 0
        assert np.allclose(tissue.sum(axis=-1), inside, atol=1e-5)
        total = phantom.tissues.white[phantom.tissues.brain].sum() * 8 / 1000
        assert prepared.details["TissueVolumesMl"]["White"] == pytest.approx(total, rel=0.02)
        assert "label-WM_probseg" in prepared.details["TissueSource"]

    def test_quality_is_measured_and_good(self, placed):
        quality = placed.details["RegistrationQuality"]
        assert quality["Verdict"] == "good"
        assert quality["MutualInformation"] > 1.3 * quality["MirrorInformation"]
        assert quality["MaskDice"] > 0.95
        assert quality["TemplateMaskDice"] > 0.95
        assert quality["Rotation"] == pytest.approx(7.1, abs=0.5)
        assert quality["CorticalROIsInGrey"] > 0.65
        assert quality["CorticalROIsOnInterface"] > 0.5
        assert not any("flagged" in note for note in placed.notes)


class TestOtherRoutes:
    def test_a_raw_image_is_extracted_registered_and_segmented(
        self, bids, phantom, dwi, quick, tmp_path
    ):
        image = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        raw = Anatomy("raw", image, Derivatives("raw", bids))
        prepared = prepare_anatomy(raw, tmp_path)
        assert prepared.details["BrainMask"] == "extracted here"
        assert prepared.details["TissueSource"] == "segmented here"
        mask = load_volume(Path(prepared.mask))
        true = Volume(phantom.tissues.brain, phantom.t1w_affine)
        wanted = resample(true, mask.data.shape, mask.affine, order=0).data
        overlap = 2 * (wanted & (mask.data > 0)).sum() / (wanted.sum() + (mask.data > 0).sum())
        assert overlap > 0.95
        placed = place_anatomy(dwi, prepared, tmp_path / "placed", same_space=False)
        dice, apart = compare(placed.labels, phantom)
        assert dice > 0.6
        assert np.nanmedian(apart[CORTEX]) < 1.5
        assert placed.details["RegistrationQuality"]["Verdict"] == "good"
        assert any("extracted here" in note for note in placed.notes)

    def test_without_t1w_the_series_has_to_do(self, phantom, dwi, quick, tmp_path):
        prepared = prepare_anatomy(None, tmp_path)
        assert prepared.t1w is None
        placed = place_anatomy(dwi, prepared, tmp_path, same_space=False)
        assert placed.tissue is None
        assert any("without anatomical constraints" in note for note in placed.notes)
        assert nib.load(placed.labels).header.get_zooms() == (1, 1, 1)
        assert nib.load(placed.labels).get_data_dtype() == np.int16
        dice, apart = compare(placed.labels, phantom)
        assert dice > 0.6
        assert np.nanmedian(apart[CORTEX]) < 1.5
        assert placed.details["RegistrationQuality"]["Verdict"] == "good"

    def test_a_series_that_is_aligned_is_left_where_it_is(self, dwi, prepared, phantom, tmp_path):
        # What QSIPrep makes: the head where the T1w has it.
        back = np.linalg.inv(phantom.dwi_from_t1w)
        aligned = {}
        for name in ("b0", "mask", "image"):
            path = Path(getattr(dwi, name))
            affine = back @ nib.load(path).affine
            aligned[name] = str(rewritten(path, lambda d: d, tmp_path, affine))
        series = replace(dwi, **aligned)
        placed = place_anatomy(series, prepared, tmp_path / "out", same_space=True)
        assert np.allclose(nib.load(placed.labels).affine, nib.load(prepared.labels).affine)
        quality = placed.details["RegistrationQuality"]
        assert quality["Verdict"] == "good"
        assert quality["Offset"] < 1

    def test_a_series_that_is_said_to_be_aligned_and_is_not(self, dwi, prepared, tmp_path):
        placed = place_anatomy(dwi, prepared, tmp_path, same_space=True)
        quality = placed.details["RegistrationQuality"]
        assert quality["Verdict"] == "poor"
        assert quality["Offset"] > 5
        assert any("flagged as poor" in note for note in placed.notes)

    def test_a_brain_without_head_needs_no_extraction(self, fmriprep, phantom, tmp_path):
        inside = phantom.tissues.brain
        image = rewritten(fmriprep.t1w, lambda d: np.where(inside, d, 0), tmp_path)
        prepared = prepare_anatomy(replace(fmriprep, t1w=image, mask=None), tmp_path)
        assert prepared.details["BrainMask"] == "voxels above 0"


class TestTissueSources:
    @pytest.fixture
    def freesurfer(self, fmriprep, phantom, tmp_path):
        t = phantom.tissues
        numbers = np.where(t.white >= 0.5, 2, np.where(t.grey >= 0.5, 1012, 24)).astype(np.int32)
        numbers[(t.labels > 0) & (t.labels <= 50)] = 10
        numbers[~t.brain] = 0
        path = tmp_path / "sub-01_desc-aparcaseg_dseg.nii.gz"
        nib.save(nib.Nifti1Image(numbers, phantom.t1w_affine), path)
        return replace(fmriprep, aparcaseg=path)

    def test_freesurfer_comes_first(self, freesurfer, tmp_path):
        found = prepare_anatomy(freesurfer, tmp_path / "work")
        assert found.details["TissueSource"] == "sub-01_desc-aparcaseg_dseg.nii.gz"
        assert set(np.unique(nib.load(found.tissue).dataobj)) == {0, 1}

    def test_what_is_on_another_grid_is_resampled_and_said(self, freesurfer, phantom, tmp_path):
        path = freesurfer.aparcaseg
        image = nib.load(path)
        padded = np.pad(np.asarray(image.dataobj), ((3, 0), (0, 0), (0, 2)))
        affine = image.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ [3, 0, 0]
        nib.save(nib.Nifti1Image(padded, affine), path)
        found = prepare_anatomy(freesurfer, tmp_path / "work")
        assert any("on another grid" in note for note in found.notes)
        white = phantom.tissues.white >= 0.5
        white &= ~((phantom.tissues.labels > 0) & (phantom.tissues.labels <= 50))
        total = white.sum() * 8 / 1000
        assert found.details["TissueVolumesMl"]["White"] == pytest.approx(total, rel=1e-3)

    def test_an_empty_segmentation_is_passed_over(self, freesurfer, tmp_path):
        empty = rewritten(freesurfer.aparcaseg, np.zeros_like, tmp_path / "empty")
        anatomy = replace(freesurfer, aparcaseg=empty)
        found = prepare_anatomy(anatomy, tmp_path / "work")
        assert "probseg" in found.details["TissueSource"]
        assert any("not used, only 0%" in note for note in found.notes)

    def test_maps_without_numbers_are_passed_over(self, fmriprep, tmp_path):
        def void(data):
            return np.full(data.shape, np.nan, np.float32)

        grey = rewritten(fmriprep.probseg["GM"], void, tmp_path / "void")
        anatomy = replace(fmriprep, probseg={**fmriprep.probseg, "GM": grey})
        found = prepare_anatomy(anatomy, tmp_path / "work")
        assert found.details["TissueSource"] == "sub-01_dseg.nii.gz"
        assert any("numbers are missing" in note for note in found.notes)

    def test_a_truncated_map_is_an_error_that_names_it(self, fmriprep, tmp_path):
        path = tmp_path / "sub-01_label-WM_probseg.nii.gz"
        content = fmriprep.probseg["WM"].read_bytes()
        path.write_bytes(content[: len(content) // 2])
        anatomy = replace(fmriprep, probseg={**fmriprep.probseg, "WM": path})
        with pytest.raises(BadDataError, match="label-WM_probseg"):
            prepare_anatomy(anatomy, tmp_path / "work")


def refused(anatomy, folder, match, error=BadDataError):
    with pytest.raises(error, match=match) as caught:
        prepare_anatomy(anatomy, folder / "work")
    assert caught.value.hint


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (np.zeros_like, "same value"),
            (lambda d: np.full_like(d, 7), "same value"),
            (lambda d: np.full(d.shape, np.nan, np.float32), "no finite number"),
            (lambda d: (d - d.mean()) / d.std(), "below 0"),
            (lambda d: d[..., :1], "brain mask holds 0 ml"),
        ],
    )
    def test_images(self, fmriprep, tmp_path, change, match):
        image = rewritten(fmriprep.t1w, change, tmp_path)
        refused(replace(fmriprep, t1w=image), tmp_path, match)

    def test_a_brain_with_holes(self, fmriprep, phantom, tmp_path):
        def pierced(data):
            data = data.astype(np.float32)
            data[::5][phantom.tissues.brain[::5]] = np.nan
            return data

        image = rewritten(fmriprep.t1w, pierced, tmp_path)
        refused(replace(fmriprep, t1w=image), tmp_path, r"_T1w\.nii\.gz: 20% of the brain")

    def test_missing_numbers_outside_of_the_brain_are_said(self, fmriprep, phantom, tmp_path):
        def bare(data):
            return np.where(phantom.tissues.brain, data, np.nan).astype(np.float32)

        image = rewritten(fmriprep.t1w, bare, tmp_path)
        found = prepare_anatomy(replace(fmriprep, t1w=image), tmp_path / "work")
        assert any("not finite numbers" in note for note in found.notes)
        assert np.isfinite(nib.load(found.t1w).get_fdata()).all()

    def test_an_image_in_which_no_brain_is_found(self, fmriprep, tmp_path, monkeypatch):
        def unlike(head):
            raise BadDataError("a brain of 12 ml was found, which is none", "give a brain mask")

        monkeypatch.setattr(t1w, "extract_brain", unlike)
        refused(replace(fmriprep, mask=None), tmp_path, r"_T1w\.nii\.gz: a brain of 12 ml")

    def test_an_empty_mask(self, fmriprep, tmp_path):
        mask = rewritten(fmriprep.mask, np.zeros_like, tmp_path)
        refused(replace(fmriprep, mask=mask), tmp_path, r"_mask\.nii\.gz: the brain mask is empty")

    def test_a_mask_on_another_grid(self, fmriprep, prepared, tmp_path):
        def shorter(data):
            return data[..., :-2]

        mask = rewritten(fmriprep.mask, shorter, tmp_path)
        found = prepare_anatomy(replace(fmriprep, mask=mask), tmp_path / "work")
        assert any("_mask.nii.gz: on another grid" in note for note in found.notes)
        assert found.details["BrainVolumeMl"] == prepared.details["BrainVolumeMl"]

    def test_a_missing_transform(self, fmriprep, tmp_path):
        anatomy = replace(fmriprep, template_to_t1w=tmp_path / "gone_xfm.h5")
        refused(anatomy, tmp_path, r"gone_xfm\.h5: no such file", InputMissingError)

    def test_a_transform_of_somebody_else(self, fmriprep, tmp_path):
        other = draw_head(np.random.default_rng([4, 0]), 0.87, 2.0)
        path = tmp_path / "from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"
        write_transform(other, path)
        refused(replace(fmriprep, template_to_t1w=path), tmp_path, r"_xfm\.h5: does not bring")

    def test_a_transform_the_other_way_round(self, fmriprep, phantom, tmp_path):
        path = tmp_path / "from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"
        head = phantom.head
        inverse = replace(head, affine=np.linalg.inv(head.affine), field=-head.field)
        write_transform(inverse, path)
        refused(replace(fmriprep, template_to_t1w=path), tmp_path, r"_xfm\.h5: does not bring")

    def test_a_flipped_image(self, fmriprep, prepared, dwi, tmp_path):
        # Data flipped, affine as it was: nothing in the file tells.
        flipped = {}
        for name in ("t1w", "mask", "labels", "tissue"):
            path = Path(getattr(prepared, name))
            flipped[name] = str(rewritten(path, lambda d: d[::-1], tmp_path))
        anatomy = replace(prepared, **flipped)
        with pytest.raises(BadDataError, match="mirrored left to right") as caught:
            place_anatomy(dwi, anatomy, tmp_path / "work", same_space=False)
        assert fmriprep.t1w.name in str(caught.value)
        assert dwi.image in str(caught.value)
        assert "cannot be told" in caught.value.hint


def test_rois_that_the_series_does_not_show_are_absent(dwi, prepared, phantom, tmp_path):
    keep = phantom.mask.shape[2] - 14  # the top of the head is cut off

    def lower(path):
        return str(rewritten(Path(path), lambda d: d[:, :, :keep], tmp_path))

    series = replace(dwi, image=lower(dwi.image), b0=lower(dwi.b0), mask=lower(dwi.mask))
    placed = place_anatomy(series, prepared, tmp_path / "work", same_space=False)
    labels = load_volume(Path(placed.labels))
    here = np.argwhere(labels.data > 0) @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    assert here[:, 2].max() <= phantom.affine[2, 3] + (keep - 0.5) * phantom.affine[2, 2] + 1e-3
    lost, cut = placed.details["ROIsOutside"], placed.details["ROIsCut"]
    assert len(lost) >= 3
    assert len(cut) >= 3
    present = set(np.unique(labels.data)) - {0}
    absent = {atlas.roi_names()[i - 1] for i in set(range(1, 451)) - present}
    assert absent == set(lost)
    assert any(f"{len(lost)} ROIs lie outside" in note for note in placed.notes)
    assert (np.asarray(nib.load(placed.tissue).dataobj) > 0).sum() > 0


def test_again_the_same_bits_with_what_was_told_of_the_anatomy(dwi, prepared, placed, tmp_path):
    told = replace(prepared, notes=["Something was repaired."], details=prepared.details | {"A": 1})
    again = place_anatomy(dwi, told, tmp_path, same_space=False)
    assert again.notes == ["Something was repaired.", *placed.notes]
    assert again.details == placed.details | {"A": 1}
    assert Path(again.labels).read_bytes() == Path(placed.labels).read_bytes()


def test_nothing_is_prepared_of_nothing(tmp_path):
    assert isinstance(prepare_anatomy(None, tmp_path), PreparedAnatomy)
