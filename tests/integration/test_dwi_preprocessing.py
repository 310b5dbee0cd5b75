"""Raw diffusion series become ones that can be modelled; phantoms know what should come out."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dipy.denoise.gibbs import gibbs_removal
from dipy.denoise.localpca import mppca as dipy_mppca
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bsym_bids.dwi import fsl, mppca, preprocessing
from bsym_bids.dwi.gradients import Gradients, read_gradients, world_directions
from bsym_bids.dwi.motion import nearest_rotation
from bsym_bids.dwi.preprocessing import bias_field, prepare_dwi
from bsym_bids.dwi.series import SeriesWriter, create_series, read_volumes, save_image
from bsym_bids.errors import BadDataError
from bsym_bids.inputs.records import Derivatives, DwiImage, DwiScan
from bsym_bids.simulation.diffusion import make_phantom
from bsym_bids.simulation.diffusion_files import write_phantom
from bsym_bids.simulation.diffusion_signal import pose_matrix

SMALL = {"voxel_mm": 5.0, "t1w_mm": 3.0, "n_bundles": 8, "shells": ((0.0, 2), (1000.0, 12))}
#: The first volume, which has no weighting, becomes the sixth.
ORDER = np.r_[2:7, 0:2, 7:14]
FILES = ["b0.nii", "dwi.bval", "dwi.bvec", "dwi.nii", "mask.nii"]


@pytest.fixture(scope="module")
def phantom():
    """Whose head moved by up to 3 mm and degrees."""
    made = make_phantom(3, **SMALL, motion=3.0, determinant=1)
    moved = {name: getattr(made, name)[ORDER] for name in ("bvals", "bvecs", "motion")}
    return replace(made, dwi=made.dwi[..., ORDER], **moved)


def scan_of(folder, stem="sub-01_dwi", encoding="j-", **more):
    start = folder / stem
    image = DwiImage(*(Path(f"{start}.{end}") for end in ("nii.gz", "bval", "bvec")), encoding, 0.1)
    return DwiScan({"sub": "01"}, (image,), Derivatives("raw", folder), **more)


@pytest.fixture(scope="module")
def scan(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bids")
    write_phantom(phantom, folder, "01", with_t1w=False)
    return scan_of(folder / "sub-01" / "dwi")


@contextmanager
def without_commands():
    """As where neither MRtrix3 nor FSL is installed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (preprocessing, mppca, fsl):
            patch.setattr(module, "find_command", lambda name: None)
        yield


@contextmanager
def transforms_kept(kept):
    def keep(*arguments):
        found = original(*arguments)
        kept.append(found[0])
        return found

    original = preprocessing.correct_motion
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing, "correct_motion", keep)
        yield


@pytest.fixture(scope="module")
def own(scan, tmp_path_factory):
    """Prepared with nothing but Python, by one process and by two, and the motion found."""
    kept = []
    with without_commands(), transforms_kept(kept):
        prepared = [
            prepare_dwi(scan, tmp_path_factory.mktemp("own"), threads=threads) for threads in (1, 2)
        ]
    return (*prepared, kept[0])


def contents(dwi):
    return [
        Path(getattr(dwi, name)).read_bytes() for name in ("image", "bval", "bvec", "mask", "b0")
    ]


def test_the_number_of_processes_changes_no_bit(own):
    one, two, _ = own
    assert contents(one) == contents(two)
    assert (one.notes, one.details) == (two.notes, two.details)


def test_only_what_is_handed_on_stays(own):
    assert sorted(path.name for path in Path(own[0].image).parent.iterdir()) == FILES


def test_what_is_handed_on_fits_together(own, phantom):
    dwi = own[0]
    image, mask, b0 = (nib.load(path) for path in (dwi.image, dwi.mask, dwi.b0))
    assert image.shape == (*mask.shape, 14) and mask.shape == b0.shape == phantom.mask.shape
    for one in (image, mask, b0):
        np.testing.assert_allclose(one.affine, phantom.affine, atol=1e-4)
    assert image.get_data_dtype() == b0.get_data_dtype() == np.float32
    gradients, notes = read_gradients(Path(dwi.bval), Path(dwi.bvec), 14)
    assert np.flatnonzero(gradients.is_b0).tolist() == [5, 7] and not notes
    np.testing.assert_allclose(
        b0.get_fdata(), image.get_fdata()[..., [5, 7]].mean(axis=-1), rtol=1e-5, atol=1e-2
    )
    json.dumps(dict(dwi.details))


def test_it_says_what_was_done_with_what(own):
    dwi = own[0]
    assert dwi.details["Denoising"]["Tool"] == "dipy.denoise.localpca.mppca"
    assert dwi.details["GibbsRemoval"]["Tool"] == "dipy.denoise.gibbs.gibbs_removal"
    assert dwi.details["MotionCorrection"]["Tool"] == "SimpleITK"
    assert dwi.details["BrainMask"]["Source"] == "computed"
    assert any("FSL is not on the PATH" in note for note in dwi.notes)
    assert any(
        "The head moved by" in note and "gradients were rotated" in note for note in dwi.notes
    )


def true_transforms(phantom):
    """From where the head was in the first volume without weighting to where it was in each."""
    shape = phantom.mask.shape
    centre = phantom.affine[:3, :3] @ ((np.array(shape) - 1) / 2) + phantom.affine[:3, 3]
    poses = np.array([pose_matrix(pose, centre) for pose in phantom.motion])
    return poses @ np.linalg.inv(poses[np.flatnonzero(phantom.bvals == 0)[0]])


def mean_distances(one, other, phantom):
    """Mean distance between where two transforms put the brain, mm, one per volume."""
    points = np.argwhere(phantom.mask)[::20] @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
    apart = one - other
    moved = np.einsum("vij,nj->vni", apart[:, :3, :3], points) + apart[:, None, :3, 3]
    return np.linalg.norm(moved, axis=2).mean(axis=1)


def degrees(rotations):
    return np.degrees(Rotation.from_matrix(rotations).magnitude())


def assert_motion_is_undone(motion, phantom):
    truth = true_transforms(phantom)
    planted = mean_distances(truth, np.eye(4)[None], phantom)
    left = mean_distances(motion.transforms, truth, phantom)
    assert planted.mean() > 1.5 and planted.max() > 3
    assert left.mean() < 0.35 * planted.mean() and left.max() < 0.9
    rotations = np.array([nearest_rotation(t[:3, :3]) for t in truth])
    turned = degrees(rotations)
    left = degrees(rotations @ motion.rotations)
    assert turned.max() > 1 and left.mean() < 0.5 * turned.mean()


def test_planted_motion_is_undone(own, phantom):
    assert_motion_is_undone(own[2], phantom)
    found = own[0].details["MotionCorrection"]
    assert found["MaxTranslationMm"] == pytest.approx(
        mean_distances(true_transforms(phantom), np.eye(4)[None], phantom).max(), abs=1
    )


def test_gradients_are_rotated_with_the_head(own, phantom):
    truth = true_transforms(phantom)
    weighted = phantom.bvals > 0
    measured = world_directions(Gradients(phantom.bvals, phantom.bvecs), phantom.affine)
    expected = np.einsum("vji,vj->vi", truth[:, :3, :3], measured)[weighted]
    gradients, _ = read_gradients(Path(own[0].bval), Path(own[0].bvec), 14)
    found = world_directions(gradients, phantom.affine)[weighted]

    def error(vectors):
        cosine = np.abs((vectors * expected).sum(axis=1))
        return np.degrees(np.arccos(np.clip(cosine, 0, 1))).mean()

    wrong_way = np.einsum("vij,vj->vi", truth[:, :3, :3], measured)[weighted]
    assert error(found) < 0.5 * error(measured[weighted]) < 0.5 * error(wrong_way)


def test_the_corrected_series_is_that_of_a_head_that_lay_still(own, phantom):
    still = make_phantom(3, **SMALL, motion=0.0, determinant=1, snr=1000.0, bias=0.0).dwi[
        ..., ORDER
    ]
    found, inner = read_volumes(Path(own[0].image)), ndimage.binary_erosion(phantom.mask)

    def likeness(series):
        return np.mean(
            [np.corrcoef(series[inner][:, v], still[inner][:, v])[0, 1] for v in range(14)]
        )

    # With noise, but without motion, it would be 0.92.
    assert likeness(found) > 0.8
    assert 1 - likeness(found) < 0.6 * (1 - likeness(phantom.dwi))


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_mask_is_the_brain(own, phantom):
    assert dice(np.asarray(nib.load(own[0].mask).dataobj) > 0, phantom.mask) > 0.95


def test_the_field_of_the_coil_is_found(phantom):
    """What the phantom's own field is shows where it is scanned without."""
    with_field, without = (
        make_phantom(3, **SMALL, motion=0.0, determinant=1, bias=bias, snr=1e5).dwi[..., 0]
        for bias in (0.2, 0.0)
    )
    inside = phantom.mask
    true = np.log(with_field[inside] / without[inside])
    found = np.log(bias_field(with_field, inside, phantom.affine)[inside])
    assert np.corrcoef(found, true)[0, 1] > 0.9
    assert np.std(found - true) < 0.5 * np.std(true)


def test_a_planted_field_is_found(phantom):
    b0 = phantom.dwi[..., 5]
    place = np.stack(np.indices(b0.shape), -1) / b0.shape
    planted = np.exp(0.5 * np.sin(2 * place[..., 0] + 1) + 0.6 * (place[..., 1] - 0.5) ** 2)
    planted = (planted / planted[phantom.mask].mean()).astype(np.float32)
    without, found = (
        bias_field(image, phantom.mask, phantom.affine) for image in (b0, b0 * planted)
    )
    assert found[phantom.mask].mean() == pytest.approx(1, abs=1e-4)
    inside = phantom.mask
    gained = np.log(found / without)[inside]
    assert np.corrcoef(gained, np.log(planted)[inside])[0, 1] > 0.9
    assert np.std(gained - np.log(planted)[inside]) < 0.5 * np.std(np.log(planted)[inside])


@pytest.mark.mrtrix3
def test_with_mrtrix3_its_commands_are_used(scan, phantom, tmp_path):
    kept = []
    with transforms_kept(kept):
        dwi = prepare_dwi(scan, tmp_path, threads=1)
    assert dwi.details["Denoising"]["Tool"] == "dwidenoise"
    assert dwi.details["GibbsRemoval"]["Tool"] == "mrdegibbs"
    assert dwi.details["Denoising"]["Version"].startswith("3.")
    assert dwi.details["SignalToNoiseB0"] == pytest.approx(phantom.snr, rel=0.5)
    assert_motion_is_undone(kept[0], phantom)
    assert dice(np.asarray(nib.load(dwi.mask).dataobj) > 0, phantom.mask) > 0.95
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.fixture
def piece(phantom, tmp_path):
    """Part of the series on disk, and where it is brain."""
    part = np.s_[10:22, 8:20, 5:24]
    data = phantom.dwi[part]
    with SeriesWriter(tmp_path / "piece.nii", data.shape[:3], phantom.affine) as writer:
        for index in range(14):
            writer.append(data[..., index])
    mask = phantom.mask[part].copy()
    mask[:, :3] = False
    return tmp_path / "piece.nii", data, mask


def denoised_in_slabs(piece, phantom, method, thickness):
    path, data, mask = piece
    out = path.with_name("out.nii")
    create_series(out, data.shape, phantom.affine)
    columns = mppca.columns_of(mask, method)
    levels = [
        mppca.denoise_slab(path, out, start, thickness, columns, mask, method)
        for start in range(0, data.shape[2], thickness)
    ]
    return read_volumes(out), np.concatenate(levels, axis=2)


def assert_only_the_mask_changed(found, data, mask):
    np.testing.assert_array_equal(found[~mask], data[~mask])
    assert np.abs(found - data)[mask].mean() > 1  # it did something


@pytest.mark.parametrize("thickness", [4, 6, 7, 100])
def test_denoising_in_slabs_is_that_of_dipy_in_one(piece, phantom, thickness):
    _, data, mask = piece
    with np.errstate(invalid="ignore"):
        clean, sigma = dipy_mppca(data, mask=mask, patch_radius=2, return_sigma=True)
    with without_commands():
        method = mppca.choose_method(14)
    found, levels = denoised_in_slabs(piece, phantom, method, thickness)
    reached = mask & clean.any(axis=-1)
    assert reached.sum() > 0.3 * mask.sum()
    np.testing.assert_allclose(found[reached], clean[reached], rtol=1e-5)
    np.testing.assert_allclose(levels[reached], sigma[reached], rtol=1e-4, atol=1e-3)
    assert_only_the_mask_changed(found, data, reached)


def test_what_no_patch_reaches_stays_as_it_is(piece, phantom):
    path, data, mask = piece
    mask[:] = False
    mask[5:8, 5:8, 0] = True  # patches of DIPY lie inside the image
    with without_commands():
        method = mppca.choose_method(14)
    found, levels = denoised_in_slabs((path, data, mask), phantom, method, 6)
    np.testing.assert_array_equal(found, data)
    assert not levels.any()


@pytest.mark.mrtrix3
@pytest.mark.parametrize("thickness", [1, 4, 100])
def test_denoising_in_slabs_is_that_of_mrtrix3_in_one(piece, phantom, tmp_path, thickness):
    path, data, mask = piece
    save_image(tmp_path / "mask.nii", mask, phantom.affine)
    command = ["dwidenoise", path, "clean.nii", "-mask", "mask.nii", "-noise", "sigma.nii"]
    subprocess.run([*command, "-quiet"], cwd=tmp_path, check=True)
    clean, sigma = (nib.load(tmp_path / f"{n}.nii").get_fdata() for n in ("clean", "sigma"))
    found, levels = denoised_in_slabs(piece, phantom, mppca.choose_method(14), thickness)
    np.testing.assert_allclose(found[mask], clean[mask], rtol=1e-5)
    np.testing.assert_allclose(levels[mask], sigma[mask], rtol=1e-5)
    assert_only_the_mask_changed(found, data, mask)


def test_patches_are_as_large_as_dwidenoise_takes_them():
    """Its help: 5 x 5 x 5 for up to 125 volumes, 7 x 7 x 7 for up to 343."""
    assert [mppca.patch_radius(n) for n in (10, 27, 28, 125, 126, 343)] == [1, 1, 2, 2, 3, 3]


def test_large_series_are_denoised_in_thinner_slabs():
    small, large = (mppca.slab_thickness(4 * 120 * 140 * n, 3) for n in (30, 300))
    assert small > large >= 1


@pytest.mark.parametrize("axis", [0, 2])
def test_ringing_is_removed_as_by_dipy(piece, phantom, tmp_path, axis):
    path, data, _ = piece
    out = tmp_path / "out.nii"
    create_series(out, data.shape, phantom.affine)
    for index in (0, 5):
        preprocessing._unring_volume(path, index, axis, out)
    expected = gibbs_removal(data[..., [0, 5]].copy(), slice_axis=axis, num_processes=1)
    np.testing.assert_allclose(read_volumes(out)[..., [0, 5]], expected, rtol=1e-4, atol=1e-2)
    assert np.abs(expected - data[..., [0, 5]]).max() > 1


@pytest.fixture
def only_bias_and_mask(monkeypatch):
    """Leave out what takes long."""
    monkeypatch.setattr(preprocessing, "_remove_ringing", lambda series, *_: series)
    monkeypatch.setattr(preprocessing, "_correct_motion", lambda series, *_: series)


@pytest.mark.usefixtures("only_bias_and_mask")
def test_few_volumes_are_not_denoised(scan, tmp_path):
    data = nib.load(scan.images[0].image)
    keep = np.r_[5, 0:5, 7:9]
    few = scan_of(tmp_path)
    nib.save(nib.Nifti1Image(data.get_fdata()[..., keep], data.affine), few.images[0].image)
    for end in ("bval", "bvec"):
        table = np.loadtxt(getattr(scan.images[0], end), ndmin=2)[:, keep]
        np.savetxt(getattr(few.images[0], end), table)
    with without_commands():
        dwi = prepare_dwi(few, tmp_path / "work", threads=1)
    assert any("Not denoised: 8 volumes are too few" in note for note in dwi.notes)
    assert "Denoising" not in dwi.details and "SignalToNoiseB0" not in dwi.details


def test_an_image_without_a_brain_is_refused_by_name(scan, tmp_path, monkeypatch):
    nothing = np.zeros(nib.load(scan.images[0].image).shape[:3], dtype=bool)
    monkeypatch.setattr(preprocessing, "brain_mask", lambda *_: nothing)
    monkeypatch.setattr(preprocessing, "FEWEST_TO_DENOISE", 100)
    monkeypatch.setattr(preprocessing, "_remove_ringing", lambda series, *_: series)
    with pytest.raises(BadDataError, match=r"sub-01_dwi\.nii\.gz: the brain mask is empty"):
        prepare_dwi(scan, tmp_path, threads=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A phantom that lay still, and where it is written as QSIPrep writes."""
    aligned = make_phantom(3, **SMALL, motion=0.0, rotation=(0.0, 0.0, 0.0))
    folder = tmp_path_factory.mktemp("bids")
    write_phantom(aligned, folder, "01", derivatives="qsiprep", with_t1w=False)
    return aligned, folder / "derivatives" / "qsiprep" / "sub-01" / "dwi"


class TestPreprocessed:
    """Series that QSIPrep made."""

    STEM = "sub-01_space-ACPC_desc-preproc_dwi"

    @pytest.fixture(autouse=True)
    def nothing_runs(self, monkeypatch):
        def refuse(*arguments, **options):
            raise AssertionError(f"{arguments} was called")

        for name in ("run", "workers", "correct_motion", "bias_field", "correct_with_fsl"):
            monkeypatch.setattr(preprocessing, name, refuse)

    def test_are_not_processed_again(self, made, tmp_path):
        aligned, folder = made
        mask = folder / "sub-01_space-ACPC_desc-brain_mask.nii.gz"
        scan = scan_of(folder, self.STEM, space="ACPC", mask=mask)
        dwi = prepare_dwi(scan, tmp_path, threads=1)
        given = nib.load(scan.images[0].image)
        np.testing.assert_array_equal(read_volumes(Path(dwi.image)), given.get_fdata())
        np.testing.assert_array_equal(nib.load(dwi.mask).get_fdata() > 0, aligned.mask)
        gradients, _ = read_gradients(Path(dwi.bval), Path(dwi.bvec), 14)
        np.testing.assert_allclose(gradients.bvecs, aligned.bvecs, atol=1e-6)
        assert "it was not processed again" in dwi.notes[0]
        assert dwi.details["BrainMask"]["Source"] == mask.name
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES

    def test_get_a_mask_where_they_have_none(self, made, tmp_path):
        aligned, folder = made
        dwi = prepare_dwi(scan_of(folder, self.STEM, space="ACPC"), tmp_path, threads=1)
        assert dice(nib.load(dwi.mask).get_fdata() > 0, aligned.mask) > 0.95
        assert any("no brain mask beside the series" in note for note in dwi.notes)

    def test_need_a_mask_that_is_theirs_and_not_empty(self, made, tmp_path):
        aligned, folder = made
        scan = scan_of(folder, self.STEM, space="ACPC", mask=tmp_path / "mask.nii.gz")
        save_image(scan.mask, np.zeros_like(aligned.mask), aligned.affine)
        with pytest.raises(BadDataError, match=r"mask\.nii\.gz: the brain mask is empty"):
            prepare_dwi(scan, tmp_path / "work", threads=1)
        moved = aligned.affine.copy()
        moved[1, 3] += 2.5
        save_image(scan.mask, aligned.mask, moved)
        with pytest.raises(BadDataError, match=r"mask\.nii\.gz: the mask is not on the grid"):
            prepare_dwi(scan, tmp_path / "work", threads=1)
        save_image(scan.mask, aligned.mask, aligned.affine)
        scan.mask.write_bytes(scan.mask.read_bytes()[:500])
        with pytest.raises(BadDataError, match=r"mask\.nii\.gz: cannot be read"):
            prepare_dwi(scan, tmp_path / "work", threads=1)


# What FSL's commands take and leave, and nothing of what they do.
FAKE = """#!{python}
import json, os, shutil, sys
import nibabel as nib
import numpy as np
name = os.path.basename(sys.argv[0])
with open({log!r}, "a") as log:
    log.write(json.dumps([name, sys.argv[1:], os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if len(sys.argv) == 1:
    sys.exit(1)  # dwifslpreproc reads the help text
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
if name == "topup":
    image = nib.load(options["imain"])
    shutil.copy(options["imain"], "topup_was_given.nii")
    flat = nib.Nifti1Image(np.zeros(image.shape[:3], np.float32), image.affine)
    nib.save(flat, options["fout"])
    nib.save(flat, "field_fieldcoef.nii.gz")
    open("field_movpar.txt", "w").write("0 0 0 0 0 0\\n")
elif name == "applytopup":
    image = nib.load(options["imain"])
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), options["out"])
else:
    if os.environ.get("FAKE_EDDY_FAILS"):
        sys.stderr.write("EddyException: no good\\n")
        sys.exit(1)
    image = nib.load(options["imain"])
    out = options["out"]
    nib.save(nib.Nifti1Image(image.get_fdata() * 2, image.affine), out + ".nii.gz")
    shutil.copy(options["bvecs"], out + ".eddy_rotated_bvecs")
    movement = np.tile([0.5, 0.25], (image.shape[3], 1))
    np.savetxt(out + ".eddy_movement_rms", movement)
"""


@pytest.mark.mrtrix3
class TestWithFsl:
    """MRtrix3's own dwifslpreproc, with commands in the place of FSL's that only take and leave."""

    @pytest.fixture
    def calls(self, tmp_path, monkeypatch):
        home = tmp_path / "fsl"
        (home / "bin").mkdir(parents=True)
        (home / "etc" / "flirtsch").mkdir(parents=True)
        (home / "etc" / "flirtsch" / "b02b0.cnf").write_text("")
        (home / "etc" / "fslversion").write_text("6.0.0\n")
        log = tmp_path / "log"
        log.touch()
        for name in ("topup", "applytopup", "eddy_cpu", "eddy_openmp"):
            command = home / "bin" / name
            command.write_text(FAKE.format(python=sys.executable, log=str(log)))
            command.chmod(0o755)
        monkeypatch.setenv("FSLDIR", str(home))
        monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(preprocessing, "FEWEST_TO_DENOISE", 100)

        def read():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            return {name: arguments for name, arguments, _ in lines if arguments}

        return read

    def test_eddy_is_used_and_its_result_taken(self, scan, calls, tmp_path):
        dwi = prepare_dwi(scan, tmp_path / "work", threads=1)
        assert set(calls()) == {"eddy_openmp"}
        assert "--repol" in calls()["eddy_openmp"] and "--slm=linear" in calls()["eddy_openmp"]
        assert any("FSL 6.0.0 (eddy, without topup" in note for note in dwi.notes)
        motion = dwi.details["MotionCorrection"]
        assert motion["Tool"] == "dwifslpreproc" and not motion["SusceptibilityCorrected"]
        assert (motion["MeanDisplacementMm"], motion["MeanFramewiseDisplacementMm"]) == (0.5, 0.25)
        command = motion["Command"]
        assert command[command.index("-pe_dir") + 1] == "j-"
        raw = nib.load(scan.images[0].image).get_fdata()[..., 0]
        inside = nib.load(dwi.mask).get_fdata() > 0
        ratio = np.median(read_volumes(Path(dwi.image))[..., 0][inside] / raw[inside])
        assert ratio == pytest.approx(2, rel=0.15)  # the bias field is about one
        ours, _ = read_gradients(scan.images[0].bval, scan.images[0].bvec, 14)
        theirs, _ = read_gradients(Path(dwi.bval), Path(dwi.bvec), 14)
        np.testing.assert_allclose(theirs.bvecs, ours.bvecs, atol=1e-4)
        assert sorted(path.name for path in (tmp_path / "work").iterdir()) == FILES

    def test_a_reversed_series_goes_to_topup_alone(self, scan, calls, tmp_path):
        back = replace(scan.images[0], phase_encoding="j")
        unknown = replace(scan.images[0], phase_encoding=None)
        dwi = prepare_dwi(replace(scan, reverse=(back, unknown)), tmp_path / "work", threads=1)
        assert set(calls()) == {"topup", "applytopup", "eddy_openmp"}
        assert any(word.startswith("--topup=") for word in calls()["eddy_openmp"])
        assert any("eddy and topup" in note for note in dwi.notes)
        assert any("no PhaseEncodingDirection" in note for note in dwi.notes)
        assert dwi.details["MotionCorrection"]["SusceptibilityCorrected"]
        assert nib.load(dwi.image).shape[3] == 14

    def test_pairs_of_both_encodings_become_one_series(self, scan, calls, tmp_path):
        back = replace(scan.images[0], phase_encoding="j")
        both = replace(scan, images=(*scan.images, back))
        dwi = prepare_dwi(both, tmp_path / "work", threads=1)
        assert set(calls()) == {"topup", "applytopup", "eddy_openmp"}
        assert nib.load(dwi.image).shape[3] == 14
        assert any("28 volumes became 14" in note for note in dwi.notes)

    def test_what_eddy_says_is_passed_on(self, scan, calls, tmp_path, monkeypatch):
        monkeypatch.setenv("FAKE_EDDY_FAILS", "1")
        with pytest.raises(Exception, match=r"dwifslpreproc failed.*EddyException: no good"):
            prepare_dwi(scan, tmp_path / "work", threads=1)

    def test_it_is_left_alone_where_no_sidecar_says_the_encoding(self, scan, calls, monkeypatch):
        unknown = replace(scan.images[0], phase_encoding=None)
        found, notes = fsl.choose_fsl([unknown])
        assert found is None and "sub-01_dwi.nii.gz has no PhaseEncodingDirection" in notes[0]
        found, notes = fsl.choose_fsl(scan.images)
        assert found.topup and found.eddy in ("eddy_openmp", "eddy_cpu") and not notes


def test_without_topup_one_of_two_encodings_is_kept(scan, tmp_path, monkeypatch):
    back = replace(scan.images[0], phase_encoding="j")
    kept = []

    def stop(runs, *_):
        kept.extend(runs)
        raise BadDataError("far enough")

    monkeypatch.setattr(preprocessing, "gather", stop)
    with without_commands(), pytest.raises(BadDataError, match="far enough"):
        prepare_dwi(replace(scan, images=(*scan.images, back)), tmp_path, threads=1)
    assert [run.source.phase_encoding for run in kept] == ["j-"]


@pytest.mark.usefixtures("only_bias_and_mask")
def test_reversed_series_that_cannot_be_used_are_named(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "FEWEST_TO_DENOISE", 100)
    with without_commands():
        dwi = prepare_dwi(replace(scan, reverse=scan.images), tmp_path, threads=1)
    assert any("sub-01_dwi.nii.gz: not used, since only FSL's topup can" in n for n in dwi.notes)
