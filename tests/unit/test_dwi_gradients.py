"""Gradients: every mistake in the two files is explained, and the axes are those of MRtrix3."""

import subprocess

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bsym_bids.dwi.gradients import (
    Gradients,
    check_gradients,
    from_world,
    read_gradients,
    rotated,
    unique_directions,
    voxel_directions,
    world_directions,
    write_gradients,
)
from bsym_bids.errors import BadDataError, InputMissingError


def directions(count):
    """Spread evenly over half a sphere (a Fibonacci lattice)."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    return np.stack([np.cos(angle) * np.sqrt(1 - z**2), np.sin(angle) * np.sqrt(1 - z**2), z], 1)


def scheme(count=20, b=1000.0, n_b0=1):
    bvals = np.r_[np.zeros(n_b0), np.full(count, b)]
    return Gradients(bvals, np.r_[np.zeros((n_b0, 3)), directions(count)])


@pytest.fixture
def write(tmp_path):
    def write(bvals, bvecs):
        bval, bvec = tmp_path / "a.bval", tmp_path / "a.bvec"
        np.savetxt(bval, np.atleast_2d(bvals))
        np.savetxt(bvec, np.asarray(bvecs))
        return bval, bvec

    return write


def test_what_is_written_is_read_again(tmp_path):
    files = tmp_path / "a.bval", tmp_path / "a.bvec"
    write_gradients(scheme(), *files)
    read, notes = read_gradients(*files, 21)
    assert notes == []
    np.testing.assert_allclose(read.bvecs, scheme().bvecs, atol=1e-9)
    np.testing.assert_array_equal(read.bvals, scheme().bvals)


def test_vectors_in_columns_and_b_values_in_a_column_are_read_and_noted(write):
    g = scheme()
    read, notes = read_gradients(*write(g.bvals[:, None], g.bvecs), 21)
    np.testing.assert_allclose(read.bvecs, g.bvecs, atol=1e-12)
    assert len(notes) == 2
    assert "column" in notes[0]
    assert "three columns" in notes[1]


def test_three_volumes_are_read_as_fsl_has_them(write):
    vectors = np.array([[0, 0, 0], [1, 0, 0], [0.6, 0.8, 0]])
    read, _ = read_gradients(*write([0, 1000, 1000], vectors.T), 3)
    np.testing.assert_array_equal(read.bvecs, vectors)


@pytest.mark.parametrize(
    ("n_bvals", "shape", "said"),
    [(20, (3, 21), "20 b-values"), (21, (3, 20), "20 vectors"), (21, (20, 3), "20 vectors")],
)
def test_a_wrong_count_names_the_file_and_both_numbers(write, n_bvals, shape, said):
    files = write(np.full(n_bvals, 1000.0), np.ones(shape))
    with pytest.raises(BadDataError, match=f"{said}.*21 volumes"):
        read_gradients(*files, 21)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("0 1000 x\n", "not a table"),
        ("0 1000\n0\n", "differ in length"),
        ("0 1\n2 3\n", "mixed up"),
        ("0 nan 1000", "not a number at volume 1"),
        ("0 -5 1000", "negative"),
        ("0 1000 200000", "no weighting"),
    ],
)
def test_what_is_no_list_of_b_values_is_explained(tmp_path, text, said):
    bval, bvec = tmp_path / "a.bval", tmp_path / "a.bvec"
    bval.write_text(text)
    np.savetxt(bvec, np.eye(3))
    with pytest.raises(BadDataError) as error:
        read_gradients(bval, bvec, 3)
    assert said in f"{error.value} {error.value.hint}"
    assert str(bval) in str(error.value)


def test_an_absent_file_is_missing_input(tmp_path):
    with pytest.raises(InputMissingError, match="no such file"):
        read_gradients(tmp_path / "no.bval", tmp_path / "no.bvec", 3)


def test_small_deviations_from_unit_length_are_silent_and_large_ones_are_noted(write):
    g = scheme()
    read, notes = read_gradients(*write(g.bvals, g.bvecs.T * 1.01), 21)
    assert notes == []
    np.testing.assert_allclose(np.linalg.norm(read.bvecs[1:], axis=1), 1)
    halves = g.bvecs * np.where(np.arange(21) % 2, 0.7, 1)[:, None]
    read, notes = read_gradients(*write(g.bvals, halves.T), 21)
    assert "lengths of 0.7 to 1" in notes[0]
    np.testing.assert_array_equal(read.bvals, g.bvals)
    np.testing.assert_allclose(read.bvecs, g.bvecs, atol=1e-12)


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "ms/um2"), (1e6, "s/m2")])
def test_other_units_are_recognised_and_noted(write, factor, unit):
    g = scheme(b=1000.0)
    read, notes = read_gradients(*write(g.bvals * factor, g.bvecs.T), 21)
    np.testing.assert_allclose(read.bvals, g.bvals)
    assert unit in notes[0]


def test_b_of_five_is_not_taken_for_five_ms_per_um2(write):
    read, notes = read_gradients(*write(np.full(8, 5.0), directions(8).T), 8)
    assert read.is_b0.all()
    assert "count as not" in notes[0]
    with pytest.raises(BadDataError, match="nothing is diffusion-weighted"):
        check_gradients(read, "scan")


def test_nan_is_zero_without_weighting_and_an_error_with_it(write):
    g = scheme(n_b0=2)
    vectors = g.bvecs.copy()
    vectors[:2] = np.nan
    read, _ = read_gradients(*write(g.bvals, vectors.T), 22)
    assert not read.bvecs[:2].any()
    vectors[7, 1] = np.nan
    with pytest.raises(BadDataError, match="volume 7"):
        read_gradients(*write(g.bvals, vectors.T), 22)


def test_a_trace_image_keeps_its_zero_vector(write):
    g = scheme()
    vectors = g.bvecs.copy()
    vectors[20] = 0
    read, _ = read_gradients(*write(g.bvals, vectors.T), 21)
    assert np.flatnonzero(~read.has_direction).tolist() == [0, 20]


def test_shells_are_clusters_of_b_values():
    bvals = np.array([0, 990, 2000, 1010, 40, 2030, 1000, 700])
    g = Gradients(bvals, directions(8))
    assert [round(s.b) for s in g.shells] == [700, 1000, 2015]
    assert [s.volumes.tolist() for s in g.shells] == [[7], [1, 3, 6], [2, 5]]
    assert np.flatnonzero(g.is_b0).tolist() == [0, 4]
    assert Gradients(np.zeros(2), np.zeros((2, 3))).shells == ()


def test_opposite_directions_are_one():
    vectors = directions(10)
    assert len(unique_directions(np.r_[vectors, -vectors])) == 10
    opposed = np.r_[np.zeros((1, 3)), vectors[:5], -vectors[:5]]
    with pytest.raises(BadDataError, match="its 5 directions"):
        check_gradients(Gradients(np.r_[0, np.full(10, 1000.0)], opposed), "scan")


def test_no_b0_is_an_error_and_one_in_the_middle_is_not():
    g = scheme()
    with pytest.raises(BadDataError, match="lowest b is 1000"):
        check_gradients(g.take(range(1, 21)), "scan")
    assert check_gradients(g.take([*range(1, 11), 0, *range(11, 21)]), "scan") == []


def test_six_directions_are_noted_and_fewer_or_coplanar_ones_refused():
    six = np.array([[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]) / 2**0.5
    bvals = np.r_[0, np.full(6, 1000.0)]
    assert "has 6 directions" in check_gradients(Gradients(bvals, np.r_[[[0, 0, 0]], six]), "s")[0]
    angles = np.linspace(0, np.pi, 20, endpoint=False)
    flat = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    with pytest.raises(BadDataError, match="spread over the sphere"):
        check_gradients(Gradients(np.r_[0, np.full(20, 1e3)], np.r_[[[0, 0, 0]], flat]), "s")
    with pytest.raises(BadDataError, match="its 5 directions"):
        check_gradients(scheme(5), "scan")


AFFINES = {
    "left-handed": np.diag([-2.0, 2, 2.5, 1]),
    "right-handed": np.diag([2.0, 2, 2.5, 1]),
    "lps": np.diag([-2.0, -2, 2.5, 1]),
    "sagittal": np.array([[0, 0, 2.5, 3], [2.0, 0, 0, 4], [0, 2.0, 0, 5], [0, 0, 0, 1]]),
}
_oblique = np.eye(4)
_oblique[:3, :3] = Rotation.from_euler("xyz", [20, -12, 9], degrees=True).as_matrix()
AFFINES["oblique"] = _oblique @ np.diag([2.0, 2, 2.5, 1])
AFFINES["oblique left-handed"] = _oblique @ np.diag([-2.0, 2, 2.5, 1])


@pytest.mark.mrtrix3
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_directions_are_those_of_mrtrix3(tmp_path, affine):
    g = scheme(12)
    image = tmp_path / "dwi.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, len(g)), np.int16), affine), image)
    bval, bvec = tmp_path / "dwi.bval", tmp_path / "dwi.bvec"
    write_gradients(g, bval, bvec)
    command = ["mrinfo", image, "-fslgrad", bvec, bval, "-dwgrad", "-quiet"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    table = np.array([line.split() for line in text.splitlines()], dtype=float)
    np.testing.assert_allclose(world_directions(g, affine), table[:, :3], atol=1e-6)
    np.testing.assert_allclose(from_world(g.bvals, table[:, :3], affine).bvecs, g.bvecs, atol=1e-6)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_voxel_directions_point_along_voxel_axes(affine):
    g = scheme(12)
    sign = -1 if np.linalg.det(affine) > 0 else 1
    np.testing.assert_allclose(voxel_directions(g, affine), g.bvecs * [sign, 1, 1])
    towards = voxel_directions(g, affine) @ (affine[:3, :3] / [2, 2, 2.5]).T
    np.testing.assert_allclose(world_directions(g, affine), towards, atol=1e-12)


@given(st.tuples(*[st.floats(-180, 180)] * 3), st.sampled_from(list(AFFINES)))
def test_rotation_and_its_inverse_leave_directions(angles, name):
    g, affine = scheme(7), AFFINES[name]
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    there = rotated(g, np.repeat(turn[None], 8, axis=0), affine)
    np.testing.assert_allclose(
        world_directions(there, affine), world_directions(g, affine) @ turn.T, atol=1e-9
    )
    back = rotated(there, np.repeat(turn.T[None], 8, axis=0), affine)
    np.testing.assert_allclose(back.bvecs, g.bvecs, atol=1e-9)
