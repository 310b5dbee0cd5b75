"""The packaged atlas: sides, order, names, and its way onto other grids."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nilearn.image import resample_to_img

from bsym_bids import atlas
from bsym_bids.atlas.grayordinates import labels_of
from bsym_bids.atlas.table import folder
from bsym_bids.errors import BadDataError

VOLUMES = [(space, resolution) for space in atlas.SPACES for resolution in (1, 2)]


def centroid_x(labels, affine):
    voxels = np.argwhere(labels > 0)
    x = apply_affine(affine, voxels)[:, 0]
    values = labels[tuple(voxels.T)]
    return np.bincount(values, x, 451)[1:] / np.bincount(values, minlength=451)[1:]


def test_table_is_in_atlas_order():
    rois = atlas.rois()
    assert [roi.index for roi in rois] == list(range(1, atlas.N_ROIS + 1))
    sides = "".join(roi.hemisphere for roi in rois)
    assert sides == "R" * 25 + "L" * 25 + "L" * 200 + "R" * 200
    assert all((roi.network == "Subcortex") == (roi.index <= 50) for roi in rois)
    assert len(set(atlas.roi_names())) == atlas.N_ROIS


@pytest.mark.parametrize(("space", "resolution"), VOLUMES)
def test_volumes_hold_every_roi_on_its_side(space, resolution):
    image = nib.load(atlas.volume_path(space, resolution))
    labels = np.asarray(image.dataobj, dtype=int)
    assert np.array_equal(np.unique(labels), np.arange(451))
    right = centroid_x(labels, image.affine) > 0
    assert np.array_equal(right, [roi.hemisphere == "R" for roi in atlas.rois()])


def test_dlabel_holds_every_roi_on_its_side():
    labels = atlas.dlabel()
    assert labels.shape == (91282,)
    assert np.array_equal(np.unique(labels), np.arange(451))
    axis = nib.load(atlas.dlabel_path()).header.get_axis(1)
    sides = np.zeros(len(labels), dtype="<U1")
    for name, part, _ in axis.iter_structures():
        sides[part] = "L" if name.endswith("LEFT") else "R" if name.endswith("RIGHT") else ""
    for roi in atlas.rois():
        own = sides[labels == roi.index] == roi.hemisphere
        # Cortex is all on its side; a few subcortical voxels lie across the midline.
        assert own.all() if roi.index > 50 else own.mean() > 0.9


def test_names_agree_in_label_file_dlabel_and_table():
    lines = (folder() / "atlas-Schaefer2018Tian2020_scale-450_labels.txt").read_text().split("\n")
    from_file = {
        int(line.split()[0]): name for name, line in zip(lines[::2], lines[1::2], strict=False)
    }
    table = nib.load(atlas.dlabel_path()).header.get_axis(0).label[0]
    from_dlabel = {value: name for value, (name, _) in table.items() if value}
    assert from_file == from_dlabel == {roi.index: roi.name for roi in atlas.rois()}


def test_table_and_description_have_sidecars():
    described = json.loads(atlas.table_path().with_suffix(".json").read_text())
    assert set(described) - {"Description"} == {"index", "name", "hemisphere", "network"}
    assert set(described["network"]["Levels"]) == set(atlas.networks())
    assert json.loads(atlas.description_path().read_text())["Name"]


@pytest.mark.parametrize(("space", "resolution"), VOLUMES)
def test_own_grid_gives_the_packaged_labels(space, resolution):
    image = nib.load(atlas.volume_path(space, resolution))
    found = atlas.labels_on_grid(image.shape, image.affine, space)
    assert np.array_equal(found, np.asarray(image.dataobj))


@pytest.mark.parametrize("space", atlas.SPACES)
def test_flipped_and_permuted_grids_keep_places(space):
    image = nib.load(atlas.volume_path(space, 2))
    wanted = nib.orientations.axcodes2ornt(("P", "S", "L"))
    now = nib.orientations.io_orientation(image.affine)
    flipped = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
    assert nib.aff2axcodes(flipped.affine) == ("P", "S", "L")
    found = atlas.labels_on_grid(flipped.shape, flipped.affine, space)
    assert np.array_equal(found, np.asarray(flipped.dataobj))


@pytest.mark.parametrize("space", atlas.SPACES)
def test_oblique_grid_agrees_with_nilearn(space):
    angle = 0.2
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-4.1, 3.9, 4.3])
    affine[:3, 3] = [70.3, -110.2, -70.1]
    shape = (40, 45, 36)
    found = atlas.labels_on_grid(shape, affine, space)
    target = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    expected = resample_to_img(
        nib.load(atlas.volume_path(space, 1)), target, interpolation="nearest"
    )
    agreement = found == np.asarray(expected.dataobj)
    assert found.any()
    # Voxels that lie half-way between two of the atlas may go either way.
    assert agreement.mean() > 0.999


def test_counts_do_not_depend_on_the_field_of_view():
    space = atlas.SPACES[0]
    image = nib.load(atlas.volume_path(space, 2))
    whole = np.bincount(np.asarray(image.dataobj, int).ravel(), minlength=451)[1:]
    assert np.array_equal(atlas.roi_voxels_on_lattice(image.affine, space), whole)
    cropped = image.slicer[20:60, 30:90, 10:40]
    assert np.array_equal(atlas.roi_voxels_on_lattice(cropped.affine, space), whole)


def test_other_space_is_refused():
    with pytest.raises(BadDataError, match="T1w"):
        atlas.volume_path("T1w")


def test_grayordinates_are_matched_by_place():
    axis = nib.load(atlas.dlabel_path()).header.get_axis(1)
    chosen = np.random.default_rng(0).choice(len(axis), 2000, replace=False)
    for part in (chosen, np.sort(chosen)):
        assert np.array_equal(labels_of(axis[part]), atlas.dlabel()[part])


def test_other_mesh_has_no_labels():
    other = nib.cifti2.BrainModelAxis.from_surface(np.arange(100), 10242, "CortexLeft")
    assert not labels_of(other).any()


def test_roi_volumes_are_those_of_the_1_mm_volume():
    image = nib.load(atlas.volume_path("MNI152NLin2009cAsym", 1))
    labels = np.asarray(image.dataobj, dtype=int)
    voxel = np.prod(image.header.get_zooms()[:3])
    expected = [(labels == roi.index).sum() * voxel for roi in atlas.rois()[::50]]
    np.testing.assert_allclose(atlas.roi_volumes()[::50], expected)
    assert atlas.roi_volumes().shape == (450,)
    assert atlas.roi_volumes().min() > 0
