"""Images that are there to be looked at: track density and anisotropy by direction."""

import subprocess

import nibabel as nib
import numpy as np
import pytest
from dipy.tracking.utils import density_map

from bsym_bids.dwi.maps import add_track_density, with_coloured_anisotropy
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.dwi.tracks import Streamlines, write_tck
from bsym_bids.outputs.connectome import largest_tissue
from bsym_bids.outputs.images import Volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-2.0, 0, 0, 11], [0, 2.0, 0, -9], [0, 0, 2.5, -8], [0, 0, 0, 1]])


def walks(n=60, length=30, step=0.4, seed=0):
    """Return smooth random walks that start within the grid, some of which leave it."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-6, 6, (n, 1, 3))
    steps = np.cumsum(rng.normal(size=(n, length, 3)), axis=1)
    steps *= step / np.linalg.norm(steps, axis=2, keepdims=True)
    points = (start + np.cumsum(steps, axis=1)).astype(np.float32)
    return Streamlines(points.reshape(-1, 3), np.arange(n + 1) * length)


def arcs(n=200, length=8, step=2.5, radius=15, seed=0):
    """Return arcs of circles through the grid, with points far apart."""
    rng = np.random.default_rng(seed)
    first, other = np.linalg.qr(rng.normal(size=(n, 3, 2)))[0].transpose(2, 0, 1)[..., None, :]
    angle = (np.arange(length) - length / 2)[None, :, None] * step / radius
    curve = radius * (first * (np.cos(angle) - 1) + other * np.sin(angle))
    points = (curve + rng.uniform(-4, 4, (n, 1, 3))).astype(np.float32)
    return Streamlines(points.reshape(-1, 3), np.arange(n + 1) * length)


def density_of(streamlines):
    density = np.zeros(SHAPE, np.uint32)
    add_track_density(density, streamlines, AFFINE)
    return density


def test_density_is_that_of_dipy_where_points_are_close():
    streamlines = walks(step=0.1)
    lines = np.split(streamlines.points, streamlines.offsets[1:-1])
    voxels = [(line - AFFINE[:3, 3]) / np.diag(AFFINE)[:3] for line in lines]
    inside = [line[((np.rint(line) >= 0) & (np.rint(line) < SHAPE)).all(1)] for line in voxels]
    reference = density_map([line for line in inside if len(line)], np.eye(4), SHAPE)
    np.testing.assert_array_equal(density_of(streamlines), reference)


@pytest.mark.mrtrix3
def test_density_is_close_to_that_of_tckmap_where_points_are_far_apart(tmp_path):
    streamlines = arcs()
    write_tck(tmp_path / "x.tck", streamlines)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "grid.nii")
    call = ["tckmap", "-quiet", "-template", "grid.nii", "-upsample", "10", "x.tck", "out.nii"]
    subprocess.run(call, cwd=tmp_path, check=True)
    reference = nib.load(tmp_path / "out.nii").get_fdata()
    found = density_of(streamlines)
    # tckmap goes along curves between the points, and finds corners that are just cut.
    assert np.corrcoef(found.ravel(), reference.ravel())[0, 1] > 0.99
    assert found.sum() == pytest.approx(reference.sum(), rel=0.05)


def test_density_counts_a_streamline_once_and_jumps_no_voxel():
    there_and_back = np.array([[10, 0, 0], [-10, 0, 0], [10, 0, 0]], np.float32)
    density = density_of(Streamlines(there_and_back, np.array([0, 3])))
    assert density.max() == 1
    assert (density.sum(axis=(1, 2)) == 1).sum() == 11  # x = 10 to -10 in steps of 2
    before = density.copy()
    add_track_density(density, Streamlines(there_and_back, np.array([0, 3])), AFFINE)
    np.testing.assert_array_equal(density, 2 * before)


def test_density_of_no_streamlines_and_of_single_points():
    empty = Streamlines(np.empty((0, 3), np.float32), np.zeros(1, np.int64))
    assert not density_of(empty).any()
    assert density_of(Streamlines(np.zeros((1, 3), np.float32), np.array([0, 1]))).sum() == 1


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("turn", [np.diag([1, 1, 1]), np.diag([-1, 1, 1]), np.eye(3)[[1, 0, 2]]])
def test_colours_are_those_of_the_world(tmp_path, axis, turn):
    """A fibre along a world axis has that axis' colour, however the voxels lie."""
    rng = np.random.default_rng(1)
    world = rng.normal(size=(30, 3))
    world /= np.linalg.norm(world, axis=1, keepdims=True)
    affine = np.eye(4)
    affine[:3, :3] = 2 * turn
    b = np.r_[0.0, np.full(30, 1000.0)]
    diffusivity = np.where(np.arange(3) == axis, 1.7e-3, 0.3e-3)
    signal = 1000 * np.exp(-b * np.r_[0, (world**2) @ diffusivity])
    image = np.broadcast_to(signal, (3, 3, 3, 31)).astype(np.float32)
    voxel = world @ turn
    if np.linalg.det(turn) > 0:  # FSL's x
        voxel = voxel * [-1, 1, 1]
    np.savetxt(tmp_path / "bval", b[None], fmt="%g")
    np.savetxt(tmp_path / "bvec", np.vstack([np.zeros(3), voxel]).T)
    mask = np.ones((3, 3, 3), np.uint8)
    mask[0] = 0
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "dwi.nii")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii")
    files = [str(tmp_path / name) for name in ("dwi.nii", "bval", "bvec", "mask.nii", "mask.nii")]
    dwi = with_coloured_anisotropy(PreparedDwi(*files), tmp_path, threads=1)
    colours = nib.load(dwi.colour_fa).get_fdata()
    large, small = 1.7e-3, 0.3e-3
    mean = (large + 2 * small) / 3
    spread = (large - mean) ** 2 + 2 * (small - mean) ** 2
    fa = np.sqrt(1.5 * spread / (large**2 + 2 * small**2))
    expected = np.where(np.arange(3) == axis, fa, 0)
    np.testing.assert_allclose(colours[1, 1, 1], expected, atol=1e-3)
    assert not colours[0].any()


def test_the_largest_tissue_is_kept(tmp_path):
    shares = np.zeros((1, 1, 3, 5), np.float32)
    shares[0, 0, 0] = [0.3, 0, 0.6, 0.1, 0]
    shares[0, 0, 1, 4] = 1
    nib.save(nib.Nifti1Image(shares, AFFINE), tmp_path / "5tt.nii")
    volume = largest_tissue(tmp_path / "5tt.nii")
    np.testing.assert_array_equal(volume.values[0, 0], [3, 5, 0])


@pytest.mark.parametrize("kind", ["float32", "uint8", "bool", "uint32"])
def test_a_volume_is_read_as_it_was_written(tmp_path, kind):
    values = np.random.default_rng(0).uniform(-50 if kind == "float32" else 0, 200, SHAPE)
    values = (values > 100) if kind == "bool" else values.astype(kind)
    values[0] = 0
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for path in paths:
        Volume(values, AFFINE).write(path)
    image = nib.load(paths[0])
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_allclose(image.get_fdata(), values, atol=200 / 60000)
    assert not image.get_fdata()[0].any()
    assert paths[0].read_bytes() == paths[1].read_bytes()
