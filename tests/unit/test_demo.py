"""The command ``bsym-demo``, short of the run itself."""

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bsym_bids import atlas, cli
from bsym_bids.demo import dataset
from bsym_bids.demo.cli import main, print_comparison


@pytest.fixture
def stubs(monkeypatch):
    """Make no dataset and run nothing, but keep what was asked for."""
    given = {"code": 0}

    def make(out, seed):
        given["seed"] = seed
        (out / "sourcedata" / "simulation").mkdir(parents=True)

    def run(argv):
        given["call"] = argv
        return given["code"]

    monkeypatch.setattr(dataset, "make_demo_dataset", make)
    monkeypatch.setattr(cli, "main", run)
    return given


def test_runs_the_participant_level_on_what_it_made(tmp_path, stubs, capsys):
    out = tmp_path / "new"
    assert main([str(out)]) == 0
    assert stubs["call"] == [
        *(str(out / name) for name in ("bids", "outputs")),
        *("participant", "--model", "bsym-sim-v1"),
    ]
    assert stubs["seed"] == 0
    assert str(out / "outputs" / "README.md") in capsys.readouterr().out


def test_options_are_passed_on(tmp_path, stubs):
    assert main([str(tmp_path), "--seed", "7", "--nprocs", "3"]) == 0
    assert stubs["seed"] == 7
    assert stubs["call"][-2:] == ["--nprocs", "3"]


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
