"""The diffusion phantom: its truth holds, and its signals are what they are said to be."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from dipy.sims.voxel import multi_tensor
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from bsym_bids import atlas
from bsym_bids.atlas.group import group_streamline_counts
from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.simulation import diffusion as simulation
from bsym_bids.simulation import diffusion_anatomy as anatomy
from bsym_bids.simulation import diffusion_bundles as fibres
from bsym_bids.simulation import diffusion_signal as physics
from bsym_bids.simulation.diffusion import ceiling, make_phantom, score_connectome
from bsym_bids.simulation.diffusion_files import write_phantom

SMALL = {
    "voxel_mm": 4.0,
    "t1w_mm": 2.5,
    "n_bundles": 8,
    "shells": ((0.0, 2), (1000.0, 14)),
}


@pytest.fixture(scope="module")
def phantom():
    """A scan in which the head moved, on a grid with a negative determinant."""
    return make_phantom(3, **SMALL)


@pytest.fixture(scope="module")
def oblique():
    """The same person, lying still and hardly noisy, on an oblique grid of positive determinant."""
    return make_phantom(3, **SMALL, determinant=1, motion=0, oblique=(8.0, -5.0, 12.0), snr=200.0)


def test_is_the_same_for_a_seed_and_any_number_of_threads(phantom):
    with threadpool_limits(2):
        again = make_phantom(3, **SMALL)
    for name in ("dwi", "bvecs", "t1w", "labels", "weights", "motion"):
        np.testing.assert_array_equal(getattr(again, name), getattr(phantom, name))


def test_truth_does_not_depend_on_the_scan(phantom, oblique):
    np.testing.assert_array_equal(phantom.weights, oblique.weights)
    np.testing.assert_array_equal(phantom.t1w, oblique.t1w)
    assert np.linalg.det(phantom.affine) < 0 < np.linalg.det(oblique.affine)


def test_shapes_and_ranges(phantom):
    assert phantom.dwi.shape == (*phantom.mask.shape, 16)
    assert phantom.dwi.dtype == np.float32 and (phantom.dwi >= 0).all()
    assert (phantom.weights > 0).sum() == 2 * 8
    np.testing.assert_array_equal(phantom.weights, phantom.weights.T)
    np.testing.assert_array_equal(phantom.weights > 0, np.isfinite(phantom.lengths))
    np.testing.assert_allclose(np.linalg.norm(phantom.bvecs, axis=1), phantom.bvals > 0, atol=1e-12)
    assert not phantom.motion[0].any() and np.abs(phantom.motion).max() == pytest.approx(1.5)
    assert not phantom.is_aligned
    assert len(np.unique(phantom.labels[phantom.mask])) > 400


@pytest.mark.parametrize("which", ["phantom", "oblique"])
def test_tensors_point_along_the_bundles(which, request):
    """An independent reader of the gradients finds the directions that were put in."""
    phantom = request.getfixturevalue(which)
    voxels, expected = _voxels_of_one_bundle(phantom)
    found = _main_directions(phantom, voxels, flip=np.linalg.det(phantom.affine) > 0)
    assert np.median(_angles(found, expected)) < 15
    wrong = _main_directions(phantom, voxels, flip=np.linalg.det(phantom.affine) < 0)
    assert np.median(_angles(wrong, expected)) > 25


def _voxels_of_one_bundle(phantom):
    """Return voxels that one bundle fills, and its direction there in the world of the series."""
    voxels = np.argwhere(phantom.mask)
    to_t1w = np.linalg.inv(phantom.dwi_from_t1w) @ phantom.affine
    capacities = np.array([bundle.capacity_mm2 for bundle in phantom.bundles])
    substrate = simulation._substrate(phantom.head)
    found = fibres.fibres_at(
        phantom.bundles, capacities, substrate, anatomy.apply_affine(to_t1w, voxels)
    )
    assert ((found.fractions >= 0) & (np.diff(found.fractions, prepend=9) <= 0)).all()
    full = (found.fractions[:, 0] > 0.6) & (found.fractions[:, 1] < 0.1)
    assert full.sum() > 50
    return voxels[full], found.directions[full, 0] @ phantom.dwi_from_t1w[:3, :3].T


def _main_directions(phantom, voxels, flip):
    bvecs = phantom.bvecs * [-1 if flip else 1, 1, 1]
    table = gradient_table(phantom.bvals, bvecs=bvecs)
    fit = TensorModel(table).fit(phantom.dwi[tuple(voxels.T)])
    axes = phantom.affine[:3, :3] / np.linalg.norm(phantom.affine[:3, :3], axis=0)
    return fit.evecs[..., 0] @ axes.T


def _angles(first, second):
    return np.rad2deg(np.arccos(np.clip(np.abs((first * second).sum(axis=1)), 0, 1)))


def test_every_cross_section_of_a_bundle_carries_the_same(phantom):
    checked = 0
    for bundle in phantom.bundles:
        ends = [np.array([s[end] for s in bundle.streamlines]) for end in (0, -1)]
        start = simulation._substrate(phantom.head).affine[:3, 3] + 2 * bundle.corner
        for axis in range(3):
            one, other = ((e[:, axis] - start[axis]) / 2 for e in ends)
            low, high = (one, other) if one.mean() < other.mean() else (other, one)
            for plane in range(int(low.max()) + 4, int(high.min()) - 3):
                total = bundle.flow[..., axis].take(plane, axis).sum() * 4
                assert abs(total) == pytest.approx(1, abs=0.03)
                checked += 1
    assert checked > 10


def test_fibres_run_from_roi_to_roi_inside_the_brain(phantom):
    inverse = np.linalg.inv(phantom.t1w_affine)
    for bundle in phantom.bundles:
        points = np.concatenate(bundle.streamlines)
        voxels = np.rint(anatomy.apply_affine(inverse, points)).astype(int)
        assert phantom.tissues.csf[tuple(voxels.T)].mean() < 0.05
        length = phantom.lengths[bundle.rois[0] - 1, bundle.rois[1] - 1]
        assert 0.6 * len(bundle.route) < length < 1.4 * len(bundle.route) + 10
    ends = [np.array([s[e] for b in phantom.bundles for s in b.streamlines]) for e in (0, -1)]
    for end in (0, 1):
        expected = np.concatenate([[b.rois[end]] * len(b.streamlines) for b in phantom.bundles])
        assert (simulation._roi_at(phantom, ends[end], 4.0) == expected).mean() > 0.85


def test_ceiling_is_near_one(phantom):
    counts = ceiling(phantom, 100_000)
    assert 90_000 < np.triu(counts).sum() <= 100_000
    auc, r = score_connectome(counts, phantom.weights)
    assert auc > 0.99 and r > 0.93


def test_score_against_sklearn():
    rng = np.random.default_rng(0)
    truth = np.zeros((450, 450))
    part = rng.permutation(450)[:30]
    pairs = np.stack(np.triu_indices(30, k=1))[:, rng.permutation(435)[:40]]
    truth[part[pairs[0]], part[pairs[1]]] = rng.lognormal(size=40)
    truth += truth.T
    found = rng.poisson(3 * truth + 0.3).astype(float)
    found += found.T
    part = np.flatnonzero(truth.any(axis=0))
    rows, columns = np.triu_indices(len(part), k=1)
    strength, true = found[part[rows], part[columns]], truth[part[rows], part[columns]]
    edges = true > 0
    floor = strength[edges & (strength > 0)].min() / 2
    auc, r = score_connectome(found, truth)
    assert auc == pytest.approx(roc_auc_score(edges, strength))
    expected = np.corrcoef(np.log(np.maximum(strength[edges], floor)), np.log(true[edges]))[0, 1]
    assert r == pytest.approx(expected)
    scaled = score_connectome(np.where(found == 0, np.nan, 0.01 * found), truth)
    assert scaled == pytest.approx((auc, r))


def test_score_of_nothing_and_of_everything():
    truth = np.zeros((450, 450))
    truth[0, 1] = truth[1, 0] = 2
    truth[1, 2] = truth[2, 1] = 3
    truth[3, 2] = truth[2, 3] = 5
    assert score_connectome(truth, truth) == pytest.approx((1, 1))
    nothing = score_connectome(np.zeros_like(truth), truth)
    assert nothing.auc == 0.5 and np.isnan(nothing.r)
    with pytest.raises(BadDataError, match="cannot be compared"):
        score_connectome(np.zeros((449, 449)), truth)


def test_fibre_signal_against_dipy():
    rng = np.random.default_rng(1)
    table = physics.gradient_table(((0, 1), (1000, 20), (3000, 20)), rng)
    reader = gradient_table(table.bvals, bvecs=table.directions)
    direction = np.array([0.48, -0.6, 0.64])
    stick, zeppelin = physics.PARALLEL, physics.PERPENDICULAR
    expected, _ = multi_tensor(
        reader,
        np.array([[stick, 0, 0], [stick, zeppelin, zeppelin]]),
        S0=1,
        angles=[direction, direction],
        fractions=[100 * physics.INTRA_AXONAL, 100 * (1 - physics.INTRA_AXONAL)],
        snr=None,
    )
    found = physics.fibre_signal(table.bvals, table.directions @ direction)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dispersed_signal_is_the_mean_over_the_sphere():
    bvals = np.array([0.0, 500.0, 1000.0, 3000.0])
    cosines = (np.arange(20_000) + 0.5) / 20_000
    expected = physics.fibre_signal(bvals[:, None], cosines).mean(axis=1)
    np.testing.assert_allclose(physics.dispersed_signal(bvals), expected, rtol=1e-6)


def test_gradients_cover_the_sphere():
    table = physics.gradient_table(((0, 3), (1000, 30)), np.random.default_rng(2))
    assert table.bvals[0] == 0 and (table.bvals == 0).sum() == 3
    directions = table.directions[table.bvals > 0]
    cosine = np.abs(directions @ directions.T) - np.eye(30)
    assert np.rad2deg(np.arccos(cosine.max())) > 24
    tensor = directions.T @ directions / 30
    np.testing.assert_allclose(np.linalg.eigvalsh(tensor), 1 / 3, atol=0.03)


def test_noise_is_rician():
    series = np.zeros((40, 40, 40, 2), dtype=np.float32)
    series[..., 1] = 1
    physics.add_rician_noise(series, 20, np.random.default_rng(0))
    assert series[..., 0].mean() == pytest.approx(np.sqrt(np.pi / 2) / 20, rel=0.01)
    assert series[..., 1].std() == pytest.approx(1 / 20, rel=0.02)


@pytest.mark.parametrize(
    ("pose", "seen"),
    [
        ([4, 0, 0, 0, 0, 0], lambda image: np.roll(image, 2, axis=0)),
        ([0, 0, 0, 0, 0, 90], lambda image: np.rot90(image, 1, axes=(0, 1))),
    ],
)
def test_head_moves_and_takes_its_fibres_along(pose, seen):
    shape = (11, 11, 11)
    inside = np.zeros(shape, dtype=bool)
    inside[3:6, 4:7, 3:9] = True
    n = inside.sum()
    along_x = np.tile(np.float32([1, 0, 0]), (n, 3, 1))
    zero = np.zeros(n, dtype=np.float32)
    mixture = physics.Mixture(np.float32([[1, 0, 0]]).repeat(n, 0), along_x, zero,
                              along_x[:, 0], zero, zero)  # fmt: skip
    gradient = np.array([0.8, 0.6, 0])
    table = physics.GradientTable(np.full(2, 1000.0), np.stack([gradient] * 2))
    motion = np.array([np.zeros(6), pose])
    series = physics.scan(
        mixture, inside, np.zeros(shape, np.float32), np.diag([2.0, 2, 2, 1]), table, motion,
        physics.Background(0, 0),
    )  # fmt: skip
    cosine = gradient[1] if pose[5] else gradient[0]  # fibres along x end up along y
    expected = physics.fibre_signal(1000.0, cosine) * seen(inside.astype(float))
    np.testing.assert_allclose(series[..., 1], expected, atol=0.02)


@pytest.mark.mrtrix3
@pytest.mark.parametrize("which", ["phantom", "oblique"])
def test_gradients_as_mrtrix_reads_them(which, request, tmp_path):
    """MRtrix3 turns FSL's gradients into world coordinates by rules of its own."""
    import subprocess

    phantom = request.getfixturevalue(which)
    write_phantom(phantom, tmp_path, "01", with_t1w=False)
    stem = tmp_path / "sub-01" / "dwi" / "sub-01_dwi"
    command = ["mrinfo", f"{stem}.nii.gz", "-fslgrad", f"{stem}.bvec", f"{stem}.bval", "-dwgrad"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scheme = np.array([line.split() for line in text.strip().splitlines()], dtype=float)
    rng = np.random.default_rng([phantom.seed, 3])
    table = physics.gradient_table(SMALL["shells"], rng)
    np.testing.assert_allclose(scheme[:, :3], table.directions, atol=1e-5)


def test_written_transform_maps_as_the_head_does(phantom, tmp_path):
    import SimpleITK as sitk

    write_phantom(phantom, tmp_path, "01", derivatives="fmriprep", session="a")
    anat = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "ses-a" / "anat"
    stem = anat / "sub-01_ses-a"
    transform = sitk.ReadTransform(f"{stem}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5")
    points = np.argwhere(phantom.tissues.brain)[::997]
    points = anatomy.apply_affine(phantom.t1w_affine, points)
    flip = np.array([-1, -1, 1])
    found = [np.array(transform.TransformPoint((p * flip).tolist())) * flip for p in points]
    np.testing.assert_allclose(found, phantom.head(points), atol=1e-3)
    moved = phantom.head(points) - anatomy.apply_affine(phantom.head.affine, points)
    assert np.abs(moved).max() > 2  # what no affine map does is in it

    image = nib.load(f"{stem}_label-WM_probseg.nii.gz")
    np.testing.assert_allclose(image.affine, phantom.t1w_affine, atol=1e-5)
    np.testing.assert_allclose(image.get_fdata(), phantom.probseg["WM"], atol=1e-6)
    raw = tmp_path / "sub-01" / "ses-a"
    sidecar = json.loads((raw / "dwi" / "sub-01_ses-a_dwi.json").read_text())
    assert sidecar["PhaseEncodingDirection"] == "j-" and sidecar["TotalReadoutTime"] > 0
    series = nib.load(raw / "dwi" / "sub-01_ses-a_dwi.nii.gz")
    np.testing.assert_allclose(series.get_fdata(), phantom.dwi, atol=0.51)
    assert (raw / "anat" / "sub-01_ses-a_T1w.nii.gz").is_file()
    truth = np.load(tmp_path / "sourcedata" / "simulation" / "sub-01_ses-a_dwi_truth.npz")
    np.testing.assert_array_equal(truth["weights"], phantom.weights)


def test_written_as_qsiprep_has_no_raw_data(phantom, tmp_path):
    with pytest.raises(UsageError, match="head moved"):
        write_phantom(phantom, tmp_path, "01", derivatives="qsiprep")
    still = replace(phantom, dwi_from_t1w=np.eye(4), motion=np.zeros_like(phantom.motion))
    write_phantom(still, tmp_path, "01", derivatives="qsiprep")
    assert not (tmp_path / "sub-01").exists()
    root = tmp_path / "derivatives" / "qsiprep"
    generated = json.loads((root / "dataset_description.json").read_text())["GeneratedBy"]
    assert generated[0]["Name"] == "QSIPrep"
    assert (root / "sub-01" / "dwi" / "sub-01_space-ACPC_desc-preproc_dwi.bvec").is_file()
    assert (root / "sub-01" / "anat" / "sub-01_space-ACPC_label-GM_probseg.nii.gz").is_file()


def test_atlas_and_tissues_are_where_they_belong(phantom):
    head = anatomy.HeadMap(np.eye(4), np.zeros((2, 2, 2, 3)), np.eye(4))
    shape, affine = anatomy.grid_of_head(head, 2.0, 4)
    tissues = anatomy.tissues_on_grid(head, shape, affine)
    expected = atlas.labels_on_grid(shape, affine, "MNI152NLin2009cAsym")
    inside = tissues.brain
    assert (tissues.labels == expected)[inside].mean() > 0.99
    cortex = tissues.labels > anatomy.LAST_SUBCORTICAL
    assert tissues.grey[cortex].mean() > 2 * tissues.white[cortex].mean()
    total = phantom.tissues.white + phantom.tissues.grey + phantom.tissues.csf
    np.testing.assert_allclose(total, phantom.tissues.brain, atol=1e-5)
    white, grey = (
        phantom.t1w[phantom.tissues.brain & (phantom.probseg[t] > 0.9)] for t in ("WM", "GM")
    )
    assert np.median(white) > 1.2 * np.median(grey)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"determinant": 0}, "determinant is 0"),
        ({"variant": "odd"}, "variant is 'odd'"),
        ({"snr": 0}, "snr is 0"),
        ({"shells": ((1000.0, 6),)}, "b = 0"),
        ({"rois": (51,)}, "fewer than two"),
        ({"rois": (51, 60, 300), "n_bundles": 9}, "no room for 9"),
    ],
)
def test_arguments_that_make_no_sense(arguments, words):
    with pytest.raises(UsageError, match=words):
        make_phantom(0, **{**SMALL, **arguments})


def test_hard_variant_fits_many_bundles_into_white_matter():
    substrate = simulation._substrate(anatomy.draw_head(np.random.default_rng(0), 0.87, 2.0))
    rois = range(51, 91)
    bundles = simulation._many_bundles(substrate, 60, rois, np.random.default_rng(0))
    assert len({bundle.rois for bundle in bundles}) == 60
    assert {roi for bundle in bundles for roi in bundle.rois} <= set(rois)
    strengths = group_streamline_counts()
    found = [(b.capacity_mm2, strengths[b.rois[0] - 1, b.rois[1] - 1]) for b in bundles]
    assert np.corrcoef(np.log(np.array(found).T))[0, 1] > 0.95
    filled = np.zeros(substrate.white.shape)
    for bundle in bundles:
        box = tuple(slice(c, c + s) for c, s in zip(bundle.corner, bundle.flow.shape, strict=False))
        filled[box] += bundle.capacity_mm2 * np.linalg.norm(bundle.flow, axis=-1)
    assert np.percentile(filled[substrate.white], 95) <= 0.9001
