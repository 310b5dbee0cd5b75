"""Gradients in the wrong axes are found and put right, and right ones are left alone."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from nibabel.affines import voxel_sizes

from bsym_bids.dwi import orientation
from bsym_bids.dwi.gradients import Gradients, read_gradients, voxel_directions, write_gradients
from bsym_bids.dwi.orientation import VARIANTS, check_orientation
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.series import save_image
from bsym_bids.simulation.diffusion import make_phantom

NAMES = {variant.name: variant for variant in VARIANTS}
#: What is done to right gradients, and what undoes it.
WRONG = {
    "flip x": "flip x",
    "flip y": "flip y",
    "flip z": "flip z",
    "exchange x and y": "exchange x and y",
    "exchange y and z, then flip x": "exchange y and z, then flip x",
    "take y, z, x as x, y, z, then flip x": "take z, x, y as x, y, z, then flip y",
}


class Scan:
    """A phantom on disk, whose gradients can be made wrong."""

    def __init__(self, determinant, folder):
        phantom = make_phantom(
            3,
            voxel_mm=4.0,
            t1w_mm=3.0,
            n_bundles=8,
            shells=((0.0, 2), (1000.0, 14)),
            determinant=determinant,
            motion=0.0,
            oblique=(8.0, -5.0, 12.0),
        )
        self.folder, self.affine, self.data = folder, phantom.affine, phantom.dwi
        self.mask = phantom.mask
        self.gradients = Gradients(phantom.bvals, phantom.bvecs)
        save_image(folder / "dwi.nii", phantom.dwi, phantom.affine)
        save_image(folder / "mask.nii", phantom.mask, phantom.affine)

    def prepared(self, wrong="as given"):
        bval, bvec = self.folder / "dwi.bval", self.folder / "dwi.bvec"
        turned = self.gradients.bvecs @ NAMES[wrong].matrix.T
        write_gradients(Gradients(self.gradients.bvals, turned), bval, bvec)
        image, mask = str(self.folder / "dwi.nii"), str(self.folder / "mask.nii")
        return PreparedDwi(image, str(bval), str(bvec), mask, image, ("before",), {"Before": 1})

    def is_right(self, dwi):
        """Whether gradients are as they were, but for one sign of all."""
        found, _ = read_gradients(Path(dwi.bval), Path(dwi.bvec), len(self.gradients))
        np.testing.assert_array_equal(found.bvals, self.gradients.bvals)
        return any(np.allclose(s * found.bvecs, self.gradients.bvecs, atol=1e-6) for s in (1, -1))


@pytest.fixture(scope="module", params=[1, -1], ids=["positive", "negative"])
def scan(request, tmp_path_factory):
    return Scan(request.param, tmp_path_factory.mktemp("scan"))


def test_there_are_24_different_ways_and_each_has_a_name():
    outer = {tuple(np.outer(v.matrix, v.matrix).ravel()) for v in VARIANTS}  # but for the sign
    assert len(VARIANTS) == len(outer) == len(NAMES) == 24
    assert VARIANTS[0].is_given and not any(variant.is_given for variant in VARIANTS[1:])


def test_names_say_what_is_done_to_the_rows():
    vector = np.array([1.0, 2.0, 3.0])
    assert (NAMES["as given"].matrix @ vector).tolist() == [1, 2, 3]
    assert (NAMES["flip y"].matrix @ vector).tolist() == [1, -2, 3]
    assert (NAMES["exchange y and z, then flip x"].matrix @ vector).tolist() == [-1, 3, 2]
    assert (NAMES["take y, z, x as x, y, z"].matrix @ vector).tolist() == [2, 3, 1]


def test_right_gradients_are_left_alone(scan, tmp_path):
    given = scan.prepared()
    checked = check_orientation(given, tmp_path, mode="correct", threads=1)
    assert (checked.bvec, checked.notes) == (given.bvec, ["before"])
    details = checked.details["GradientCheck"]
    assert (details["Action"], details["Best"], details["Ratio"]) == ("none", "as given", 1.0)
    lengths = details["MeanLengthsMm"]
    assert lengths["Given"] > orientation.LARGE_RATIO * lengths["SecondBest"]
    assert checked.details["Before"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_gradients_are_found_and_undone(scan, wrong, tmp_path):
    given = scan.prepared(wrong)
    assert not scan.is_right(given)
    checked = check_orientation(given, tmp_path, mode="correct", threads=1)
    details = checked.details["GradientCheck"]
    assert (details["Action"], details["Best"]) == ("corrected", WRONG[wrong])
    assert details["Ratio"] > orientation.LARGE_RATIO
    assert scan.is_right(checked) and not scan.is_right(given)
    assert len(checked.notes) == 2
    assert WRONG[wrong] in checked.notes[1] and "corrected" in checked.notes[1]


def test_a_warning_changes_nothing(scan, tmp_path):
    given = scan.prepared("flip x")
    checked = check_orientation(given, tmp_path, mode="warn", threads=1)
    assert checked.bvec == given.bvec and not list(tmp_path.iterdir())
    assert checked.details["GradientCheck"]["Action"] == "warned"
    assert "flip x" in checked.notes[1] and "left as they are" in checked.notes[1]


def test_switched_off_it_says_so_and_reads_nothing(tmp_path):
    nowhere = PreparedDwi(*[str(tmp_path / "absent")] * 5)
    checked = check_orientation(nowhere, tmp_path, mode="off", threads=1)
    assert checked.details["GradientCheck"] == {"Action": "off"} and not checked.notes


def test_the_number_of_threads_changes_nothing(scan, tmp_path):
    given = scan.prepared("flip z")
    one, two, five = (check_orientation(given, tmp_path, mode="warn", threads=n) for n in (1, 2, 5))
    assert one.details == two.details == five.details


@pytest.mark.parametrize(
    ("second", "given", "action", "said"),
    [
        (20.0, 20.0, "corrected", "were corrected"),
        (29.0, 20.0, "warned", "isn't sure which"),
        (25.0, 25.0, "none", "too little to call the given ones wrong"),
    ],
)
def test_how_clear_it_is_decides_what_is_done(
    scan, tmp_path, monkeypatch, second, given, action, said
):
    lengths = np.full(24, 15.0)
    lengths[[0, 1, 2]] = given, 30.0, second
    monkeypatch.setattr(orientation, "_mean_lengths", lambda *_: lengths)
    before = scan.prepared()
    checked = check_orientation(before, tmp_path, mode="correct", threads=1)
    assert checked.details["GradientCheck"]["Action"] == action
    assert said in checked.notes[1]
    assert (checked.bvec != before.bvec) == (action == "corrected")


def test_where_there_is_no_fibre_it_cannot_be_checked(scan, tmp_path):
    given = scan.prepared()
    rng = np.random.default_rng(1)
    water = 1000 * np.exp(-scan.gradients.bvals * 1e-3) + rng.normal(0, 5, scan.data.shape)
    save_image(tmp_path / "water.nii", water, scan.affine)
    noise = np.abs(rng.normal(0, 100, scan.data.shape))
    save_image(tmp_path / "noise.nii", noise, scan.affine)
    for name in ("water", "noise"):
        dwi = PreparedDwi(
            str(tmp_path / f"{name}.nii"), given.bval, given.bvec, given.mask, given.b0
        )
        checked = check_orientation(dwi, tmp_path, mode="correct", threads=1)
        details = checked.details["GradientCheck"]
        assert details["Action"] == "none" and details["NotChecked"] in checked.notes[0]
        assert "could not be checked" in checked.notes[0] and checked.bvec == given.bvec


def test_tensors_are_those_of_dipy(scan):
    table = gradient_table(
        scan.gradients.bvals, bvecs=voxel_directions(scan.gradients, scan.affine)
    )
    reference = TensorModel(table, fit_method="WLS").fit(scan.data, mask=scan.mask)
    directions, anisotropy = orientation.principal_directions(
        scan.prepared(), scan.gradients, scan.affine, scan.mask, 2
    )
    positive = scan.mask & (reference.evals > 1e-5).all(axis=-1)
    difference = anisotropy[positive] - reference.fa[positive]
    assert np.median(np.abs(difference)) < 0.01
    clear = positive & (reference.fa > 0.4)
    cosine = np.abs((directions * reference.directions[..., 0, :]).sum(axis=-1))[clear]
    assert np.percentile(cosine, 1) > np.cos(np.radians(3))


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_a_straight_bundle_is_as_long_as_it_is(direction):
    """In voxels of 2 x 2 x 4 mm, and wherever in it a streamline starts."""
    sizes = np.array([2.0, 2.0, 4.0])
    along = np.array(direction) / np.linalg.norm(direction)
    grid = np.moveaxis(np.indices((40, 40, 20)), 0, -1)
    places = (grid - [19.5, 19.5, 9.5]) * sizes
    # A slab of 60 mm, infinite across, whose halves point in opposite directions.
    inside = np.abs(places @ along) < 30
    field = np.zeros((*inside.shape, 4), dtype=np.float32)
    field[inside, :3] = along
    field[(places[..., 0] > 0) & inside, :3] *= -1
    field[inside, 3] = 0.8
    near = np.argwhere((np.linalg.norm(places, axis=-1) < 8) & inside)
    lengths = orientation._lengths(field, near.astype(float), np.eye(3)[None], sizes)[0]
    # Linear interpolation of anisotropy moves the ends by up to 0.3 of a voxel.
    assert abs(np.mean(lengths) - 60) < 3 and lengths.std() < 2


@pytest.mark.mrtrix3
def test_dwigradcheck_finds_the_same(scan, tmp_path):
    given = scan.prepared("take y, z, x as x, y, z, then flip x")
    command = ["dwigradcheck", given.image, "-fslgrad", given.bvec, given.bval]
    command += ["-mask", given.mask, "-number", "300", "-nthreads", "0", "-quiet"]
    command += ["-scratch", tmp_path, "-export_grad_fsl", "theirs.bvec", "theirs.bval"]
    subprocess.run([str(word) for word in command], cwd=tmp_path, check=True)
    theirs, _ = read_gradients(
        tmp_path / "theirs.bval", tmp_path / "theirs.bvec", len(scan.gradients)
    )
    checked = check_orientation(given, tmp_path, mode="correct", threads=1)
    ours, _ = read_gradients(Path(checked.bval), Path(checked.bvec), len(scan.gradients))
    cosine = np.abs((theirs.bvecs * ours.bvecs).sum(axis=1))[scan.gradients.bvals > 0]
    assert voxel_sizes(scan.affine) == pytest.approx([4, 4, 4])
    # On an oblique grid it may find axes of the scanner, which are off by the obliqueness.
    assert cosine.min() > np.cos(np.radians(25))
