"""Parcellation against nilearn, and what is said about files that can't be used."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nilearn.maskers import NiftiLabelsMasker

from bsym_bids import atlas
from bsym_bids.bold import drop_low_coverage, parcellate, reduction
from bsym_bids.bold.components import first_component
from bsym_bids.errors import BadDataError, InputMissingError, OutputIOError, UsageError

SPACE = "MNI152NLin2009cAsym"
AFFINE = np.array([[5.0, 0, 0, -96], [0, 5, 0, -132], [0, 0, 5, -78], [0, 0, 0, 1]])
SHAPE = (39, 46, 39)


def make_image(n_volumes=6, affine=AFFINE, shape=SHAPE, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    data = 1000 + 100 * rng.standard_normal((*shape, n_volumes))
    image = nib.Nifti1Image(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.8
    return image


def save(image, folder, name=f"sub-01_task-x_space-{SPACE}_desc-preproc_bold.nii.gz"):
    nib.save(image, folder / name)
    return folder / name


def nilearn_means(path, space=SPACE, mask=None):
    image = nib.load(path)
    labels = atlas.labels_on_grid(image.shape[:3], image.affine, space)
    labels = nib.Nifti1Image(labels.astype(np.int32), image.affine)
    masker = NiftiLabelsMasker(labels, mask_img=mask, standardize=None, resampling_target=None)
    means = np.full((image.shape[3], 450), np.nan)
    found = masker.fit_transform(image)
    means[:, [int(label) - 1 for label in masker.labels_ if label]] = found
    return means


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_means_equal_nilearn_for_every_type(tmp_path, dtype, name):
    path = save(make_image(dtype=dtype), tmp_path, f"space-{SPACE}_{name}")
    p = parcellate(path)
    np.testing.assert_allclose(p.timeseries, nilearn_means(path), rtol=1e-6)
    assert (p.repetition_time, p.space, p.space_source) == (pytest.approx(0.8), SPACE, "name")


def test_big_endian_nifti2_with_scaling(tmp_path):
    image = make_image(dtype=np.int16)
    big = nib.Nifti2Image(np.asarray(image.dataobj), AFFINE, nib.Nifti2Header(endianness=">"))
    big.set_data_dtype(np.dtype(">i2"))
    big.header.set_slope_inter(0.25, -100)
    path = save(big, tmp_path)
    assert nib.load(path).dataobj.slope == 0.25 and nib.load(path).dataobj.dtype.byteorder == ">"
    np.testing.assert_allclose(parcellate(path).timeseries, nilearn_means(path), rtol=1e-6)


def test_sums_of_large_integers_do_not_overflow(tmp_path):
    image = nib.Nifti1Image(np.full((*SHAPE, 2), 2**31 - 5, np.int32), AFFINE)
    path = save(image, tmp_path)
    np.testing.assert_allclose(parcellate(path).timeseries, 2**31 - 5, rtol=1e-12)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    tilt=st.floats(-0.3, 0.3),
    space=st.sampled_from(atlas.SPACES),
)
def test_means_equal_nilearn_on_any_grid(tmp_path, flips, tilt, space):
    rotation = np.array(
        [[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([6.0 * flips[0], 5.5 * flips[1], 6.5 * flips[2]])
    shape = (32, 38, 28)
    affine[:3, 3] = [0, -18, 10] - affine[:3, :3] @ (np.array(shape) / 2)
    path = save(make_image(3, affine, shape), tmp_path, f"x_space-{space}_bold.nii")
    np.testing.assert_allclose(parcellate(path).timeseries, nilearn_means(path, space), rtol=1e-6)


def test_mask_restricts_means_and_coverage(tmp_path):
    path = save(make_image(), tmp_path)
    inside = np.zeros(SHAPE, np.uint8)
    inside[:20] = 1
    mask = save(nib.Nifti1Image(inside, AFFINE), tmp_path, "mask.nii.gz")
    p = parcellate(path, mask)
    np.testing.assert_allclose(p.timeseries, nilearn_means(path, mask=mask), rtol=1e-6)
    labels = atlas.labels_on_grid(SHAPE, AFFINE, SPACE)
    counts = np.bincount(labels[inside > 0], minlength=451)[1:]
    assert np.array_equal(p.n_voxels, counts)
    np.testing.assert_allclose(p.coverage, counts / p.n_voxels_expected)
    kept = drop_low_coverage(p.timeseries, p.coverage, 0.5)
    assert np.array_equal(np.isnan(kept).all(axis=0), p.coverage < 0.5)
    assert np.isfinite(p.timeseries[:, p.n_voxels > 0]).all()


def test_field_of_view_and_empty_voxels_lower_the_coverage(tmp_path):
    whole = make_image()
    p = parcellate(save(whole, tmp_path))
    np.testing.assert_allclose(p.coverage, 1)
    cut = parcellate(save(whole.slicer[:, :, 15:], tmp_path))
    assert np.array_equal(cut.n_voxels_expected, p.n_voxels_expected)
    labels = atlas.labels_on_grid(SHAPE, AFFINE, SPACE)
    seen = np.bincount(labels[:, :, 15:].ravel(), minlength=451)[1:]
    np.testing.assert_allclose(cut.coverage, seen / p.n_voxels_expected)
    assert np.isnan(cut.timeseries[:, seen == 0]).all()
    data = whole.get_fdata().copy()
    data[:, :, :15] = 0
    empty = parcellate(save(nib.Nifti1Image(data, AFFINE), tmp_path))
    np.testing.assert_allclose(empty.coverage, seen / p.n_voxels_expected)


def test_stored_numbers_that_stand_for_zero_are_no_data(tmp_path):
    inside = np.zeros(SHAPE, bool)
    inside[:20] = True
    image = nib.Nifti1Image(np.where(inside, 700, 400)[..., None].astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.25, -100)
    stored = save(image, tmp_path)
    values = nib.load(stored).get_fdata()
    assert set(np.unique(values)) == {0, 75}
    p = parcellate(stored)
    labels = atlas.labels_on_grid(SHAPE, AFFINE, SPACE)
    seen = np.bincount(labels[inside], minlength=451)[1:]
    np.testing.assert_allclose(p.coverage, seen / p.n_voxels_expected)


def test_samples_that_are_not_finite_are_left_out(tmp_path):
    data = make_image().get_fdata().copy()
    data[10:20, :, :, 2] = np.nan
    data[25, :, :, 4] = np.inf
    p = parcellate(save(nib.Nifti1Image(data.astype(np.float32), AFFINE), tmp_path))
    labels = atlas.labels_on_grid(SHAPE, AFFINE, SPACE)
    for t in range(6):
        volume = data[..., t].astype(np.float32)
        good = np.isfinite(volume)
        count = np.bincount(labels[good], minlength=451)[1:]
        with np.errstate(invalid="ignore"):
            expected = np.bincount(labels[good], volume[good], 451)[1:] / count
        np.testing.assert_allclose(p.timeseries[t], expected, rtol=1e-6)


def test_first_component_equals_svd(tmp_path):
    path = save(make_image(12), tmp_path)
    p, mean = parcellate(path, method="pca"), parcellate(path)
    labels = atlas.labels_on_grid(SHAPE, AFFINE, SPACE)
    data = nib.load(path).get_fdata()
    for roi in (0, 40, 123, 449):
        voxels = data[labels == roi + 1].T
        u, s, _ = np.linalg.svd(voxels - voxels.mean(axis=0), full_matrices=False)
        expected = u[:, 0] * s[0] / np.sqrt(voxels.shape[1])
        correlation = np.corrcoef(mean.timeseries[:, roi], expected)[0, 1]
        np.testing.assert_allclose(
            p.timeseries[:, roi], np.sign(correlation) * expected, rtol=1e-3, atol=1e-2
        )


def test_first_component_is_the_same_from_either_gram_matrix():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(30)
    tall = np.outer(rng.random(50), signal) + 0.1 * rng.standard_normal((50, 30))
    wide = tall[:10]
    for voxels in (tall, wide):
        found = first_component(voxels, signal)
        _, s, vt = np.linalg.svd(voxels - voxels.mean(axis=1, keepdims=True))
        expected = vt[0] * s[0] / np.sqrt(len(voxels))
        np.testing.assert_allclose(found, np.sign(expected @ signal) * expected, atol=1e-9)


def make_cifti(
    folder, n_volumes=7, axis=None, step=0.72, unit="second", name="x_bold.dtseries.nii"
):
    axis = axis or nib.load(atlas.dlabel_path()).header.get_axis(1)
    rng = np.random.default_rng(1)
    data = rng.standard_normal((n_volumes, len(axis))).astype(np.float32) + 10
    series = nib.cifti2.SeriesAxis(0, step, n_volumes, unit)
    nib.save(nib.Cifti2Image(data, (series, axis)), folder / name)
    return folder / name, data


def test_grayordinates_are_averaged_by_label(tmp_path):
    path, data = make_cifti(tmp_path)
    p = parcellate(path)
    labels = atlas.dlabel()
    expected = np.stack([data[:, labels == i].mean(axis=1) for i in range(1, 451)], axis=1)
    np.testing.assert_allclose(p.timeseries, expected, rtol=1e-5)
    assert (p.repetition_time, p.space) == (pytest.approx(0.72), "fsLR")
    np.testing.assert_allclose(p.coverage, 1)
    component = parcellate(path, method="pca").timeseries[:, 60]
    u, s, _ = np.linalg.svd(data[:, labels == 61] - data[:, labels == 61].mean(axis=0))
    np.testing.assert_allclose(
        np.abs(component), np.abs(u[:, 0] * s[0] / np.sqrt((labels == 61).sum())), rtol=1e-3
    )


def test_grayordinates_in_pieces_with_gaps_and_scaling(tmp_path, monkeypatch):
    path, data = make_cifti(tmp_path)
    labels = atlas.dlabel()
    first = np.flatnonzero(labels == 60)
    image = nib.load(path)
    stored = np.round((data - 9) * 1000).astype(np.int16)
    header = image.nifti_header.copy()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.001, 9)
    scaled = nib.Cifti2Image(stored * 0.001 + 9, image.header, header, dtype=np.int16)
    nib.save(scaled, tmp_path / "scaled.dtseries.nii")
    monkeypatch.setattr(reduction, "_PIECE", 1000 * data.shape[0])
    p = parcellate(tmp_path / "scaled.dtseries.nii")
    read = np.asarray(nib.load(tmp_path / "scaled.dtseries.nii").dataobj)
    for roi in (1, 50, 60, 450):
        expected = read[:, labels == roi].mean(axis=1)
        np.testing.assert_allclose(p.timeseries[:, roi - 1], expected, rtol=1e-6)
    with_gaps = data.copy()
    with_gaps[2, first[:3]] = np.nan
    with_gaps[:, first[4:]] = 0
    nib.save(nib.Cifti2Image(with_gaps, image.header), path)
    p = parcellate(path)
    np.testing.assert_allclose(
        p.timeseries[:, 59], np.nanmean(with_gaps[:, first], axis=1), rtol=1e-6
    )
    assert p.coverage[59] == pytest.approx(4 / len(first))


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_cut_grayordinates_are_named(tmp_path, method):
    path, _ = make_cifti(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadDataError, match="the data end here") as caught:
        parcellate(path, method=method)
    assert str(path) in str(caught.value)


def test_components_need_room(tmp_path):
    path = save(make_image(), tmp_path)
    with pytest.raises(OutputIOError, match="principal components"):
        parcellate(path, method="pca", work_dir=tmp_path / "absent")


def test_components_leave_no_file_behind(tmp_path):
    path = save(make_image(), tmp_path)
    (tmp_path / "work").mkdir()
    parcellate(path, method="pca", work_dir=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


def test_part_of_the_grayordinates_lowers_the_coverage(tmp_path):
    axis = nib.load(atlas.dlabel_path()).header.get_axis(1)
    left = next(part for name, part, _ in axis.iter_structures() if name.endswith("CORTEX_LEFT"))
    p = parcellate(make_cifti(tmp_path, axis=axis[left])[0])
    assert np.array_equal(np.flatnonzero(p.coverage), np.arange(50, 250))


def test_space_is_found_by_name_grid_argument_or_assumed(tmp_path):
    packaged = nib.load(atlas.volume_path("MNI152NLin6Asym", 2))
    image = nib.Nifti1Image(np.ones((*packaged.shape, 1), np.uint8), packaged.affine)
    p = parcellate(save(image, tmp_path, "plain.nii"))
    assert (p.space, p.space_source) == ("MNI152NLin6Asym", "grid")
    path = save(make_image(), tmp_path, "plain2.nii")
    p = parcellate(path, space="MNI152NLin6Asym")
    assert (p.space, p.space_source) == ("MNI152NLin6Asym", "argument")
    p = parcellate(path)
    assert (p.space, p.space_source) == (SPACE, "assumed")


@pytest.mark.parametrize("space", ["T1w", "MNIPediatricAsym", "fsnative", "MNI152Lin"])
def test_other_spaces_are_refused_by_name(tmp_path, space):
    path = save(make_image(), tmp_path, f"sub-01_space-{space}_bold.nii.gz")
    with pytest.raises(BadDataError, match=space) as caught:
        parcellate(path)
    assert SPACE in caught.value.hint


@pytest.mark.parametrize(
    ("unit", "step", "expected"),
    [("sec", 2.0, 2.0), ("msec", 720.0, 0.72), ("unknown", 1.5, 1.5), ("sec", 0.0, None)],
)
def test_repetition_time_in_the_units_of_the_header(tmp_path, unit, step, expected):
    image = make_image()
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    path = save(image, tmp_path)
    assert parcellate(path).repetition_time == (expected and pytest.approx(expected))
    assert parcellate(path, repetition_time=1.1).repetition_time == 1.1


def broken(tmp_path, how):
    path = save(make_image(), tmp_path)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "truncated by its checksum":
        path.write_bytes(content[:-6])
    elif how == "flipped bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :])
    elif how == "wrong checksum":
        path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    elif how == "cut header":
        path.write_bytes(gzip.compress(gzip.decompress(content)[:200]))
    elif how == "short data":
        path.write_bytes(gzip.compress(gzip.decompress(content)[:-100]))
    elif how == "no image":
        path.write_bytes(b"not an image at all")
    elif how == "empty file":
        path.write_bytes(b"")
    elif how == "3D":
        save(nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE), tmp_path)
    elif how == "complex":
        save(nib.Nifti1Image(np.ones((*SHAPE, 2), np.complex64), AFFINE), tmp_path)
    elif how == "elsewhere":
        far = AFFINE.copy()
        far[:3, 3] += 500
        save(nib.Nifti1Image(np.ones((*SHAPE, 2), np.float32), far), tmp_path)
    elif how == "flat affine":
        flat = AFFINE.copy()
        flat[2] = 0
        image = make_image()
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        image.header["srow_z"] = flat[2]
        nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
    elif how == "zeros":
        save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.float32), AFFINE), tmp_path)
    elif how == "NaN":
        save(nib.Nifti1Image(np.full((*SHAPE, 2), np.nan, np.float32), AFFINE), tmp_path)
    return path


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "truncated by its checksum",
        "flipped bit",
        "wrong checksum",
        "cut header",
        "short data",
        "no image",
        "empty file",
        "3D",
        "complex",
        "elsewhere",
        "flat affine",
        "zeros",
        "NaN",
    ],
)
def test_unusable_files_are_named(tmp_path, how):
    path = broken(tmp_path, how)
    with pytest.raises(BadDataError) as caught:
        parcellate(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_absent_file_and_dangling_link(tmp_path):
    with pytest.raises(InputMissingError):
        parcellate(tmp_path / "none.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "annex")
    with pytest.raises(InputMissingError) as caught:
        parcellate(tmp_path / "link.nii.gz")
    assert "datalad get" in caught.value.hint


def test_gzip_under_the_name_of_plain_nifti(tmp_path):
    path = save(make_image(), tmp_path)
    plain = tmp_path / f"space-{SPACE}_bold.nii"
    plain.write_bytes(path.read_bytes())
    with pytest.raises(BadDataError, match="cannot be read") as caught:
        parcellate(plain)
    assert "name the file .nii.gz" in caught.value.hint
    path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(BadDataError, match="cannot be read") as caught:
        parcellate(path)
    assert "name the file .nii" in caught.value.hint


def test_mask_on_another_grid_or_empty(tmp_path):
    path = save(make_image(), tmp_path)
    other = save(nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), AFFINE), tmp_path, "other.nii")
    empty = save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path, "empty.nii")
    with pytest.raises(BadDataError, match="grid"):
        parcellate(path, other)
    with pytest.raises(BadDataError, match="empty"):
        parcellate(path, empty)


def test_unknown_method(tmp_path):
    with pytest.raises(UsageError):
        parcellate(save(make_image(), tmp_path), method="median")
