"""The command ``bsym-demo``, short of the run itself."""

import errno
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bsym_bids import atlas, cli
from bsym_bids.demo import dataset
from bsym_bids.demo.cli import main, print_comparison, print_connectomes
from bsym_bids.errors import UsageError
from bsym_bids.inputs import plan_inputs


@pytest.fixture
def stubs(monkeypatch):
    """Make no dataset and run nothing, but keep what was asked for."""
    given = {"code": 0, "calls": []}

    def make(out, seed, scans):
        given["seed"], given["scans"] = seed, scans
        (out / "sourcedata" / "simulation").mkdir(parents=True)

    def run(argv):
        given["calls"].append(argv)
        return given["code"]

    monkeypatch.setattr(dataset, "make_demo_dataset", make)
    monkeypatch.setattr(cli, "main", run)
    return given


def test_runs_the_participant_level_on_what_it_made(tmp_path, stubs, capsys):
    out = tmp_path / "new"
    assert main([str(out)]) == 0
    folders = [str(out / name) for name in ("bids", "outputs")]
    assert stubs["calls"] == [
        [*folders, "participant", "--model", "bsym-sim-v1", "--preset", "fast"],
        [*folders, "group", "--reports-only"],
    ]
    assert stubs["seed"] == 0 and stubs["scans"] == ("01", "04")
    assert str(out / "outputs" / "README.md") in capsys.readouterr().out


def test_options_are_passed_on(tmp_path, stubs):
    assert main([str(tmp_path), "--seed", "7", "--nprocs", "3"]) == 0
    assert stubs["seed"] == 7
    assert stubs["calls"][0][-2:] == ["--nprocs", "3"]


def test_failed_run_gives_its_exit_code_and_no_results(tmp_path, stubs, capsys):
    stubs["code"] = 74
    assert main([str(tmp_path)]) == 74
    assert "Where to look" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--seed", "-1"], "--seed is -1"), (["--nprocs", "0"], "--nprocs is 0")],
)
def test_numbers_that_cannot_be_meant(tmp_path, stubs, capsys, arguments, words):
    assert main([str(tmp_path / "new"), *arguments]) == 64
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["x", "--seed", "one"], ["x", "--unknown"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 64
    assert "usage: bsym-demo" in capsys.readouterr().err


def test_folder_with_something_in_it_is_left_alone(tmp_path, stubs, capsys):
    (tmp_path / "kept").touch()
    assert main([str(tmp_path)]) == 73
    assert main([str(tmp_path / "kept")]) == 73
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_folder_that_cannot_be_made_is_explained(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file" / "new")]) == 73
    err = capsys.readouterr().err
    assert "Traceback" not in err and "Not a directory" in err


def test_full_disk_is_explained(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset, "make_demo_dataset", full)
    assert main([str(tmp_path)]) == 74
    assert "No space left on device" in capsys.readouterr().err


def test_interrupt(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "make_demo_dataset", interrupted)
    assert main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "bsym-demo: interrupted\n"


@pytest.mark.parametrize(("flip", "expected"), [(1, "r = 1.000"), (-1, "r = -1.000")])
def test_comparison_is_with_what_was_put_in(tmp_path, capsys, flip, expected):
    draw = np.random.default_rng(0).standard_normal((atlas.N_ROIS, atlas.N_ROIS))
    truth = np.corrcoef(draw)
    folder = tmp_path / "bids" / "sourcedata" / "simulation"
    folder.mkdir(parents=True)
    np.savez(folder / "sub-01_task-rest_truth.npz", connectivity=truth)
    found = flip * truth
    found[3] = found[:, 3] = np.nan  # an ROI that was not measured is left out
    names = list(atlas.roi_names())
    outputs = tmp_path / "outputs" / "sub-01" / "func"
    outputs.mkdir(parents=True)
    path = outputs / "sub-01_task-rest_space-x_stat-pearsoncorrelation_relmat.tsv"
    frame = pd.DataFrame(found, index=pd.Index(names, name="Node"), columns=names)
    frame.to_csv(path, sep="\t", na_rep="n/a")
    print_comparison(Path(tmp_path))
    assert f"sub-01_task-rest: {expected}" in capsys.readouterr().out


def bundles():
    """Return true weights: 30 bundles in a ring of ROIs."""
    truth = np.zeros((atlas.N_ROIS, atlas.N_ROIS))
    for roi in range(0, 300, 10):
        other = (roi + 10) % 300
        truth[roi, other] = truth[other, roi] = 1.0 + roi
    return truth


def write_connectome(out, edges, name="sub-04_space-ACPC", truth="sub-04", measure="count"):
    """Write true weights of a scan, and edges as the participant level writes them."""
    folder = out / "bids" / "sourcedata" / "simulation"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{truth}_dwi_truth.npz", weights=bundles())
    names = list(atlas.roi_names())
    path = out / "outputs" / "dwi" / f"{name}_atlas-x_scale-450_desc-{measure}_relmat.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(edges, index=pd.Index(names, name="Node"), columns=names)
    frame.to_csv(path, sep="\t", na_rep="n/a")


def without_anything(counts):
    counts[:] = 0
    counts[0, 10] = counts[10, 0] = 5


def upside_down(counts):
    counts[counts > 0] = 1e6 / counts[counts > 0]


def with_an_absent_roi(counts):
    counts[5] = counts[:, 5] = np.nan  # one without a bundle


@pytest.mark.parametrize(
    ("change", "recovered"),
    [
        (lambda counts: None, True),
        (with_an_absent_roi, True),
        (upside_down, False),  # found, but the thin ones as the thick ones
        (without_anything, False),
    ],
)
def test_connectomes_have_to_be_those_that_were_put_in(tmp_path, capsys, change, recovered):
    counts = 10 * bundles()
    change(counts)
    write_connectome(tmp_path, counts)
    assert print_connectomes(tmp_path) is recovered
    out = capsys.readouterr().out
    assert "sub-04: AUC = " in out
    assert ("NOT RECOVERED" in out) is not recovered


def test_connectome_that_is_not_recovered_fails_the_demo(tmp_path, stubs, monkeypatch, capsys):
    out = tmp_path / "new"

    def run(argv):
        write_connectome(out, 10 * bundles(), "sub-01_ses-1", "sub-01_ses-1")
        found = 10 * bundles()
        upside_down(found)
        write_connectome(out, found)
        return 0

    monkeypatch.setattr(cli, "main", run)
    assert main([str(out)]) == 1
    printed = capsys.readouterr().out
    assert "sub-01_ses-1: AUC = 1.000, r = 1.000 (streamline counts)\n" in printed
    assert "sub-04: AUC = 1.000, r = -1.000 (streamline counts): NOT RECOVERED" in printed


def test_capacity_counts_where_the_engine_gives_it(tmp_path, capsys):
    counts = 10 * bundles()
    upside_down(counts)
    write_connectome(tmp_path, counts)
    write_connectome(tmp_path, bundles(), measure="sift2")
    assert print_connectomes(tmp_path)
    printed = capsys.readouterr().out
    assert "r = 1.000 (fibre bundle capacity)" in printed and "counts" not in printed


def test_scans_are_found_with_their_anatomy(tmp_path, monkeypatch):
    small = partial(dataset.make_phantom, n_bundles=2, t1w_mm=4)
    monkeypatch.setattr(dataset, "make_phantom", small)
    monkeypatch.setattr(dataset, "_SCAN_MM", 8.0)
    monkeypatch.setattr(dataset, "_SHELLS", ((0.0, 1), (1000.0, 6)))
    options = {"participants": ("01",), "resolution_mm": 12, "n_volumes": 60}
    dataset.make_demo_dataset(tmp_path / "bids", scans=dataset.WITH_SCAN, **options)
    first, last = plan_inputs(tmp_path / "bids").participants
    assert (len(first.bold_runs), len(last.bold_runs)) == (1, 0)
    assert not first.problems and not last.problems
    (raw,), (preprocessed,) = first.dwi_scans, last.dwi_scans
    assert raw.entities == {"sub": "01", "ses": "1"} and not raw.is_preprocessed
    assert raw.anatomy.source == "fmriprep" and raw.anatomy.template_to_t1w
    assert preprocessed.entities == {"sub": "04"} and preprocessed.same_space
    people = pd.read_csv(tmp_path / "bids" / "participants.tsv", sep="\t")
    assert people["participant_id"].tolist() == ["sub-01", "sub-04"]
    truth = {path.name for path in (tmp_path / "bids" / "sourcedata").rglob("*dwi_truth.npz")}
    assert truth == {"sub-01_ses-1_dwi_truth.npz", "sub-04_dwi_truth.npz"}


def test_without_being_asked_no_scan_is_made(tmp_path):
    options = {"resolution_mm": 12, "n_volumes": 60}
    dataset.make_demo_dataset(tmp_path, participants=("01",), **options)
    assert not list(tmp_path.rglob("*dwi*"))
    with pytest.raises(UsageError, match="participant 02 has no diffusion scan"):
        dataset.make_demo_dataset(tmp_path / "other", participants=(), scans=("02",), **options)


def test_same_seed_makes_the_same_data(tmp_path):
    options = {"participants": ("01",), "resolution_mm": 12, "n_volumes": 60}
    made = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        dataset.make_demo_dataset(tmp_path / name, seed=seed, **options)
        made[name] = {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name / "derivatives").rglob("*.*")
            if path.is_file() and path.suffix != ".npz"
        }
    assert made["a"] == made["b"]
    assert set(made["a"]) == set(made["c"])
    differing = {path.name for path in made["a"] if made["a"][path] != made["c"][path]}
    assert any("preproc_bold.nii.gz" in name for name in differing)
    assert any("confounds_timeseries.tsv" in name for name in differing)
