"""Which volumes engines model, on which grid, and where streamlines begin without tissue."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bsym_bids.dwi.engines.bounds import write_fa_mask, write_fa_seeds
from bsym_bids.dwi.engines.grid import (
    brain_grid,
    masked_signals,
    read_volumes,
    write_fitted_series,
)
from bsym_bids.dwi.engines.volumes import choose_volumes, order_for, tensor_volumes
from bsym_bids.dwi.gradients import Gradients
from bsym_bids.dwi.presets import load_preset
from bsym_bids.dwi.records import PreparedDwi
from bsym_bids.errors import BadDataError


def directions(count, start=0):
    """Spread over half a sphere (a Fibonacci lattice), others for another start."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * (np.arange(count) + 1) + start
    return np.stack([np.cos(angle) * np.sqrt(1 - z**2), np.sin(angle) * np.sqrt(1 - z**2), z], 1)


def series(*shells, b0s=(0,)):
    """Return gradients of shells (b, number of directions), with b0 at the given places."""
    bvals = np.concatenate([np.full(n, float(b)) for b, n in shells])
    bvecs = np.concatenate([directions(n, b) for b, n in shells])
    for place in b0s:
        bvals, bvecs = np.insert(bvals, place, 0), np.insert(bvecs, place, 0, axis=0)
    return Gradients(bvals, bvecs)


def choose(gradients, several=False, lmax=8):
    return choose_volumes(gradients, several_shells=several, lmax=lmax, name="a.nii")


# --- volumes -------------------------------------------------------------------------------------


@given(st.integers(6, 300), st.sampled_from([2, 4, 6, 8]))
def test_the_order_is_the_highest_that_directions_determine(n, limit):
    order = order_for(n, limit)
    possible = [2, *(o for o in (4, 6, 8) if (o + 1) * (o + 2) / 2 <= n)]
    assert order == min(limit, max(possible))


@pytest.mark.parametrize(("n", "order"), [(6, 2), (14, 2), (15, 4), (27, 4), (28, 6), (45, 8)])
def test_orders_of_some_numbers(n, order):
    assert order_for(n, 8) == order


def test_one_shell_with_b0_where_it_is():
    chosen = choose(series((1000, 30), b0s=(3, 20)))
    np.testing.assert_array_equal(chosen.volumes, np.arange(32))
    assert chosen.shells == (1000,) and chosen.n_directions == 30 and chosen.lmax == 6
    assert not chosen.is_multi_shell
    (note,) = chosen.notes
    assert "up to order 6 (the preset allows 8)" in note
    assert choose(series((1000, 30)), lmax=6).notes == ()


def test_of_several_shells_the_highest_up_to_3000():
    gradients = series((700, 20), (3000, 50), (5000, 60), b0s=(0, 40))
    chosen = choose(gradients)
    assert chosen.shells == (3000,) and chosen.lmax == 8
    np.testing.assert_array_equal(
        chosen.volumes, np.flatnonzero((gradients.bvals == 3000) | gradients.is_b0)
    )
    (note,) = chosen.notes
    assert "b=3000 s/mm2; volumes at b=700, 5000 are left out" in note


def test_a_shell_of_few_directions_is_not_the_highest():
    chosen = choose(series((1000, 32), (2500, 14)))
    assert chosen.shells == (1000,)
    # where none has fifteen, the one with most, and of equals the higher
    assert choose(series((1000, 12), (2000, 9))).shells == (1000,)
    assert choose(series((1000, 9), (2000, 9))).shells == (2000,)
    # beyond 3000 only where nothing else will do
    assert choose(series((1000, 8), (5000, 40))).shells == (5000,)


def test_all_shells_where_they_are_modelled_together():
    gradients = series((300, 3), (1000, 20), (2000, 50))
    chosen = choose(gradients, several=True)
    assert chosen.shells == (1000, 2000) and chosen.is_multi_shell
    assert chosen.n_directions == 50 and chosen.lmax == 8
    np.testing.assert_array_equal(chosen.volumes, np.flatnonzero(gradients.bvals != 300))
    assert any("b=300 are left out" in note for note in chosen.notes)
    assert not choose(series((1000, 20)), several=True).is_multi_shell


def test_six_directions_are_modelled_with_a_warning():
    chosen = choose(series((1000, 6)))
    assert chosen.lmax == 2 and len(chosen.volumes) == 7
    assert any("one fibre orientation per voxel" in note for note in chosen.notes)


def test_directions_count_once():
    once = directions(5)
    bvecs = np.concatenate([np.zeros((1, 3)), once, -once, once])
    repeated = Gradients(np.r_[0, np.full(15, 1000.0)], bvecs)
    with pytest.raises(BadDataError, match=r"a\.nii: no shell has 6 .*\(5 at b=1000\)") as raised:
        choose(repeated)
    assert "at least 6 directions" in raised.value.hint
    with pytest.raises(BadDataError, match=r"\(none\)"):
        choose(Gradients(np.zeros(3), np.zeros((3, 3))))


def test_the_tensor_takes_the_lower_shells():
    gradients = series((700, 6), (1500, 20), (3000, 30))
    np.testing.assert_array_equal(tensor_volumes(gradients), np.flatnonzero(gradients.bvals < 1600))
    few = series((700, 5), (3000, 30))
    np.testing.assert_array_equal(tensor_volumes(few), np.arange(36))


# --- grid ----------------------------------------------------------------------------------------

SHAPE = (22, 20, 16)


def affine_of(zooms=(1.5, 1.5, 2.0), flip=1):
    c, s = np.cos(0.2), np.sin(0.2)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * zooms * [flip, 1, 1]
    affine[:3, 3] = (-20, 15, 8)
    return affine


@pytest.fixture
def make(tmp_path):
    """Write a smooth series with a mask, and return it as it is prepared."""

    def make(mask=None, affine=None, suffix=".nii.gz", negative=False):
        affine = affine_of() if affine is None else affine
        rng = np.random.default_rng(1)
        data = ndimage.gaussian_filter(rng.normal(size=(*SHAPE, 5)), (2, 2, 2, 0)) * 100
        data = (data if negative else data - data.min() + 1).astype(np.float32)
        if mask is None:
            mask = np.zeros(SHAPE, bool)
            mask[5:18, 4:15, 3:12] = True
        files = {name: str(tmp_path / f"{name}{suffix}") for name in ("dwi", "mask")}
        nib.save(nib.Nifti1Image(data, affine), files["dwi"])
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), files["mask"])
        return PreparedDwi(files["dwi"], "dwi.bval", "dwi.bvec", files["mask"], "b0.nii"), data

    return make


def world(affine, index):
    return nib.affines.apply_affine(affine, index)


def test_the_grid_is_cut_to_the_brain_and_a_margin(make):
    dwi, data = make()
    grid = brain_grid(dwi, None)
    assert grid.corner == (3, 2, 1) and grid.shape == (17, 15, 13) == grid.mask.shape
    assert not grid.is_coarsened and grid.mask.sum() == 13 * 11 * 9
    np.testing.assert_allclose(world(grid.affine, (0, 0, 0)), world(affine_of(), (3, 2, 1)))
    np.testing.assert_array_equal(grid.place(data[..., 0]), data[3:20, 2:17, 1:14, 0])
    assert grid.voxel_size == pytest.approx((1.5 * 1.5 * 2) ** (1 / 3))


def test_the_margin_ends_with_the_image(make):
    grid = brain_grid(make(np.ones(SHAPE, bool))[0], None)
    assert grid.corner == (0, 0, 0) and grid.shape == SHAPE


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.floats(0.8, 2.4)] * 3),
    st.sampled_from([1, -1]),
    st.floats(2.5, 5),
    st.tuples(*[st.integers(3, 12)] * 3),
)
def test_a_coarser_grid_has_the_same_axes_and_centre(tmp_path_factory, zooms, flip, wanted, extent):
    folder = tmp_path_factory.mktemp("grid")
    affine = affine_of(zooms, flip)
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(4, 4 + n) for n in extent)] = 1
    for name in ("dwi", "mask"):
        nib.save(nib.Nifti1Image(mask, affine), folder / f"{name}.nii")
    dwi = PreparedDwi(str(folder / "dwi.nii"), "", "", str(folder / "mask.nii"), "")
    try:
        grid = brain_grid(dwi, wanted)
    except BadDataError as error:
        assert min(np.array(extent) * zooms) <= wanted, error
        return
    is_fine = np.prod(zooms) < 0.7 * wanted**3
    assert grid.is_coarsened == is_fine
    if not is_fine:
        return
    found = grid.fitted_affine[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), wanted)
    np.testing.assert_allclose(found / wanted, affine[:3, :3] / zooms, atol=1e-9)
    middles = [
        world(a, (np.array(s) - 1) / 2)
        for a, s in ((grid.fitted_affine, grid.mask.shape), (grid.affine, grid.shape))
    ]
    np.testing.assert_allclose(*middles, atol=1e-6)
    # it covers the finer one, by less than a voxel more
    more = np.array(grid.mask.shape) * wanted - np.array(grid.shape) * zooms
    assert (more > -1e-6).all() and (more < wanted + 1e-6).all()


@pytest.mark.parametrize("wanted", [None, 3.0])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_signals_are_those_in_the_mask(make, tmp_path, suffix, wanted):
    """Against nibabel and scipy: a Gaussian for what the voxels grow by, then interpolation."""
    dwi, data = make(suffix=suffix)
    grid = brain_grid(dwi, wanted)
    volumes = np.array([0, 2, 4])
    found = masked_signals(dwi, grid, volumes)
    assert found.shape == (grid.mask.sum(), 3) and found.dtype == np.float32
    zooms = np.array([1.5, 1.5, 2.0])
    points = world(grid.fitted_affine, np.argwhere(grid.mask))
    index = world(np.linalg.inv(affine_of()), points).T
    for column, volume in enumerate(volumes):
        one = data[..., volume].astype(float)
        if wanted:
            # the part of the grid that is cut out has an edge of its own
            part = np.zeros(SHAPE)
            cut = tuple(slice(c, c + n) for c, n in zip(grid.corner, grid.shape, strict=True))
            part[cut] = one[cut]
            fwhm = np.sqrt(wanted**2 - zooms**2) / zooms
            one = ndimage.gaussian_filter(part, fwhm / np.sqrt(8 * np.log(2)), mode="constant")
        expected = ndimage.map_coordinates(one, index, order=1)
        np.testing.assert_allclose(found[:, column], expected, rtol=2e-3)
    image, mask = tmp_path / "fitted.nii", tmp_path / "fitted_mask.nii"
    write_fitted_series(dwi, grid, volumes, image, mask)
    written = nib.load(image)
    np.testing.assert_allclose(written.affine, grid.fitted_affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj) > 0, grid.mask)
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32)[grid.mask], found)


def test_a_constant_stays_what_it_is_on_a_coarser_grid(make):
    dwi, data = make()
    nib.save(nib.Nifti1Image(np.full_like(data, 7), affine_of()), dwi.image)
    grid = brain_grid(dwi, 3.0)
    inner = ndimage.binary_erosion(grid.mask)[grid.mask]
    found = masked_signals(dwi, grid, np.array([1]))[inner]
    np.testing.assert_allclose(found, 7, rtol=1e-3)


def test_there_is_no_negative_signal(make):
    dwi, data = make(negative=True)
    assert data.min() < -1
    found = masked_signals(dwi, brain_grid(dwi, None), np.arange(5))
    assert found.min() == 0 and found.max() > 1


def test_volumes_are_read_in_order(make):
    dwi, data = make()
    read = list(read_volumes(dwi.image, np.array([1, 3])))
    np.testing.assert_array_equal(np.stack(read, -1), data[..., [1, 3]])


def test_masks_that_cannot_be_used(make):
    dwi, _ = make(np.zeros(SHAPE, bool))
    with pytest.raises(BadDataError, match=r"mask\.nii\.gz: the brain mask is empty"):
        brain_grid(dwi, None)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), dwi.mask)
    with pytest.raises(BadDataError, match=r"mask\.nii\.gz: is not on the grid of .*dwi\.nii"):
        brain_grid(dwi, None)
    thin = np.zeros(SHAPE, bool)
    thin[5:8, 5, 5] = True
    dwi, _ = make(thin)
    assert brain_grid(dwi, None).mask.sum() == 3
    with pytest.raises(BadDataError, match=r"mask\.nii\.gz: nothing of .* left in voxels of 4 mm"):
        brain_grid(dwi, 4.0)


# --- without tissue ------------------------------------------------------------------------------


def test_streamlines_begin_within_and_stay_where_anisotropy_is(tmp_path):
    preset = load_preset("full")
    rng = np.random.default_rng(0)
    fa = np.zeros((12, 12, 12), np.float32)
    fa[1:11, 1:11, 1:11] = rng.uniform(0.01, 0.4, (10, 10, 10))
    fa[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(fa, affine_of()), tmp_path / "fa.nii")
    seeds = nib.load(write_fa_seeds(tmp_path / "fa.nii", preset, tmp_path / "seeds.nii"))
    mask = nib.load(write_fa_mask(tmp_path / "fa.nii", preset, tmp_path / "mask.nii"))
    for image in (seeds, mask):
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, affine_of(), atol=1e-6)
    inside, begin = np.asarray(mask.dataobj) > 0, np.asarray(seeds.dataobj) > 0
    fa = np.nan_to_num(fa)
    np.testing.assert_array_equal(inside, fa >= np.float32(preset.fa_stop))
    assert begin.any() and not begin[~inside].any()
    assert fa[begin].min() >= preset.fa_seed
    outer = np.ones(fa.shape, bool)
    outer[3:9, 3:9, 3:9] = False
    assert not begin[outer].any()
    # everything else that is anisotropic enough, but next to the hole
    far = np.abs(np.argwhere(np.ones(fa.shape)) - 5).sum(axis=1).reshape(fa.shape) > 2
    np.testing.assert_array_equal(begin[far & ~outer], (fa >= preset.fa_seed)[far & ~outer])


def test_no_anisotropy_is_an_error(tmp_path):
    fa = np.full((12, 12, 12), 0.15, np.float32)
    nib.save(nib.Nifti1Image(fa, np.eye(4)), tmp_path / "fa.nii")
    with pytest.raises(BadDataError, match=r"fa\.nii: no voxel .* anisotropy of 0\.2") as raised:
        write_fa_seeds(tmp_path / "fa.nii", load_preset("full"), tmp_path / "seeds.nii")
    assert "fa_seed" in raised.value.hint
