"""Putting the series of a scan together: what is kept, repaired, noted and refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from bsym_bids.dwi.preprocessing import choose_encoding, slice_axis
from bsym_bids.dwi.series import (
    create_series,
    gather,
    grid_distance,
    open_run,
    read_volumes,
    work_bytes,
    write_slab,
    write_volume,
)
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs.records import DwiImage

AFFINE = np.diag([-10.0, 10.0, 10.0, 1.0])
AFFINE[:3, 3] = 60.0, -55.0, -40.0
SHAPE = (12, 13, 11)


def directions(count):
    """Spread evenly over half a sphere (a Fibonacci lattice)."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    return np.stack([np.cos(angle) * np.sqrt(1 - z**2), np.sin(angle) * np.sqrt(1 - z**2), z], 1)


def signals(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    data = rng.uniform(100, 1000, (*SHAPE, count)) * scale
    data[2:10, 2:10, 2:9] += 2000 * scale
    return data.astype(np.float32)


@pytest.fixture
def write(tmp_path):
    """Write a series and return its files; b0 first, then 20 directions, unless told."""

    def write(name, data=None, bvals=None, bvecs=None, affine=AFFINE, encoding=None):
        if bvals is None:
            bvals = [0.0] + [1000.0] * 20
        if bvecs is None:
            weighted = np.array(bvals) > 0
            bvecs = np.zeros((len(bvals), 3))
            bvecs[weighted] = directions(weighted.sum())
        if data is None:
            data = signals(len(bvals))
        image = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(data, affine), image)
        np.savetxt(tmp_path / f"{name}.bval", np.atleast_2d(bvals), fmt="%g")
        np.savetxt(tmp_path / f"{name}.bvec", np.asarray(bvecs).T, fmt="%.8f")
        return DwiImage(image, tmp_path / f"{name}.bval", tmp_path / f"{name}.bvec", encoding)

    return write


def gathered(tmp_path, *sources):
    return gather([open_run(source) for source in sources], tmp_path / "out.nii", "sub-1_dwi")


def test_a_sound_series_comes_through_unchanged(write, tmp_path):
    data = signals(21)
    series = gathered(tmp_path, write("a", data))
    image = nib.load(series.image)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.get_data_dtype() == np.float32 and image.header["qform_code"] == 1
    np.testing.assert_array_equal(read_volumes(series.image), data)
    assert list(series.notes) == [] and len(series.sources) == 21
    assert series.details == {
        "NumberOfVolumesByB": {"0": 1, "1000": 20},
        "NumberOfVolumesLeftOut": 0,
        "RunScales": [1.0],
    }


def test_scaled_integers_are_read_as_what_they_stand_for(write, tmp_path):
    source = write("a")
    stored = np.rint(signals(21)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, source.image)
    expected = nib.load(source.image).get_fdata(dtype=np.float32)
    np.testing.assert_allclose(read_volumes(gathered(tmp_path, source).image), expected)


def test_the_size_in_the_work_folder_is_told_by_headers(write, tmp_path):
    one, other = write("a"), write("b", bvals=[0.0] * 3)
    gone = DwiImage(tmp_path / "gone.nii.gz", one.bval, one.bvec, None)
    truncated = write("c")
    truncated.image.write_bytes(truncated.image.read_bytes()[:2000])
    size = gathered(tmp_path, one, other).image.stat().st_size - 352
    assert work_bytes([one, other, gone]) == size
    assert work_bytes([truncated]) == work_bytes([one])


def test_what_is_not_a_number_becomes_zero_and_is_counted(write, tmp_path):
    data = signals(21)
    data[3, 3, 3, 4] = np.nan
    data[4, 3, 3, 5] = np.inf
    series = gathered(tmp_path, write("a", data))
    expected = np.where(np.isfinite(data), data, 0)
    np.testing.assert_array_equal(read_volumes(series.image), expected)
    assert any("a.nii.gz: 2 values are not numbers" in note for note in series.notes)


@pytest.mark.parametrize("nothing", [0.0, 7.0, np.nan])
def test_empty_volumes_are_left_out_with_their_gradients(write, tmp_path, nothing):
    data = signals(21)
    data[..., 4] = nothing
    series = gathered(tmp_path, write("a", data))
    np.testing.assert_array_equal(read_volumes(series.image), np.delete(data, 4, axis=3))
    np.testing.assert_allclose(
        series.gradients.bvecs[1:], np.delete(directions(20), 3, axis=0), atol=1e-6
    )
    assert series.details["NumberOfVolumesLeftOut"] == 1 and len(series.sources) == 20
    assert any("volumes [4] (counted from 0) hold nothing" in note for note in series.notes)


def test_trace_images_are_left_out(write, tmp_path):
    bvecs = np.r_[np.zeros((1, 3)), directions(20), np.zeros((1, 3))]
    data = signals(22)
    series = gathered(tmp_path, write("a", data, [0.0] + [1000.0] * 21, bvecs))
    np.testing.assert_array_equal(read_volumes(series.image), data[..., :21])
    assert any("volumes [21]" in note and "trace images" in note for note in series.notes)


def test_a_series_that_is_mostly_empty_is_refused(write, tmp_path):
    data = signals(21)
    data[..., 5:9] = 0
    with pytest.raises(BadDataError, match=r"a\.nii\.gz: 4 of 21 volumes hold nothing"):
        gathered(tmp_path, write("a", data))


def test_b0_may_be_in_the_middle(write, tmp_path):
    series = gathered(tmp_path, write("a", bvals=[1000.0] * 10 + [0.0] + [1000.0] * 10))
    assert np.flatnonzero(series.gradients.is_b0).tolist() == [10] and not series.notes


def test_no_b0_and_too_few_directions_are_explained(write, tmp_path):
    with pytest.raises(BadDataError, match="sub-1_dwi: no volume without diffusion weighting"):
        gathered(tmp_path, write("a", bvals=[1000.0] * 21))
    with pytest.raises(BadDataError, match="5 directions"):
        gathered(tmp_path, write("b", bvals=[0.0] + [1000.0] * 5))
    six = gathered(tmp_path, write("c", bvals=[0.0] + [1000.0] * 6))
    assert any("6 directions" in note for note in six.notes)


def test_runs_are_joined_in_order_and_brought_to_one_brightness(write, tmp_path):
    first, second = signals(21), signals(21, scale=1.5)
    series = gathered(tmp_path, write("a", first), write("b", second))
    data = read_volumes(series.image)
    np.testing.assert_array_equal(data[..., :21], first)
    np.testing.assert_allclose(data[..., 21:], first, rtol=1e-5)
    assert series.details["RunScales"] == [1.0, pytest.approx(1 / 1.5, abs=1e-5)]
    assert any("multiplied by 1.00, 0.67" in note for note in series.notes)
    assert [source.image.name for source in series.sources[20:22]] == ["a.nii.gz", "b.nii.gz"]


def test_a_run_without_b0_is_joined_as_it_is(write, tmp_path):
    second = signals(6, scale=2.0)
    series = gathered(tmp_path, write("a"), write("b", second, bvals=[2000.0] * 6))
    np.testing.assert_array_equal(read_volumes(series.image)[..., 21:], second)
    assert any("without a b0 volume was not scaled" in note for note in series.notes)
    assert series.details["NumberOfVolumesByB"] == {"0": 1, "1000": 20, "2000": 6}


def test_a_single_volume_in_three_dimensions_is_a_run(write, tmp_path):
    b0 = signals(21)[..., 0]
    single = write("b", b0, bvals=[0.0], bvecs=np.zeros((1, 3)))
    assert nib.load(single.image).ndim == 3
    series = gathered(tmp_path, write("a"), single)
    np.testing.assert_allclose(read_volumes(series.image)[..., 21], b0, rtol=1e-5)
    assert series.details["NumberOfVolumesByB"]["0"] == 2


def test_a_single_volume_without_a_place_is_refused(write):
    single = write("b", signals(1)[..., 0], bvals=[0.0], bvecs=np.zeros((1, 3)))
    raw = bytearray(gzip.decompress(single.image.read_bytes()))
    raw[280:296] = bytes(16)  # the first row of the sform
    single.image.write_bytes(gzip.compress(raw))
    with pytest.raises(BadDataError, match=r"b\.nii\.gz: its affine has no inverse"):
        open_run(single)


def test_what_is_no_series_is_refused(write, tmp_path):
    five = write("a", signals(21)[..., None], [0.0] + [1000.0] * 20)
    with pytest.raises(BadDataError, match=r"a\.nii\.gz: has 5 dimensions"):
        open_run(five)
    other = write("b", bvals=[0.0], bvecs=np.zeros((1, 3)))
    path = tmp_path / "b.mgz"
    nib.save(nib.MGHImage(signals(1)[..., 0], AFFINE), path)
    with pytest.raises(BadDataError, match=r"b\.mgz: is MGHImage, not NIfTI"):
        open_run(DwiImage(path, other.bval, other.bvec))
    with pytest.raises(InputMissingError, match="absent"):
        open_run(DwiImage(tmp_path / "absent.nii.gz", other.bval, other.bvec))


@pytest.mark.parametrize("shift", [0.05, 3.0])
def test_series_on_other_grids_are_not_joined(write, tmp_path, shift):
    moved = AFFINE.copy()
    moved[0, 3] += shift
    sources = write("a"), write("b", affine=moved)
    if shift < 0.1:  # rounding in a header
        assert len(gathered(tmp_path, *sources).gradients) == 42
        return
    with pytest.raises(BadDataError, match=r"b\.nii\.gz: its grid is not that of a\.nii\.gz"):
        gathered(tmp_path, *sources)


def test_series_of_other_sizes_are_not_joined(write, tmp_path):
    with pytest.raises(BadDataError, match=r"b\.nii\.gz: its grid is not that of a\.nii\.gz"):
        gathered(tmp_path, write("a"), write("b", signals(21)[:, :-1]))


def test_a_rotation_about_the_origin_is_seen_as_far_as_it_moves_corners():
    turned = AFFINE.copy()
    angle = np.radians(1.0)
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:2] = turn @ AFFINE[:2]
    corners = np.array([[60.0, -55], [-50, -55], [60, 65], [-50, 65]])
    farthest = np.linalg.norm(corners, axis=1).max() * 2 * np.sin(angle / 2) / 10
    assert grid_distance(AFFINE, turned, SHAPE) == pytest.approx(farthest, rel=1e-6)


def test_a_tiny_field_of_view_is_refused_and_a_small_one_noted(write, tmp_path):
    with pytest.raises(BadDataError, match=r"a\.nii\.gz: its field of view of 12 x 13 x 5 voxels"):
        gathered(tmp_path, write("a", signals(21)[:, :, 2:7]))
    with pytest.raises(BadDataError, match="no whole brain"):
        gathered(tmp_path, write("b", affine=AFFINE * 0.3 + np.diag([0, 0, 0, 0.7])))
    small = AFFINE.copy()
    small[:3, :3] *= 0.7
    series = gathered(tmp_path, write("c", affine=small))
    assert any("field of view is 84 x 91 x 77 mm" in note for note in series.notes)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_named(write, tmp_path, share):
    source = write("a")
    whole = source.image.read_bytes()
    source.image.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadDataError, match=r"a\.nii\.gz"):
        gathered(tmp_path, source)


def test_a_file_whose_checksum_is_wrong_is_named(write, tmp_path):
    source = write("a")
    whole = bytearray(source.image.read_bytes())
    assert gzip.decompress(whole)
    whole[-6] ^= 0xFF
    source.image.write_bytes(whole)
    with pytest.raises(BadDataError, match=r"a\.nii\.gz"):
        gathered(tmp_path, source)


def test_the_encoding_with_most_directions_is_kept(write):
    many = write("many", encoding="j")
    few = write("few", bvals=[0.0, 0.0] + [1000.0] * 6, encoding="j-")
    kept, notes = choose_encoding([open_run(few), open_run(many)])
    assert [run.source.image.name for run in kept] == ["many.nii.gz"]
    assert len(notes) == 1 and "few.nii.gz: left out" in notes[0] and "only FSL" in notes[0]
    both = [open_run(many), open_run(many)]
    assert choose_encoding(both) == (both, [])


def test_volumes_and_slabs_are_written_in_their_places(tmp_path):
    expected = signals(5)
    path = tmp_path / "series.nii"
    create_series(path, expected.shape, AFFINE)
    assert not read_volumes(path).any()
    write_volume(path, 1, expected[..., 1])
    np.testing.assert_array_equal(read_volumes(path)[..., 1], expected[..., 1])
    for first in (0, 4, 8):
        write_slab(path, first, expected[:, :, first : first + 4])
    np.testing.assert_array_equal(nib.load(path).get_fdata(dtype=np.float32), expected)


@pytest.mark.parametrize(
    ("shape", "sizes", "axis"),
    [
        ((96, 96, 60), (2.0, 2.0, 2.5), 2),
        ((60, 96, 96), (2.0, 2.0, 2.0), 0),
        ((96, 60, 96), (2.0, 3.0, 2.0), 1),
        ((96, 96, 96), (2.0, 2.0, 2.0), 2),
        ((80, 90, 70), (1.0, 2.0, 3.0), 2),
    ],
)
def test_slices_lie_across_the_odd_axis(shape, sizes, axis):
    assert slice_axis(shape, sizes) == axis
