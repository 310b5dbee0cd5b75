"""The commands ``bsym-model simulate`` and ``bsym-model pretrain``, as a user has them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import call_here
from small_network import STRUCTURAL_SIZES, write_release

from bsym_bids.model.cli import main
from bsym_bids.model.weights import load_model, resolve_release
from bsym_bids.training import start

PROGRAM = Path(sys.executable).with_name("bsym-model")
#: Few steps of everything, all options that a test does not care about.
STEPS = ("--steps", 4, "--structural-steps", 4, "--gate-steps", 4, "--validate-every", 2)
FAST = (*STEPS, "--batch-size", 2, "--validation-share", 0.25)


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def refused(*arguments: object, code: int) -> str:
    """Return what is said of a training that doesn't start."""
    done = call_here("pretrain", *arguments, program="bsym-model")
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return done.err


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "people"
    command("simulate", out, "--participants", 4, "--seed", 2)
    return out


@pytest.fixture(scope="session")
def trained(people, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    command(
        "pretrain",
        people,
        out,
        *FAST,
        *("--init", "bsym-sim-v1"),
        *("--name", "made-here", "--gate-label", "age", "--half", "--notice", "Of simulations."),
    )
    return out


def test_the_result_is_a_release_that_loads(trained):
    release = resolve_release("made-here", trained / "release")
    model = load_model(release)
    assert set(release.files) == {
        *("spatial", "temporal", "context", "perceiver", "structural", "gate")
    }
    assert release.trained and release.warning.endswith("Of simulations.")
    assert release.warning.startswith("bsym-sim-v1 was trained on simulated people alone")
    assert model.perceiver.rois == 450
    command("verify", "made-here", "--model-dir", trained / "release")


def test_the_card_says_what_was_done_and_measured(trained):
    card = yaml.safe_load((trained / "release" / "model.yaml").read_text())
    assert card["training"]["participants"] == 3
    assert card["training"]["held_out_participants"] == 1
    assert card["training"]["settings"]["steps"] == 4
    found = card["quality"]["reconstruction"]
    # What it goes on from predicts hidden ROIs nearly as well as the linear baseline.
    assert found["linear_r2"] > found["r2"] > found["linear_r2"] - 0.1
    assert found["permuted_r2"] < found["r2"] - 0.2
    assert {"rho", "permuted_rho", "group_rho"} <= set(card["quality"]["edges"])


def test_without_another_start_it_is_from_connectivity(people, tmp_path, monkeypatch):
    """With few steps of fitting: how good the start is has tests of its own."""
    monkeypatch.setattr(start, "learn_smoother", partial(start.learn_smoother, steps=3))
    monkeypatch.setattr(start, "_EDGE_STEPS", 3)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["pretrain", str(people), str(tmp_path), *map(str, FAST)]))
    assert not ended.value.code
    card = yaml.safe_load((tmp_path / "release" / "model.yaml").read_text())
    assert card["training"]["settings"]["start"] == "connectivity"
    assert set(card["files"]) >= {"spatial", "temporal", "context", "perceiver", "structural"}


def test_log_and_figure_are_there(trained):
    header, *rows = (trained / "log.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["phase", "step", "objective"]
    assert {row.split("\t")[0] for row in rows} == {"functional", "structural", "gate"}
    assert (trained / "losses.svg").read_text().startswith("<?xml")


def test_a_killed_training_ends_with_the_same_weights(people, small_model, tmp_path):
    _, name, _, folder = small_model
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = (*FAST, "--steps", 40, "--validate-every", 10, "--init", name, "--model-dir", folder)
    command("pretrain", people, whole, *options)
    arguments = [PROGRAM, "pretrain", people, broken, *options]
    process = subprocess.Popen(list(map(str, arguments)), stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 300
    while not (broken / "checkpoint.pt").exists() and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "release").exists()
    command("pretrain", people, broken, *options)
    for path in sorted((whole / "release").glob("*.pth")):
        expected = torch.load(path, weights_only=True)
        resumed = torch.load(broken / "release" / path.name, weights_only=True)
        for key, value in expected.items():
            assert torch.equal(value, resumed[key]), (path.name, key)


def test_a_release_can_be_continued(people, small_model, tmp_path):
    """Domain adaptation, of a network without structural branch, on the series alone."""
    _, name, _, folder = small_model
    out = tmp_path / "out"
    command("pretrain", people, out, *FAST, "--init", name, "--model-dir", folder)
    before = torch.load(folder / "spatial.pth", weights_only=True)
    after = torch.load(out / "release" / "spatial.pth", weights_only=True)
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in after.items()
    }
    card = yaml.safe_load((out / "release" / "model.yaml").read_text())
    assert card["training"]["start"]["release"] == "small"
    assert set(card["files"]) == {"spatial", "temporal", "context", "perceiver"}


def test_connectomes_alone_are_enough(people, tmp_path):
    shutil.copytree(people, tmp_path / "people", ignore=shutil.ignore_patterns("func"))
    (tmp_path / "model").mkdir()
    write_release(tmp_path / "model", STRUCTURAL_SIZES)
    start = ("--init", "small", "--model-dir", tmp_path / "model")
    command("pretrain", tmp_path / "people", tmp_path / "out", *FAST, *start)
    assert [p.name for p in (tmp_path / "out" / "release").glob("*.pth")] == ["structural.pth"]


def test_other_settings_do_not_go_on_from_a_checkpoint(people, small_model, tmp_path):
    _, name, _, folder = small_model
    options = ("pretrain", people, tmp_path, *FAST, "--init", name, "--model-dir", folder)
    command(*options)
    done = command(*options, "--batch-size", 3, code=65)
    assert "made with other settings or data" in done.stderr and "batch_size" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--steps", "-1"), 64, "out of range: steps"),
        (("--roi-share", "0.5", "0.1"), 64, "out of range: roi_share"),
        (("--init", "nothing"), 64, "there is no model 'nothing'"),
        (("--model-dir", "."), 64, "--model-dir without --init"),
    ],
)
def test_what_cannot_be_meant_is_refused(people, tmp_path, arguments, code, said):
    assert said in refused(people, tmp_path / "out", *FAST, *arguments, code=code)


def test_a_label_that_nobody_has_is_refused(people, tmp_path):
    arguments = (people, tmp_path / "out", *FAST, "--gate-label", "height")
    assert "has no column 'height'" in refused(*arguments, code=65)


def test_a_dataset_without_outputs_is_refused(tmp_path):
    said = refused(tmp_path, tmp_path / "out", code=66)
    assert "no denoised time series and no connectomes" in said
    assert "absent" in refused(tmp_path / "absent", tmp_path / "out", code=66)
