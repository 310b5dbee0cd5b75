"""``bsym-model check`` on what the participant level wrote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import call_here

PROGRAM = Path(sys.executable).with_name("bsym-model")


def check(*arguments):
    return subprocess.run(
        [PROGRAM, "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "out")


def test_the_check_finds_what_the_participant_level_found(out, small_model):
    done = check(out, *small_model, "--threads", 1)
    assert done.returncode == 0, done.stderr
    path = out / "desc-smallreconstruction_qc.tsv"
    assert str(path) in done.stdout
    assert "not checked: the model has no structural branch" in done.stdout
    found = table(path).set_index("run")
    for networks in out.glob("sub-*/**/*_desc-reconstructionnetworks_qc.tsv"):
        (recorded,) = table(networks).query("network == 'all'").to_dict("records")
        run = networks.name.partition("_atlas-")[0]
        (label,) = (label for label in found.index if label.startswith(run))
        for score in ("r2", "permuted_rho", "linear_r2", "linear_permuted_mae"):
            # the tables that are read have seven digits
            assert found[score][label] == pytest.approx(recorded[score], rel=1e-3, abs=1e-3)
        sidecar = json.loads(networks.with_suffix(".json").read_text())
        assert found["model_domain"][label] == sidecar["ModelDomain"]["Verdict"] == "out of domain"
    assert json.loads(path.with_suffix(".json").read_text())["ModelDomain"]["Verdict"] in (
        done.stdout
    )


def test_the_participant_level_shows_the_verdict(finished):
    out, result = finished
    assert "does the model know these data? 2 out of domain" in result.err
    (summary,) = out.glob("logs/*_summary.tsv")
    assert table(summary)["model_domain"].tolist() == ["out of domain"] * 2


def test_random_weights_are_not_in_domain_and_printing_writes_nothing(out):
    done = check(out, "--model", "untrained", "--participant-label", "01", "--print-only")
    assert done.returncode == 0, done.stderr
    assert "untrained: 1 of 2 participant(s)" in done.stdout
    assert "All: not trained" in done.stdout
    assert not list(out.glob("desc-*"))


def test_problems_have_their_exit_codes(out, small_model, tmp_path):
    (broken,) = out.glob("sub-01/**/*_desc-denoised_timeseries.tsv")
    broken.write_text("a\tb\n1\t2\n")
    done = check(out, *small_model)
    assert done.returncode == 1
    assert f"not checked: {broken}" in done.stdout
    assert "1 run(s) or scan(s) could not be checked" in done.stderr
    for arguments, code in (
        ((tmp_path / "nowhere", *small_model), 66),
        ((tmp_path, *small_model), 66),
        ((out, *small_model, "--participant-label", "99"), 18),
        ((out, *small_model, "--n-participants", "-1"), 64),
        ((out, "--model", "nothing"), 64),
    ):
        done = call_here("check", *arguments, program="bsym-model")
        assert done.code == code, done.err
        assert "Traceback" not in done.err
