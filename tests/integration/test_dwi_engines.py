"""Both engines on a small phantom: the bundles that are there, the same bits again, MRtrix3's own.

The phantom is coarse and the response that of the voxels of highest anisotropy, for speed; what
takes MRtrix3 half a minute on a real brain takes a second here.
"""

import os
import pickle
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import small_phantom as sp
from scipy import ndimage

from bsym_bids.dwi.engines import dipy as dipy_engine
from bsym_bids.dwi.engines import mrtrix3, resolve_engine
from bsym_bids.dwi.gradients import read_gradients, voxel_directions
from bsym_bids.dwi.presets import load_preset
from bsym_bids.dwi.records import FittedModel
from bsym_bids.dwi.tracks import read_tck, read_tck_header
from bsym_bids.errors import DEVICE_ERRORS, BadDataError, InputMissingError, UsageError

ENGINES = [pytest.param("dipy"), pytest.param("mrtrix3", marks=pytest.mark.mrtrix3)]
SMALL = {"zoom": 3.0, "shape": (27, 27, 17), "shells": ((1000, 30),), "tilt": 0.3}
#: For what takes long and says nothing of where streamlines run.
COARSE = {"zoom": 4.0, "shape": (20, 20, 13)}
KINDS = {
    "positive": SMALL,
    "negative": {**SMALL, "flip": True},
    "long voxels": {**SMALL, "flip": True, "zoom": (2.2, 2.2, 4.0), "shape": (36, 36, 13)},
    "no tissue": {**SMALL, "act": False},
    "six directions": {**SMALL, "shells": ((1000, 6),), "tilt": 0.0},
    "coarse": {**SMALL, **COARSE},
    "coarse, no tissue": {**SMALL, **COARSE, "act": False},
    "two shells": {**SMALL, **COARSE, "shells": ((1000, 12), (2000, 24))},
}


def preset(response="fa", **changes):
    base = replace(load_preset("fast"), voxel_size=None)
    return replace(base, mrtrix3=replace(base.mrtrix3, response=response), **changes)


class Here:
    """Takes the place of processes, which take seconds to start."""

    def map(self, function, *arguments):
        return map(function, *arguments)


@contextmanager
def here(count):
    yield Here()


@dataclass
class Lab:
    """Makes each phantom, and fits each engine to it, once."""

    folder: Path

    def __post_init__(self):
        self.phantom, self.model = cache(self._phantom), cache(self._model)

    def _phantom(self, kind):
        return sp.make(self.folder / kind, **KINDS[kind])

    def _model(self, name, kind, **changes):
        phantom = self.phantom(kind)
        work = self.folder / f"{kind} {name} {changes}"
        return fit(name, phantom, preset(**changes), work)


def fit(name, phantom, which, work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dipy_engine, "workers", here)
        return resolve_engine(name).fit(phantom.dwi, phantom.placed, which, work, threads=2, seed=1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("engines"))


def track(model, out, n=600, seed=5, which=None):
    which = which or preset()
    assert resolve_engine(model.engine).track(model, which, n, seed, out) == out
    assert read_tck_header(out).count == n
    pieces = list(read_tck(out))
    lines = [points for piece in pieces for points in np.split(piece.points, piece.offsets[1:-1])]
    assert len(lines) == n
    return lines


def lengths_of(lines):
    return np.array([np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines])


def by_bundle(lines):
    """Return the lengths of the streamlines of each true pair of regions."""
    pairs, lengths = np.sort(sp.end_labels(lines), axis=1), lengths_of(lines)
    return {pair: lengths[(pairs == pair).all(axis=1)] for pair in sp.TRUE_PAIRS}


# --- the bundles that are there ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["positive", "negative", "long voxels"])
@pytest.mark.parametrize("name", ENGINES)
def test_streamlines_join_what_is_joined(lab, tmp_path, name, kind):
    model = lab.model(name, kind)
    lines = track(model, tmp_path / "a.tck")
    whole, true = sp.share_of_true(lines)
    assert whole > 0.98 and true > 0.97
    found = by_bundle(lines)
    # 52 mm along x and y; the bend is a quarter of a circle of 40 mm, which ends lengthen
    assert all(len(lengths) > 0.04 * len(lines) for lengths in found.values())
    assert all(51 < found[pair].mean() < 58 for pair in ((1, 2), (3, 4)))
    assert 61 < found[5, 6].mean() < 70
    assert model.engine == name and model.details["AnatomicallyConstrained"]
    assert model.details["Directions"] == 30 and model.details["SphericalHarmonicsOrder"] == 6
    zooms = np.broadcast_to(KINDS[kind]["zoom"], 3)
    np.testing.assert_allclose(model.details["FittedVoxelSize"], zooms, rtol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_is_left_but_what_the_model_names(lab, name):
    for kind in ("positive", "no tissue"):
        model = lab.model(name, kind)
        work, own = Path(model.fa).parent, set(model.files.values()) | {model.fa}
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in own)
        assert {str(path) for path in work.iterdir()} == own - {lab.phantom(kind).placed.tissue}


@pytest.mark.parametrize("determinant", ["positive", "negative"])
def test_dipy_needs_the_bvec_rule_of_fsl(lab, tmp_path, monkeypatch, determinant):
    """Whatever the sign, vectors taken as they are in the file, or all negated, fail for one."""
    which = preset(min_length=1.0)
    phantom = sp.make(
        tmp_path / "phantom", **{**KINDS["coarse, no tissue"], "flip": determinant == "negative"}
    )
    right = track(fit("dipy", phantom, which, tmp_path / "r"), tmp_path / "r.tck", which=which)
    forgotten = {"as they are": [1, 1, 1], "all negated": [-1, 1, 1]}
    lines = {}
    for label, signs in forgotten.items():
        with monkeypatch.context() as patch:
            patch.setattr(dipy_engine, "voxel_directions", lambda g, _, s=signs: g.bvecs * s)
            model = fit("dipy", phantom, which, tmp_path / label)
        lines[label] = track(model, tmp_path / f"{label}.tck", which=which)
    wrong = "as they are" if determinant == "positive" else "all negated"
    other = next(label for label in forgotten if label != wrong)
    assert all(np.array_equal(a, b) for a, b in zip(right, lines[other], strict=True))
    assert lengths_of(lines[wrong]).mean() < 0.6 * lengths_of(right).mean()
    assert sp.share_of_true(lines[wrong])[0] < 0.1 < 0.4 < sp.share_of_true(right)[0]


@pytest.mark.parametrize("name", ENGINES)
def test_without_tissue_anisotropy_is_the_bound(lab, tmp_path, name):
    model = lab.model(name, "no tissue")
    lines = track(model, tmp_path / "a.tck")
    whole, true = sp.share_of_true(lines)
    assert whole > 0.35 and true > 0.97
    assert not model.details["AnatomicallyConstrained"] and "tissue" not in model.files
    fa = nib.load(model.fa)
    seeds = np.asarray(nib.load(model.files["seeds"]).dataobj) > 0
    assert np.asarray(fa.dataobj)[seeds].min() >= np.float32(preset().fa_seed)
    # a step beyond the bound at the most
    points = nib.affines.apply_affine(np.linalg.inv(fa.affine), np.concatenate(lines))
    there = ndimage.map_coordinates(np.asarray(fa.dataobj), points.T, order=1)
    assert (there > 0.5 * preset().fa_stop).mean() > 0.97


@pytest.mark.parametrize("name", ENGINES)
def test_streamlines_end_at_grey_matter(lab, tmp_path, name):
    lines = track(lab.model(name, "positive"), tmp_path / "a.tck")
    ends = np.array([line[index] for line in lines for index in (0, -1)])
    # MRtrix3 ends them inside; DIPY drops the point that was, and interpolates its coarser maps
    depth = abs(ends[:, :2]).max(axis=1) - sp.END
    assert np.percentile(depth, 2) > (-2.5 if name == "dipy" else -0.5) and depth.max() < 2.5
    inner = np.concatenate([line[2:-2] for line in lines])
    assert (sp.tissues(inner)[:, 2] > 0).mean() > 0.95
    assert (abs(inner[:, :2]).max(axis=1) < sp.END + 1).all()


@pytest.mark.parametrize("name", ENGINES)
def test_seeds_are_at_the_border_that_mrtrix_finds(lab, tmp_path, name):
    tissue = lab.phantom("positive").placed.tissue
    model = lab.model(name, "positive")
    seeds = np.asarray(nib.load(model.files["seeds"]).dataobj) > 0
    shares = np.asarray(nib.load(tissue).dataobj)
    # all of the phantom's border: white matter in the layer of voxels before |x| or |y| = END
    white = shares[..., 2] > 0.5
    border = white & ndimage.binary_dilation(shares[..., 0] > 0.5)
    near = ndimage.binary_dilation(border, np.ones((3, 3, 3)))
    assert seeds[~near].sum() == 0 and (border & seeds).sum() > 0.9 * border.sum()


@pytest.mark.mrtrix3
def test_dipys_border_is_mrtrixs(lab):
    masks = [
        np.asarray(nib.load(lab.model(name, "positive").files["seeds"]).dataobj) > 0
        for name in ("dipy", "mrtrix3")
    ]
    for one, other in (masks, masks[::-1]):
        near = ndimage.binary_dilation(other, np.ones((3, 3, 3)))
        assert (one & near).sum() > 0.97 * one.sum()


@pytest.mark.parametrize("name", ENGINES)
def test_lengths_stay_within_their_bounds(lab, tmp_path, name):
    model = lab.model(name, "positive")
    for low, high in (
        ((20, 53.4), (20, 56.9), (61.2, 250)) if name == "dipy" else ((20, 56.9), (61.2, 250))
    ):
        which = preset(min_length=low, max_length=high)
        lengths = lengths_of(track(model, tmp_path / "a.tck", 60, which=which))
        assert low - 1e-3 <= lengths.min() and lengths.max() <= high + 1e-3


@pytest.mark.parametrize("name", ENGINES)
def test_six_directions_do_with_a_note(lab, tmp_path, name):
    model = lab.model(name, "six directions")
    assert model.details["SphericalHarmonicsOrder"] == 2 and model.details["Directions"] == 6
    assert any("crossing fibres cannot be told apart" in note for note in model.notes)
    found = by_bundle(track(model, tmp_path / "a.tck", 600))
    assert len(found[5, 6]) > 5  # the bundle that doesn't cross


def test_dipy_takes_the_highest_shell_and_says_so(lab, tmp_path):
    model = lab.model("dipy", "two shells")
    assert model.details["ModelledShells"] == [2000] and model.details["Directions"] == 24
    assert any("b=1000 are left out" in note for note in model.notes)
    assert sp.share_of_true(track(model, tmp_path / "a.tck", 200))[1] > 0.95


@pytest.mark.parametrize("name", ENGINES)
def test_a_coarser_grid_finds_the_same_bundles(lab, tmp_path, name):
    model = lab.model(name, "positive", voxel_size=4.0)
    np.testing.assert_allclose(model.details["FittedVoxelSize"], 4, rtol=1e-5)
    whole, true = sp.share_of_true(track(model, tmp_path / "a.tck"))
    assert whole > 0.95 and true > 0.95
    # the map that connectomes are measured with keeps its grid
    zooms = nib.load(model.fa).header.get_zooms()
    np.testing.assert_allclose(zooms, 3, rtol=1e-5)


# --- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_equal_seeds_give_equal_bits(lab, tmp_path, name):
    model = lab.model(name, "positive")
    one, again, other = (
        np.concatenate(track(model, tmp_path / f"{i}.tck", 300, seed))
        for i, seed in enumerate((7, 7, 8))
    )
    assert one.tobytes() == again.tobytes()
    assert len(np.intersect1d(one[:, 0], other[:, 0])) < 0.01 * len(one)
    if name == "dipy":
        assert (tmp_path / "0.tck").read_bytes() == (tmp_path / "1.tck").read_bytes()


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
@pytest.mark.parametrize("name", ENGINES)
def test_every_seed_will_do_and_no_streamline_comes_twice(lab, tmp_path, name, seed):
    lines = track(lab.model(name, "positive"), tmp_path / "a.tck", 300, seed)
    assert len(np.unique([line[0] for line in lines], axis=0)) == 300
    assert sp.share_of_true(lines)[1] > 0.95


def content(path):
    """Return the numbers of a file, without the history of commands in MRtrix3's headers."""
    data = Path(path).read_bytes()
    if path.endswith(".mif"):
        start = int(data.split(b"\nfile: . ")[1].split(b"\n")[0])
        return data[start:]
    return data if path.endswith(".npy") else np.asarray(nib.load(path).dataobj).tobytes()


@pytest.mark.parametrize("name", ENGINES)
def test_the_number_of_threads_makes_no_difference(lab, tmp_path, name):
    phantom = lab.phantom("coarse")
    models = [
        resolve_engine(name).fit(
            phantom.dwi, phantom.placed, preset(), tmp_path / str(threads), threads=threads, seed=1
        )
        for threads in (1, 2)
    ]
    assert models[0].files.keys() == models[1].files.keys()
    assert models[0].details == models[1].details and models[0].notes == models[1].notes
    for one, other in zip(*(m.files.values() for m in models), strict=True):
        assert content(one) == content(other), one
    assert content(models[0].fa) == content(models[1].fa)


PRINT = """
import sys
from bsym_bids.dwi.engines import resolve_engine
from bsym_bids.dwi.presets import load_preset
print(repr(resolve_engine(sys.argv[1])), repr(load_preset("full")))
"""


@pytest.mark.parametrize("name", ENGINES)
def test_engines_can_be_sent_to_processes_and_told_apart(name):
    engine = resolve_engine(name)
    assert pickle.loads(pickle.dumps(engine)) == engine
    text = [
        subprocess.run(
            [sys.executable, "-c", PRINT, name],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert text[0] == text[1] == f"{engine!r} {load_preset('full')!r}\n"
    assert "0x" not in text[0] and engine.version in text[0] and "unknown" not in text[0]


# --- what cannot be done -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_too_few_streamlines_are_an_error(lab, tmp_path, name):
    model = lab.model(name, "positive")
    which = preset(min_length=140.0, seeds_per_streamline=5)
    with pytest.raises(BadDataError, match="0 of 100 streamlines in 500 seeds") as raised:
        resolve_engine(name).track(model, which, 100, 1, tmp_path / "a.tck")
    assert "min_length" in raised.value.hint


@pytest.mark.parametrize("name", ENGINES)
def test_no_place_to_begin_is_an_error(lab, tmp_path, name):
    phantom = lab.phantom("no tissue")
    with pytest.raises(BadDataError, match=r"no voxel.* anisotropy of 0\.999 or more"):
        fit(name, phantom, preset(fa_seed=0.999), tmp_path)
    phantom = lab.phantom("positive")
    tissue = nib.load(phantom.placed.tissue)
    fluid = np.zeros(tissue.shape, np.float32)
    fluid[..., 3] = np.asarray(tissue.dataobj).sum(axis=-1)
    nib.save(nib.Nifti1Image(fluid, tissue.affine), tmp_path / "5tt.nii")
    placed = replace(phantom.placed, tissue=str(tmp_path / "5tt.nii"))
    with pytest.raises(BadDataError, match=r"5tt\.nii: no border of grey and white matter"):
        fit(name, replace(phantom, placed=placed), preset(), tmp_path)


@pytest.mark.parametrize("name", ENGINES)
def test_too_few_directions_are_an_error(tmp_path, name):
    few = sp.make(tmp_path, zoom=6.0, shape=(14, 14, 8), shells=((1000, 5),))
    with pytest.raises(BadDataError, match="no shell has 6 distinct directions"):
        fit(name, few, preset(), tmp_path / "work")


@pytest.mark.parametrize("name", ENGINES)
def test_a_series_of_nothing_but_b0_signal_is_an_error(tmp_path, name):
    """Each weighted volume as bright as b0: no response can be had of it."""
    flat = sp.make(tmp_path, zoom=6.0, shape=(14, 14, 8), shells=((1000, 15),))
    image = nib.load(flat.dwi.image)
    data = np.full(image.shape, 100, np.float32)
    nib.save(nib.Nifti1Image(data, image.affine), flat.dwi.image)
    with pytest.raises(BadDataError, match=r"dwi\.nii\.gz: .*response"):
        fit(name, flat, preset(), tmp_path / "work")


def test_engines_are_found_by_name(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="unknown tractography engine 'fsl'"):
        resolve_engine("fsl")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not mrtrix3.is_installed()
    assert resolve_engine("auto").name == resolve_engine("dipy").name == "dipy"
    with pytest.raises(InputMissingError, match=r"5tt2gmwmi.*tckgen.* not found on the PATH"):
        resolve_engine("mrtrix3")


@pytest.mark.mrtrix3
def test_auto_is_mrtrix_where_it_is_installed():
    assert resolve_engine("auto").name == "mrtrix3"


def test_a_full_disk_is_known_for_one_by_what_dipy_writes(tmp_path):
    """A partial write, as on a disk that fills up, has to name its reason."""
    values = np.arange(1 << 19, dtype=np.float64).reshape(8, -1)
    dipy_engine._save_array(tmp_path / "whole.npy", values.T)
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), values.T)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            dipy_engine._save_array(tmp_path / "part.npy", values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno in DEVICE_ERRORS


# --- DIPY against DIPY ---------------------------------------------------------------------------


def table_of(phantom):
    from dipy.core.gradients import gradient_table

    image = nib.load(phantom.dwi.image)
    files = Path(phantom.dwi.bval), Path(phantom.dwi.bvec)
    gradients, _ = read_gradients(*files, image.shape[3])
    directions = voxel_directions(gradients, image.affine)
    return image, gradient_table(gradients.bvals, bvecs=directions)


def test_fa_is_that_of_dipys_tensor(lab):
    from dipy.reconst.dti import TensorModel

    phantom = lab.phantom("positive")
    image, table = table_of(phantom)
    mask = np.asarray(nib.load(phantom.dwi.mask).dataobj) > 0
    expected = TensorModel(table).fit(image.get_fdata(), mask=mask).fa
    found = nib.load(lab.model("dipy", "positive").fa)
    assert_same_where_both_are(found, expected[mask], image, mask, 1e-3)


def assert_same_where_both_are(found, expected, image, mask, tolerance, other=0.0):
    """Compare an image on its own part of a grid with values in the mask on all of it."""
    places = nib.affines.apply_affine(image.affine, np.argwhere(mask))
    where = nib.affines.apply_affine(np.linalg.inv(found.affine), places)
    np.testing.assert_allclose(where, where.round(), atol=1e-3)
    values = np.asarray(found.dataobj)
    apart = abs(values[tuple(where.round().astype(int).T)] - expected)
    assert (apart > tolerance).mean() <= other, apart.max()
    inside = np.zeros(values.shape[:3], bool)
    inside[tuple(where.round().astype(int).T)] = True
    assert not values[~inside].any()


def test_harmonics_are_those_of_one_call(lab, tmp_path, monkeypatch):
    """Parts, processes and float32 change nothing that counts."""
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    monkeypatch.setattr(dipy_engine, "MOST_AMPLITUDES", 0)
    phantom = lab.phantom("positive")
    model = fit("dipy", phantom, preset(), tmp_path)
    found = np.load(model.files["orientations"])
    assert found.shape[3] == 28
    image, table = table_of(phantom)
    mask = np.asarray(nib.load(phantom.dwi.mask).dataobj) > 0
    values = np.asarray(model.details["ResponseDiffusivities"])
    assert values[0] > 1.4e-3 and values[1] == values[2] < 0.4e-3
    signals = image.get_fdata()[mask]
    s0 = response_signal(lab.model("dipy", "positive"), image)
    csd = ConstrainedSphericalDeconvModel(table, (values, s0), sh_order_max=6)
    expected = csd.fit(signals).shm_coeff
    volume = nib.Nifti1Image(found.astype(np.float32), np.load(model.files["grid"]))
    # the response in the details is rounded, and a step of CSD may then go another way
    tolerance = 0.02 * abs(expected).max()
    assert_same_where_both_are(volume, expected, image, mask, tolerance, other=1e-4)
    lines = track(model, tmp_path / "a.tck")
    assert sp.share_of_true(lines)[1] > 0.97
    laid_out = track(lab.model("dipy", "positive"), tmp_path / "b.tck")
    shares = [[len(v) / 600 for v in by_bundle(each).values()] for each in (lines, laid_out)]
    np.testing.assert_allclose(*shares, atol=0.1)


def response_signal(model, image):
    """Return the mean b0 signal of the voxels of highest anisotropy in the middle."""
    fa = nib.load(model.fa)
    values = np.asarray(fa.dataobj)
    inner = ndimage.binary_erosion(values > 0, iterations=3)
    best = np.argsort(np.where(inner, values, 0), axis=None)[-dipy_engine.RESPONSE_VOXELS :]
    places = np.stack(np.unravel_index(best, values.shape), 1)
    world = nib.affines.apply_affine(fa.affine, places)
    index = nib.affines.apply_affine(np.linalg.inv(image.affine), world).round().astype(int)
    return image.get_fdata()[(*index.T, slice(0, 4))].mean()


def test_parts_are_fitted_as_the_whole(lab):
    phantom = lab.phantom("two shells")
    image, table = table_of(phantom)
    signals = image.get_fdata(dtype=np.float32).reshape(-1, image.shape[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dipy_engine, "_CHUNK", 500)
        found = dipy_engine._in_chunks(dipy_engine._fa_of, signals, Here(), table)
    np.testing.assert_allclose(found, dipy_engine._fa_of(signals, table), atol=1e-5)


def test_what_dipy_multiplies_places_with_fits_32_bits():
    seeds = np.random.default_rng(0).integers(1, 2**31, 2000).tolist()
    factors = [dipy_engine._random_seed(seed) for seed in (1, 2**31 - 1, *seeds)]
    assert min(factors) >= 1e6  # neighbours a thousandth of a voxel apart get other numbers
    assert max(factors) * 10 * 256 < 2**32
    assert len(set(factors)) > 1900


# --- MRtrix3 against its own commands ------------------------------------------------------------


def mrtrix(*command):
    subprocess.run([*map(str, command), "-quiet", "-force", "-nthreads", "1"], check=True)


def gradients_of(phantom):
    return "-fslgrad", phantom.dwi.bvec, phantom.dwi.bval


@pytest.mark.mrtrix3
@pytest.mark.parametrize("name", ENGINES)
def test_fa_is_that_of_mrtrix(lab, tmp_path, name):
    phantom = lab.phantom("negative")
    tensor, out = tmp_path / "tensor.nii", tmp_path / "fa.nii"
    mrtrix(
        "dwi2tensor", phantom.dwi.image, tensor, "-mask", phantom.dwi.mask, *gradients_of(phantom)
    )
    mrtrix("tensor2metric", tensor, "-fa", out, "-mask", phantom.dwi.mask)
    expected = nib.load(out)
    mask = np.asarray(nib.load(phantom.dwi.mask).dataobj) > 0
    tolerance = 0.03 if name == "dipy" else 1e-5
    found = nib.load(lab.model(name, "negative").fa)
    assert_same_where_both_are(found, expected.get_fdata()[mask], expected, mask, tolerance)


@pytest.mark.mrtrix3
def test_fods_are_those_of_the_bare_commands(lab, tmp_path):
    """Cutting the series to the brain and taking its volumes apart changes nothing."""
    phantom, model = lab.phantom("positive"), lab.model("mrtrix3", "positive")
    response, fod, own = (tmp_path / name for name in ("r.txt", "fod.nii", "own.nii"))
    series = (phantom.dwi.image, "-mask", phantom.dwi.mask, *gradients_of(phantom))
    mrtrix("dwi2response", "fa", *series[:1], response, *series[1:], "-lmax", 6)
    mrtrix("dwi2fod", "csd", *series[:1], response, fod, *series[1:], "-lmax", 6)
    mrtrix("mrconvert", model.files["fod"], own)
    np.testing.assert_allclose(
        model.details["Responses"]["wm"], np.loadtxt(response, ndmin=2), rtol=1e-4
    )
    assert model.details["ResponseAlgorithm"] == "fa" and model.details["Tissues"] == ["wm"]
    expected = nib.load(fod)
    mask = np.asarray(nib.load(phantom.dwi.mask).dataobj) > 0
    values = expected.get_fdata()[mask]
    assert_same_where_both_are(nib.load(own), values, expected, mask, 1e-3 * abs(values).max())


@pytest.mark.mrtrix3
def test_several_shells_are_deconvolved_together(lab, tmp_path):
    model = lab.model("mrtrix3", "two shells", response="auto")
    assert model.details["ModelledShells"] == [1000, 2000]
    assert model.details["DeconvolutionAlgorithm"] == "msmt_csd"
    assert model.details["ResponseAlgorithm"] == "dhollander"
    assert model.details["Tissues"] == ["wm", "gm", "csf"]
    white, grey, fluid = (np.array(r) for r in model.details["Responses"].values())
    assert len(white) == len(grey) == len(fluid) == 3
    decay = {k: v[2, 0] / v[0, 0] for k, v in (("wm", white), ("gm", grey), ("csf", fluid))}
    assert decay["csf"] < decay["gm"] < decay["wm"]  # as the phantom has them
    lines = track(model, tmp_path / "a.tck", 300)
    assert sp.share_of_true(lines)[1] > 0.93


@pytest.mark.mrtrix3
def test_one_shell_of_several_can_be_asked_for(lab):
    which = preset()
    which = replace(which, mrtrix3=replace(which.mrtrix3, fod="csd"))
    model = fit("mrtrix3", lab.phantom("two shells"), which, lab.folder / "one of two")
    assert model.details["ModelledShells"] == [2000] and model.details["Tissues"] == ["wm"]
    assert model.details["DeconvolutionAlgorithm"] == "csd"


@pytest.mark.mrtrix3
def test_tournier_is_the_response_of_one_shell(tmp_path):
    tiny = sp.make(tmp_path, zoom=6.0, shape=(14, 14, 8), shells=((1000, 12),))
    model = fit("mrtrix3", tiny, preset("auto"), tmp_path / "work")
    assert model.details["ResponseAlgorithm"] == "tournier"
    (response,) = np.array(model.details["Responses"]["wm"])
    assert response[0] > 0 > response[1]


@pytest.mark.mrtrix3
@pytest.mark.parametrize("kind", ["coarse", "coarse, no tissue", "two shells"])
def test_weights_are_those_of_tcksift2_times_mu(lab, tmp_path, kind):
    model = lab.model("mrtrix3", kind, response="auto" if kind == "two shells" else "fa")
    track(model, tmp_path / "a.tck", 500)
    found = resolve_engine("mrtrix3").streamline_weights(model, tmp_path / "a.tck", tmp_path)
    more = ["-act", model.files["tissue"]] if kind != "coarse, no tissue" else []
    more += ["-fd_scale_gm"] if kind == "coarse" else []  # one response takes grey for white
    mu, weights = tmp_path / "mu.txt", tmp_path / "weights.txt"
    mrtrix("tcksift2", tmp_path / "a.tck", model.files["fod"], weights, "-out_mu", mu, *more)
    expected = np.loadtxt(weights) * np.loadtxt(mu)
    assert found.dtype == np.float32 and found.shape == (500,) and found.min() >= 0
    # in 3.0.3, and on no thread of its own, it leaves all weights at 1
    assert found.std() > 0.1 * found.mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tck", "mu.txt", "weights.txt"}


def test_weights_are_none_where_there_are_none(lab, tmp_path):
    model = FittedModel("mrtrix3", "3", {}, "fa.nii", details={"Sift2": False})
    assert mrtrix3.Mrtrix3Engine("3").streamline_weights(model, tmp_path, tmp_path) is None
    assert dipy_engine.DipyEngine("1").streamline_weights(model, tmp_path, tmp_path) is None
    assert not dipy_engine.DipyEngine("1").has_weights


def test_the_last_digits_of_a_response_are_dropped(tmp_path):
    """They differ between runs of ``dwi2response``; the comments name its shells."""
    text = "# Shells: 0,1000\n# command_history: amp2response\n"
    responses = [
        f"{text}2048.22235592355 0 0\n2048.22235592355 -807.46184773544{digit} 1e-14\n"
        for digit in (0, 1)
    ]
    for name, response in zip("ab", responses, strict=True):
        (tmp_path / name).write_text(response)
        mrtrix3._round_response(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text().startswith(text)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "a")[1], [2048.22236, -807.461848, 1e-14])
