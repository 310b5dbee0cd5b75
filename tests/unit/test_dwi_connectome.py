"""From streamlines to edges."""

import subprocess

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsym_bids import atlas
from bsym_bids.dwi.connectome import (
    Connectome,
    EdgeSums,
    EndLookup,
    Image,
    Measures,
    describe_gaps,
    measure,
    read_fa,
    read_labels,
    summed_weights,
    volumes_of_rois,
    without_absent,
)
from bsym_bids.dwi.tracks import Streamlines, write_tck
from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.interfaces.files import load_record, save_record
from bsym_bids.model.structural import volume_normalised

N = 450
UPPER = np.triu_indices(N)


def rotation(rng):
    """Draw a rotation."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)


def grid(rng, kind):
    """Draw an affine: along the axes, oblique, or sheared."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(rng.uniform(0.8, 2.5, 3) * rng.choice([-1, 1], 3))
    if kind != "straight":
        affine[:3, :3] = rotation(rng) @ affine[:3, :3]
    if kind == "sheared":
        affine[:3, :3] = affine[:3, :3] @ np.array([[1, 0.4, 0], [0, 1, 0.3], [0, 0, 1]])
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    return affine


def blobs(rng, shape, n_rois=N, share=0.4):
    """Draw labels that fill a share of a volume in lumps."""
    centres = rng.uniform(0, 1, (n_rois, 3)) * shape
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    nearest = np.argmin(np.linalg.norm(where[..., None, :] - centres, axis=-1), axis=-1) + 1
    filled = rng.uniform(size=[-(-n // 2) for n in shape]) < share
    for axis in range(3):
        filled = filled.repeat(2, axis=axis)
    return np.where(filled[tuple(map(slice, shape))], nearest, 0).astype(np.uint16)


def by_brute_force(labels, points, radius=4.0):
    """Return the ROI of the nearest labelled centre, and by how much it is nearer than others."""
    voxels = np.argwhere(labels.values)
    centres = voxels @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    rois = labels.values[tuple(voxels.T)]
    distance = np.linalg.norm(points[:, None] - centres, axis=-1)
    order = np.argsort(distance, axis=1)
    nearest = np.take_along_axis(distance, order[:, :2], axis=1)
    found = np.where(nearest[:, 0] < radius, rois[order[:, 0]], 0)
    margin = np.minimum(nearest[:, 1] - nearest[:, 0], np.abs(nearest[:, 0] - radius))
    return found, margin


def walks(rng, labels, n, lengths=(1, 60)):
    """Draw random walks in and around the grid of an image."""
    sizes = rng.integers(*lengths, n)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    corner = np.array(labels.values.shape) + 4
    starts = (rng.uniform(size=(n, 3)) * corner - 2) @ labels.affine[:3, :3].T
    drift = rng.normal(size=(n, 3)).repeat(sizes, axis=0)
    steps = drift + rng.normal(size=(offsets[-1], 3), scale=0.3)
    steps[offsets[:-1]] = 0
    path = np.cumsum(steps, axis=0)
    path -= path[offsets[:-1]].repeat(sizes, axis=0)
    points = starts.repeat(sizes, axis=0) + path + labels.affine[:3, 3]
    return Streamlines(points.astype(np.float32), offsets.astype(np.int64))


def saved(path, image):
    nib.save(nib.Nifti1Image(image.values, image.affine), path)
    return path


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["straight", "oblique", "sheared"])
@pytest.mark.parametrize("seed", range(3))
def test_an_end_gets_the_roi_of_the_nearest_labelled_centre(kind, seed):
    rng = np.random.default_rng(seed)
    labels = Image(blobs(rng, (14, 12, 10), share=0.15), grid(rng, kind))
    voxels = rng.uniform(-5, 18, (3000, 3))
    points = voxels @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    found = EndLookup(labels).rois_at(points)
    expected, margin = by_brute_force(labels, points)
    clear = margin > 1e-9
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert 0.05 < (found == 0).mean() < 0.95


def test_voxels_larger_than_the_radius_do_not_stretch_it():
    labels = Image(np.full((1, 1, 1), 7, np.uint16), np.diag([10.0, 10, 10, 1]))
    found = EndLookup(labels).rois_at(np.array([[0, 0, 0], [3.9, 0, 0], [4.0, 0, 0], [4.5, 0, 0]]))
    np.testing.assert_array_equal(found, [7, 7, 0, 0])


# --- along streamlines ---------------------------------------------------------------------------


@pytest.fixture
def scene():
    """Labels and FA on different oblique grids, and streamlines through both."""
    rng = np.random.default_rng(5)
    labels = Image(blobs(rng, (20, 22, 18), n_rois=300), grid(rng, "oblique"))
    affine = labels.affine.copy()
    affine[:3, :3] = rotation(rng) @ np.diag([2.1, 1.7, 2.4])
    affine[:3, 3] += labels.affine[:3, :3] @ [10, 11, 9] - affine[:3, :3] @ [12, 12, 12]
    fa = Image(rng.uniform(size=(24, 24, 24)).astype(np.float32), affine)
    return labels, fa, walks(rng, labels, 4000)


def one_by_one(streamlines, image):
    """Return length and mean FA of each streamline, by a loop."""
    inverse = np.linalg.inv(image.affine)
    limits = np.array(image.values.shape)
    lengths, means = [], []
    for points in np.split(streamlines.points.astype(float), streamlines.offsets[1:-1]):
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        weights = np.zeros(len(points))
        weights[:-1] += steps
        weights[1:] += steps
        values = []
        for voxel in points @ inverse[:3, :3].T + inverse[:3, 3]:
            value = 0.0
            if ((voxel >= -0.5) & (voxel <= limits - 0.5)).all():
                low = np.floor(voxel).astype(int)
                for corner in np.ndindex(2, 2, 2):
                    share = np.where(corner, voxel - low, 1 - (voxel - low)).prod()
                    at = np.clip(low + corner, 0, limits - 1)
                    value += share * float(image.values[tuple(at)])
            values.append(value)
        lengths.append(steps.sum())
        means.append(np.average(values, weights=weights) if steps.sum() else np.mean(values))
    return np.array(lengths), np.array(means)


def test_lengths_and_fa_are_those_of_a_plain_loop(scene):
    labels, fa, streamlines = scene
    some = Streamlines(streamlines.points[: streamlines.offsets[60]], streamlines.offsets[:61])
    found = measure(some, EndLookup(labels), fa)
    lengths, means = one_by_one(some, fa)
    np.testing.assert_allclose(found.length, lengths, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.fa, means, rtol=1e-5, atol=1e-5)


def test_a_streamline_without_points_counts_as_one_that_ends_nowhere(scene):
    streamlines = scene[2]
    first, second = streamlines.offsets[1:3]
    alone = measure(
        Streamlines(streamlines.points[:second], streamlines.offsets[:3]), *scene_of(scene)
    )
    offsets = np.array([0, 0, first, first, second, second])
    found = measure(Streamlines(streamlines.points[:second], offsets), *scene_of(scene))
    for name in Measures._fields:
        np.testing.assert_array_equal(getattr(found, name)[[1, 3]], getattr(alone, name))
    np.testing.assert_array_equal(found.roi_a[[0, 2, 4]], 0)
    assert np.isnan(found.fa[[0, 2, 4]]).all() and not found.length[[0, 2, 4]].any()
    nothing = measure(Streamlines(np.empty((0, 3), np.float32), np.zeros(1, int)), *scene_of(scene))
    assert [len(values) for values in nothing] == [0] * 4


def scene_of(scene):
    labels, fa, _ = scene
    return EndLookup(labels), fa


def test_what_is_measured_does_not_depend_on_what_is_beside_it(scene):
    _, _, streamlines = scene
    together = measure(streamlines, *scene_of(scene))
    cut = streamlines.offsets[1001]
    parts = (
        Streamlines(streamlines.points[:cut], streamlines.offsets[:1002]),
        Streamlines(streamlines.points[cut:], streamlines.offsets[1001:] - cut),
    )
    measured = [measure(part, *scene_of(scene)) for part in parts]
    for name, values in together._asdict().items():
        found = np.concatenate([getattr(part, name) for part in measured])
        assert found.tobytes() == values.tobytes()


# --- against MRtrix3 -----------------------------------------------------------------------------


def mrtrix(folder, *words):
    command = [*map(str, words), "-quiet", "-nthreads", "0"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.mark.mrtrix3
@pytest.mark.parametrize("kind", ["straight", "oblique"])
def test_edges_are_those_of_tck2connectome(tmp_path, kind):
    rng = np.random.default_rng(11)
    n_rois = 430  # the last labels are missing
    labels = Image(blobs(rng, (30, 26, 22), n_rois=n_rois, share=0.2), grid(rng, kind))
    fa = Image(rng.uniform(size=(30, 26, 22)).astype(np.float32), labels.affine)
    streamlines = walks(rng, labels, 20_000, lengths=(2, 30))
    saved(tmp_path / "labels.nii", labels)
    saved(tmp_path / "fa.nii", fa)
    write_tck(tmp_path / "a.tck", streamlines)
    labels, fa = read_labels(tmp_path / "labels.nii"), read_fa(tmp_path / "fa.nii")
    found = measure(streamlines, EndLookup(labels), fa)

    common = ["tck2connectome", "a.tck", "labels.nii"]
    how = ["-assignment_radial_search", 4, "-symmetric"]
    mrtrix(tmp_path, *common, "counts.csv", *how, "-out_assignments", "ends.txt")
    ends = np.loadtxt(tmp_path / "ends.txt", dtype=int)
    np.testing.assert_array_equal(np.stack([found.roi_a, found.roi_b], axis=1), ends)
    assert 0.1 < (ends > 0).all(axis=1).mean() < 0.9

    sums = EdgeSums()
    sums.add(found)
    counts = np.loadtxt(tmp_path / "counts.csv", delimiter=",")
    assert len(counts) == labels.values.max() < N  # theirs is smaller
    theirs = np.ix_(*[range(len(counts))] * 2)
    np.testing.assert_array_equal(sums.counts[theirs], counts)
    assert sums.counts.sum() == counts.sum() and np.diag(counts).sum() > 0

    mrtrix(tmp_path, "tcksample", "a.tck", "fa.nii", "fa.txt", "-stat_tck", "mean")
    sampled = np.loadtxt(tmp_path / "fa.txt")
    np.testing.assert_allclose(found.fa, sampled, atol=2e-4)
    assert np.abs(found.fa - sampled).mean() < 2e-6

    for option, ours in (
        (["-scale_length"], sums.mean_length),
        (["-scale_file", "fa.txt"], sums.mean_fa),
    ):
        mrtrix(tmp_path, *common, "mean.csv", *how, *option, "-stat_edge", "mean", "-force")
        mean = np.loadtxt(tmp_path / "mean.csv", delimiter=",")
        np.testing.assert_allclose(np.nan_to_num(ours[theirs]), np.nan_to_num(mean), atol=2e-4)
        np.testing.assert_array_equal(np.isnan(ours), sums.counts == 0)

    weights = rng.gamma(2, size=len(streamlines)).astype(np.float32)
    np.savetxt(tmp_path / "weights.txt", weights)
    mrtrix(tmp_path, *common, "sums.csv", *how, "-tck_weights_in", "weights.txt")
    theirs_summed = np.loadtxt(tmp_path / "sums.csv", delimiter=",")
    np.testing.assert_allclose(summed_weights(found, weights)[theirs], theirs_summed, rtol=1e-4)

    volumes = volumes_of_rois(labels)
    mrtrix(tmp_path, *common, "density.csv", *how, "-scale_invnodevol")
    density = np.loadtxt(tmp_path / "density.csv", delimiter=",")
    voxel = abs(np.linalg.det(labels.affine[:3, :3]))  # they count voxels
    ours = connectome_of(sums.counts, volumes).counts_per_volume()[theirs] * voxel
    np.testing.assert_allclose(np.nan_to_num(ours), np.nan_to_num(density), rtol=1e-4)


# --- sums ----------------------------------------------------------------------------------------


@st.composite
def measured(draw):
    n = draw(st.integers(0, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_rois = draw(st.sampled_from([1, 3, N]))
    return Measures(
        rng.integers(0, n_rois + 1, n).astype(np.uint16),
        rng.integers(0, n_rois + 1, n).astype(np.uint16),
        rng.gamma(3, 20, n).astype(np.float32),
        rng.beta(3, 4, n).astype(np.float32),
    )


def summed(*lots):
    sums = EdgeSums()
    for lot in lots:
        sums.add(lot)
    return sums


def results(sums):
    values = (sums.counts, sums.mean_length, sums.mean_fa)
    return b"".join(value.tobytes() for value in values), sums.n_streamlines, sums.n_assigned


@settings(max_examples=25, deadline=None)
@given(measured(), st.integers(0, 2**32 - 1), st.integers(0, 200))
def test_sums_hold_each_streamline_once_in_any_order_and_division(lot, seed, cut):
    sums = summed(lot)
    assigned = (lot.roi_a > 0) & (lot.roi_b > 0)
    np.testing.assert_array_equal(sums.counts, sums.counts.T)
    assert sums.counts[UPPER].sum() == sums.n_assigned == assigned.sum()
    assert sums.n_streamlines == len(lot.roi_a)
    assert sums.n_unassigned_ends == (lot.roi_a == 0).sum() + (lot.roi_b == 0).sum()
    order = np.random.default_rng(seed).permutation(len(lot.roi_a))
    permuted = Measures(*(values[order] for values in lot))
    turned = Measures(lot.roi_b, lot.roi_a, lot.length, lot.fa)
    parts = [Measures(*(values[part] for values in lot)) for part in (slice(cut), slice(cut, None))]
    for other in (summed(permuted), summed(turned), summed(*parts)):
        assert results(other) == results(sums)
    total = np.nansum((sums.mean_length * sums.counts)[UPPER])
    np.testing.assert_allclose(total, lot.length[assigned].sum(dtype=float), rtol=1e-6)
    total = np.nansum((sums.mean_fa * sums.counts)[UPPER])
    np.testing.assert_allclose(total, lot.fa[assigned].sum(dtype=float), rtol=1e-6)


def test_weights_of_one_are_counts():
    rng = np.random.default_rng(1)
    ends = rng.integers(0, N + 1, (2, 5000)).astype(np.uint16)
    lot = Measures(*ends, np.ones(5000, np.float32), np.ones(5000, np.float32))
    np.testing.assert_array_equal(summed_weights(lot, np.ones(5000)), summed(lot).counts)


# --- gaps ----------------------------------------------------------------------------------------


def connectome_of(counts, volumes, **more):
    empty = np.full((N, N), np.nan)
    streamlines = counts.sum(axis=1).astype(np.int64)
    total = int(counts[UPPER].sum())
    masked = without_absent(counts, volumes)
    curve = np.array([[total, 0.5]])
    return Connectome(
        masked, None, empty, empty, volumes, streamlines, curve, 0.5, total, total, 0, **more
    )


def test_absent_rois_are_not_available_and_their_neighbours_are_named():
    names = atlas.roi_names()
    counts = np.ones((N, N))
    volumes = np.full(N, 100.0)
    lost = names.index("7Networks_LH_Vis_1")
    volumes[lost] = 0
    counts[lost] = counts[:, lost] = 0
    empty = names.index("7Networks_RH_Vis_1")
    counts[empty] = counts[:, empty] = 0
    notes, details = describe_gaps(counts, volumes)
    assert details["ROIsWithoutStreamlines"] == ["7Networks_RH_Vis_1"]
    (absent,) = details["AbsentROIs"]
    assert absent["Name"] == names[lost]
    assert all("LH" in name or "lh" in name for name in absent["Neighbours"])
    assert "7Networks_LH_Vis_2" in absent["Neighbours"]
    n = len(absent["Neighbours"])
    # every pair within N - 2 ROIs has one streamline, and so has every ROI with itself
    others = N - 2
    expected = n * (n + 1) // 2 + n * (others - n)
    assert absent["StreamlinesOfNeighbours"] == details["StreamlinesNearAbsentROIs"] == expected
    share = expected / (others * (others + 1) / 2)
    assert details["ShareOfStreamlinesNearAbsentROIs"] == pytest.approx(share, abs=1e-6)
    assert names[lost] in notes[0] and str(expected) in notes[0]
    assert "7Networks_RH_Vis_1" in notes[1]

    connectome = connectome_of(counts, volumes, absent_rois=(names[lost],))
    assert np.isnan(connectome.counts[lost]).all() and np.isnan(connectome.counts[:, lost]).all()
    assert np.isfinite(np.delete(np.delete(connectome.counts, lost, 0), lost, 1)).all()
    density = connectome.counts_per_volume()
    np.testing.assert_array_equal(np.isnan(density), np.isnan(connectome.counts))
    present = volumes > 0
    expected = volume_normalised(counts[np.ix_(present, present)], volumes[present])
    np.testing.assert_array_equal(density[np.ix_(present, present)], expected)


def test_neighbours_are_those_within_the_radius_in_the_packaged_atlas():
    image = nib.load(atlas.volume_path("MNI152NLin2009cAsym", 2))
    labels = np.asarray(image.dataobj)
    volumes = np.ones(N)
    for roi in (0, 449):
        volumes[roi] = 0
    _, details = describe_gaps(np.zeros((N, N)), volumes)
    everywhere = np.argwhere(labels)
    rois = labels[tuple(everywhere.T)].astype(int)
    for absent in details["AbsentROIs"]:
        index = atlas.roi_names().index(absent["Name"]) + 1
        here = everywhere[rois == index] * 2.0
        near = set()
        for roi, voxel in zip(rois, everywhere * 2.0, strict=True):
            if roi not in near and np.abs(voxel - here[0]).max() < 60:
                near |= {roi} if np.linalg.norm(here - voxel, axis=1).min() <= 4 else set()
        names = [atlas.roi_names()[roi - 1] for roi in sorted(near - {index})]
        assert absent["Neighbours"] == names and names


def test_without_gaps_there_is_nothing_to_say():
    notes, details = describe_gaps(np.ones((N, N)), np.ones(N))
    assert notes == [] and details == {"ROIsWithoutStreamlines": [], "AbsentROIs": []}


# --- images --------------------------------------------------------------------------------------


def test_volumes_are_in_mm3():
    rng = np.random.default_rng(2)
    labels = Image(blobs(rng, (10, 10, 10)), grid(rng, "oblique"))
    volumes = volumes_of_rois(labels)
    voxel = np.prod(np.linalg.norm(labels.affine[:3, :3], axis=0))
    assert volumes.sum() == pytest.approx((labels.values > 0).sum() * voxel)
    assert volumes[16] == pytest.approx((labels.values == 17).sum() * voxel)


def test_label_images_that_cannot_be_right_are_refused(tmp_path):
    path = tmp_path / "labels.nii"
    with pytest.raises(InputMissingError, match=r"labels\.nii"):
        read_labels(path)
    for values, reason in (
        (np.zeros((3, 3, 3)), "holds no ROI"),
        (np.full((3, 3, 3), np.nan), "holds no ROI"),
        (np.full((3, 3, 3), 451.0), "0 to 450"),
        (np.full((3, 3, 3), -1.0), "0 to 450"),
        (np.full((3, 3, 3), 1.5), "0 to 450"),
        (np.ones((3, 3, 3, 2)), "not one volume"),
    ):
        saved(path, Image(values.astype(np.float32), np.eye(4)))
        with pytest.raises(BadDataError, match=reason):
            read_labels(path)


def test_fa_that_is_not_finite_is_taken_for_outside(tmp_path):
    values = np.array([[[0.5, np.nan, np.inf]]], np.float32)
    fa = read_fa(saved(tmp_path / "fa.nii", Image(values, np.eye(4))))
    np.testing.assert_array_equal(fa.values, [[[0.5, 0, 0]]])


def test_a_connectome_travels_between_nodes(tmp_path):
    counts = np.arange(N * N, dtype=float).reshape(N, N)
    connectome = connectome_of(
        counts + counts.T,
        np.arange(N) * 1.0,
        absent_rois=("a",),
        rule={"Reliability": 0.9, "Streamlines": None},
        seconds={"Total": 1.5},
        notes=("A sentence.",),
        details={"SamplingReliabilityCurve": [[10, None], [20, 0.5]]},
    )
    found = load_record(Connectome, save_record(connectome, tmp_path / "connectome.npz"))
    for name, value in vars(connectome).items():
        np.testing.assert_equal(getattr(found, name), value)
