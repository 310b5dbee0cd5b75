"""Sampling with processes that are killed, disks that are full, engines that fail."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from bsym_bids.dwi import batches
from bsym_bids.dwi.connectome import Connectome
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy
from bsym_bids.dwi.sampling import SamplingRule, sample_connectome, sampling_reliability
from bsym_bids.dwi.tracks import Streamlines, read_tck, read_tck_header, write_tck
from bsym_bids.errors import BadDataError, BsymError, OutputIOError, UsageError

N = 450
SHAPE = (45, 30, 15)  # each ROI has 45 voxels, in one block
AFFINE = np.array([[0, -2.0, 0, 30], [2, 0, 0, -40], [0, 0, 2.5, 5], [0, 0, 0, 1]])
POINTS = 12


@dataclass(frozen=True)
class Preset:
    batch_size: int = 500
    curl: float = 0.4
    sift2: bool = True

    def parameters(self, engine):
        assert engine == "walker"
        return asdict(self)


@dataclass(frozen=True)
class Walker:
    """An engine of which nothing is needed but numbers: curved lines between ROIs.

    Each batch takes as long as its seed says, so that they do not finish in order.
    """

    pause: float = 0.0
    has_weights: bool = True
    fails_at: int | None = None
    lacks: int = 0
    name: str = "walker"
    version: str = "1"

    def track(self, model, preset, n_streamlines, seed, out):
        assert out.parent.is_dir() and seed > 0
        if self.fails_at is not None and int(out.stem) == self.fails_at:
            raise BadDataError(f"{out}: no way from here", hint="take another path")
        rng = np.random.default_rng(seed)
        time.sleep(self.pause * (1 + seed % 3))
        rates = np.exp(np.random.default_rng(0).normal(0, 3, N * N))
        pairs = np.searchsorted(np.cumsum(rates), rng.uniform(0, rates.sum(), n_streamlines))
        ends = [rng.uniform(size=(n_streamlines, 3)) for _ in range(2)]
        ends = [place(roi, where) for roi, where in zip(np.divmod(pairs, N), ends, strict=True)]
        ends[1][rng.uniform(size=n_streamlines) < 0.1] += 100  # where no ROI is
        along = np.linspace(0, 1, POINTS)[:, None]
        lines = ends[0][:, None] * (1 - along) + ends[1][:, None] * along
        lines[:, 1:-1] += rng.normal(size=(n_streamlines, POINTS - 2, 3), scale=preset.curl)
        lines = lines[self.lacks :]
        offsets = np.arange(0, POINTS * len(lines) + 1, POINTS)
        fields = {"step_size": "2", "timestamp": str(time.time()), "source": str(out)}
        write_tck(out, Streamlines(lines.reshape(-1, 3).astype(np.float32), offsets), fields)
        return out

    def streamline_weights(self, model, tracks, work):
        assert work.is_dir()
        time.sleep(self.pause)
        points = np.concatenate([piece.points for piece in read_tck(tracks)])
        return np.abs(points[::POINTS, 0])


def place(roi, where):
    """Return a point in a ROI's block of 9 x 3 x 1.67 voxels, in mm; some lie outside of all."""
    block = np.stack(np.unravel_index(roi, (5, 10, 9)), axis=-1)
    voxels = (block + where * 1.1) * np.array(SHAPE) / (5, 10, 9) - 0.5
    return voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene"))


def make_scene(folder):
    where = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    block = (where * (5, 10, 9) // SHAPE).astype(int)
    labels = np.ravel_multi_index(tuple(np.moveaxis(block, -1, 0)), (5, 10, 9)) + 1
    labels[labels == 77] = 0
    fa = np.random.default_rng(1).uniform(size=SHAPE).astype(np.float32)
    for name, values in (("labels", labels.astype(np.int16)), ("fa", fa)):
        if not (folder / f"{name}.nii").exists():
            nib.save(nib.Nifti1Image(values, AFFINE), folder / f"{name}.nii")
    model = FittedModel("walker", "1", {"odf": str(folder / "fa.nii")}, str(folder / "fa.nii"))
    return model, PlacedAnatomy(str(folder / "labels.nii"))


RULE = SamplingRule(0.93, 100_000)


def sample(scene, work, engine=None, *, rule=RULE, processes=1, seed=3, preset=None, **more):
    engine, preset = engine or Walker(), preset or Preset()
    return sample_connectome(
        engine, *scene, preset, work, rule=rule, seed=seed, processes=processes, **more
    )


@pytest.fixture(scope="module")
def expected(scene, tmp_path_factory):
    """What comes out without interruption."""
    folder = tmp_path_factory.mktemp("expected")
    connectome = sample(scene, folder, processes=2, tractogram=folder / "all.tck")
    return connectome, (folder / "all.tck").read_bytes()


def assert_same(found, expected):
    for name, value in vars(expected).items():
        if name == "seconds":
            continue
        np.testing.assert_equal(getattr(found, name), value, err_msg=name)
        if isinstance(value, np.ndarray):
            assert getattr(found, name).tobytes() == value.tobytes(), name


def test_it_stops_when_the_rule_is_met(scene, expected):
    connectome, tracks = expected
    values = connectome.curve[:, 1]
    assert len(values) > 4 and values[-1] >= 0.93 and (values[:-1] < 0.93).all()
    assert connectome.n_streamlines == connectome.curve[-1, 0] == 500 * len(values)
    present = connectome.roi_volumes > 0
    counts = np.nan_to_num(connectome.counts)
    assert connectome.sampling_reliability == values[-1] == sampling_reliability(counts, present)
    assert connectome.n_assigned == np.triu(counts).sum() < connectome.n_streamlines
    assert connectome.absent_rois == ("7Networks_LH_Vis_27",) and (~present).sum() == 1
    assert np.isnan(connectome.counts[76]).all() and np.isnan(connectome.sift2[:, 76]).all()
    assert connectome.rule == {
        "Reliability": 0.93,
        "MaxStreamlines": 100_000,
        "Streamlines": None,
        "StoppedBy": "reliability",
    }
    assert "not" in connectome.details["SamplingReliabilityDescription"]
    assert connectome.details["SamplingReliabilityCurve"][-1] == [*connectome.curve[-1]]
    assert set(connectome.seconds) >= {"Sampling", "TrackingOfAllProcesses", "Weights", "Total"}
    repeat = 500 * len(values)
    assert any(str(repeat) in note for note in connectome.notes)
    # the file holds no time, and no path of the machine
    assert b"timestamp" not in tracks and b"source" not in tracks and b"step_size: 2" in tracks


def test_what_is_predicted_is_what_repeats_give(scene, tmp_path, expected):
    n = expected[0].n_streamlines
    rule = SamplingRule(None, 1, n)
    other = sample(scene, tmp_path, Walker(has_weights=False), rule=rule, seed=4)
    pairs = np.triu_indices(N, 1)
    one, other = expected[0].counts[pairs], other.counts[pairs]
    measured = np.corrcoef(one[np.isfinite(one)], other[np.isfinite(one)])[0, 1]
    assert measured == pytest.approx(expected[0].sampling_reliability, abs=0.035)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_number_of_processes_makes_no_difference(scene, tmp_path, expected, processes):
    engine = Walker(pause=0.01)
    found = sample(
        scene, tmp_path / "work", engine, processes=processes, tractogram=tmp_path / "all.tck"
    )
    assert_same(found, expected[0])
    assert (tmp_path / "all.tck").read_bytes() == expected[1]
    assert list((tmp_path / "work").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tck", "work"]


def test_a_fixed_number_and_the_limit(scene, tmp_path):
    engine = Walker(has_weights=False)
    fixed = sample(scene, tmp_path, engine, rule=SamplingRule(0.1, 100, 1700))
    assert fixed.n_streamlines == 1700 and len(fixed.curve) == 4 and fixed.sift2 is None
    assert fixed.rule["StoppedBy"] == "fixed number of streamlines"
    limited = sample(scene, tmp_path, engine, rule=SamplingRule(0.99, 1700))
    np.testing.assert_array_equal(limited.counts, fixed.counts)
    assert limited.rule["StoppedBy"] == "maximum number of streamlines"
    (note,) = [note for note in limited.notes if "limit of 1700" in note]
    assert "0.99" in note and "would be needed" in note
    # the first batches are those of the longer run
    shorter = sample(scene, tmp_path, engine, rule=SamplingRule(None, 100, 1000))
    np.testing.assert_array_equal(shorter.curve, fixed.curve[:2])


def test_weights_are_had_where_engine_and_preset_have_them(scene, tmp_path, monkeypatch, expected):
    monkeypatch.delattr(Walker, "streamline_weights")
    for change in ({"engine": Walker(has_weights=False)}, {"preset": Preset(sift2=False)}):
        found = sample(scene, tmp_path, **change)
        assert found.sift2 is None
        np.testing.assert_array_equal(found.counts, expected[0].counts)


def test_other_seeds_and_settings_give_other_streamlines(scene, tmp_path, expected):
    for change in ({"seed": 4}, {"preset": Preset(curl=0.5)}, {"preset": Preset(batch_size=499)}):
        found = sample(scene, tmp_path, Walker(has_weights=False), **change)
        assert not np.array_equal(found.meanlength, expected[0].meanlength, equal_nan=True)


def test_the_tractogram_has_every_streamline_and_its_weight(scene, tmp_path, expected):
    from trx.trx_file_memmap import load

    sample(scene, tmp_path / "work", tractogram=tmp_path / "sub" / "all.trx")
    found = load(str(tmp_path / "sub" / "all.trx"))
    (tmp_path / "all.tck").write_bytes(expected[1])
    points = np.concatenate([piece.points for piece in read_tck(tmp_path / "all.tck")])
    np.testing.assert_array_equal(found.streamlines._data, points)
    assert len(found.streamlines) == read_tck_header(tmp_path / "all.tck").count
    weights = found.data_per_streamline["sift2"][:, 0]
    np.testing.assert_array_equal(weights, np.abs(points[::POINTS, 0]))
    with pytest.raises(UsageError, match=r"\.vtk"):
        sample(scene, tmp_path, tractogram=tmp_path / "all.vtk")


# --- killed --------------------------------------------------------------------------------------


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_dwi_killed as t
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    tracks = folder / "all.tck"
    scene = t.make_scene(Path(sys.argv[3]))
    from bsym_bids.interfaces.files import save_record
    engine = t.Walker(pause=0.05)
    found = t.sample(scene, folder / "work", engine, processes=2, tractogram=tracks)
    save_record(found, folder / "found.npz")
"""


def start(folder, scene):
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT)
    here, data = Path(__file__).parent, Path(scene[0].fa).parent
    return subprocess.Popen([sys.executable, script, here, folder, data], start_new_session=True)


def family(process):
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_batches(folder, count, process):
    deadline = time.monotonic() + 30
    while len(list((folder / "work" / "sampling").glob("0*.npz"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_run_goes_on_and_gives_the_same(scene, tmp_path, expected):
    rng = np.random.default_rng()
    folder = tmp_path / "run"
    done = 0
    for _ in range(2):
        process = start(folder, scene)
        wait_for_batches(folder, done + 2, process)
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = len(list((folder / "work" / "sampling").glob("0*.npz")))
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("work/sampling/0*.npz")}
    process = start(folder, scene)
    wait_for_batches(folder, done + 1, process)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("work/sampling/0*.npz")}
    assert before.items() <= after.items()  # none was tracked again
    assert process.wait(60) == 0
    from bsym_bids.interfaces.files import load_record

    assert_same(load_record(Connectome, folder / "found.npz"), expected[0])
    assert (folder / "all.tck").read_bytes() == expected[1]
    assert list((folder / "work").iterdir()) == []


def test_processes_die_with_their_parent(scene, tmp_path):
    process = start(tmp_path / "run", scene)
    wait_for_batches(tmp_path / "run", 2, process)
    children = family(process)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_an_interrupted_run_leaves_nothing_running(scene, tmp_path):
    process = start(tmp_path / "run", scene)
    wait_for_batches(tmp_path / "run", 2, process)
    children = family(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(10) != 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


class Stop(Exception):
    """Ends a run at a chosen moment."""


def stopped_after(n_batches, monkeypatch):
    """Let the next run end when some batches are taken."""
    original = batches.BatchStore.keep_tracks

    def keep_tracks(self, index, batch):
        if index == n_batches:
            raise Stop
        original(self, index, batch)

    monkeypatch.setattr(batches.BatchStore, "keep_tracks", keep_tracks)


def test_batches_of_other_inputs_are_not_used(scene, tmp_path, monkeypatch, expected):
    model, placed = scene
    image = nib.load(placed.labels)
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 5] = 0
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "labels.nii")
    other = PlacedAnatomy(str(tmp_path / "labels.nii"))
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(Stop):
            sample((model, other), tmp_path / "work", tractogram=tmp_path / "a.tck")
    assert len(list((tmp_path / "work" / "sampling").glob("0*.npz"))) >= 2
    found = sample(scene, tmp_path / "work", tractogram=tmp_path / "a.tck")
    assert_same(found, expected[0])


def test_a_looser_rule_uses_what_a_stricter_one_left(scene, tmp_path, monkeypatch):
    rules = SamplingRule(None, 1, 5000), SamplingRule(None, 1, 1500)
    plain = sample(scene, tmp_path / "plain", rule=rules[1], tractogram=tmp_path / "plain.tck")
    with monkeypatch.context() as patch:
        stopped_after(6, patch)
        with pytest.raises(Stop):
            sample(scene, tmp_path / "work", rule=rules[0])
        # no process may be started now
        patch.setattr(batches, "_workers", None)
        found = sample(scene, tmp_path / "work", rule=rules[1], tractogram=tmp_path / "a.tck")
    assert_same(found, plain)
    assert (tmp_path / "a.tck").read_bytes() == (tmp_path / "plain.tck").read_bytes()


@pytest.mark.parametrize("damage", ["000001.npz", "tracks.tck", "000003.tck"])
def test_what_is_damaged_is_tracked_again(scene, tmp_path, monkeypatch, expected, damage):
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        with pytest.raises(Stop):
            sample(scene, tmp_path / "work")
    file = tmp_path / "work" / "sampling" / damage
    if damage == "000003.tck":
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(file.read_bytes()[:80])
    found = sample(scene, tmp_path / "work", tractogram=tmp_path / "a.tck")
    assert_same(found, expected[0])
    assert (tmp_path / "a.tck").read_bytes() == expected[1]


# --- failing -------------------------------------------------------------------------------------


def test_a_failing_batch_raises_its_own_error(scene, tmp_path):
    with pytest.raises(BadDataError, match="no way from here") as raised:
        sample(scene, tmp_path, Walker(fails_at=2))
    assert raised.value.hint == "take another path"
    with pytest.raises(BadDataError, match="walker tracked 498 of 500 streamlines"):
        sample(scene, tmp_path, Walker(lacks=2))
    # a failure beyond the last batch that is needed is none
    rule = SamplingRule(None, 1, 1000)
    assert sample(scene, tmp_path, Walker(fails_at=2), rule=rule).n_streamlines == 1000


def test_labels_elsewhere_are_found_out_after_two_batches(scene, tmp_path):
    image = nib.load(scene[1].labels)
    away = image.affine.copy()
    away[0, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), away), tmp_path / "labels.nii")
    with pytest.raises(BadDataError, match="none of 1000 streamlines has an ROI at both ends"):
        sample((scene[0], PlacedAnatomy(str(tmp_path / "labels.nii"))), tmp_path)


def test_weights_that_do_not_fit_are_refused(scene, tmp_path, monkeypatch):
    for weights in (np.ones(10, np.float32), np.full(1000, np.nan, np.float32)):
        monkeypatch.setattr(Walker, "streamline_weights", lambda *_, w=weights: w)
        with pytest.raises(BadDataError, match="weights for 1000 streamlines"):
            sample(scene, tmp_path, rule=SamplingRule(None, 1, 1000))


def test_a_killed_tracking_process_is_explained(scene, tmp_path, monkeypatch):
    wait = batches._wait

    def kill_first(batch):
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        wait(batch)

    monkeypatch.setattr(batches, "_wait", kill_first)
    with pytest.raises(BsymError, match="tracking process was killed") as raised:
        sample(scene, tmp_path, Walker(pause=0.5))
    assert "memory" in str(raised.value)


def test_a_disk_that_gets_short_stops_tracking_before_it_is_full(
    scene, tmp_path, monkeypatch, expected
):
    usage = batches.shutil.disk_usage
    batch = 500 * (POINTS + 1) * 12
    asked = []

    def little(folder):
        asked.append(folder)
        # enough for the first guess, then for one batch and a copy, at last for nothing
        free = 10_000_000 if len(asked) < 3 else 2.5 * batch if len(asked) < 12 else batch
        return usage(folder)._replace(free=int(free))

    with monkeypatch.context() as patch:
        patch.setattr(batches.shutil, "disk_usage", little)
        with pytest.raises(OutputIOError, match="free disk space") as raised:
            sample(scene, tmp_path / "work")
    assert "finished batches are kept" in raised.value.hint
    assert len(list((tmp_path / "work" / "sampling").glob("0*.npz"))) >= 3
    found = sample(scene, tmp_path / "work", tractogram=tmp_path / "a.tck")
    assert_same(found, expected[0])


def test_a_full_disk_is_explained_and_survived(scene, tmp_path, monkeypatch, expected):
    copy = shutil_copy = batches.append_tck

    def full(path, source, n):
        if source.stem == "000002":
            with path.open("r+b") as file:
                file.seek(-12, os.SEEK_END)
                file.write(source.read_bytes()[-3000:-1000])  # a part of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shutil_copy(path, source, n)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "append_tck", full)
        with pytest.raises(OutputIOError, match="No space left") as raised:
            sample(scene, tmp_path / "work")
    assert "run the same command again" in raised.value.hint
    assert batches.append_tck is copy
    found = sample(scene, tmp_path / "work", tractogram=tmp_path / "a.tck")
    assert_same(found, expected[0])
    assert (tmp_path / "a.tck").read_bytes() == expected[1]


def test_the_version_of_an_engine_decides(scene, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(Stop):
            sample(scene, tmp_path)
    patched = replace(Walker(), version="2")
    monkeypatch.setattr(batches, "_workers", None)
    with pytest.raises(TypeError):  # a process is needed: nothing of the other version is used
        sample(scene, tmp_path, patched)
