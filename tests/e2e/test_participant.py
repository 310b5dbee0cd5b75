"""The participant level as its users run it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import N_VOLUMES, participant_level, run_command

from bsym_bids import atlas
from bsym_bids.outputs.names import products, sidecar_of
from tests.bids_validation import validate
from tests.dataset_checks import (
    assert_columns_are_described,
    assert_sources_resolve,
    assert_strictly_valid,
)

#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
FAST = ("--window-step", "200")


def data_files(out: Path) -> list[Path]:
    return sorted(p for p in out.glob("sub-*/**/*") if p.suffix in (".tsv", ".npz"))


def read(out: Path, pattern: str, **options: object) -> pd.DataFrame:
    (path,) = out.glob(f"sub-*/**/{pattern}")
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False, **options)


def test_every_product_of_every_run_is_there(finished):
    out, result = finished
    assert result.code == 0, result.err
    files = data_files(out)
    assert len(files) == 2 * len(SURE)
    assert len(list(out.glob("sub-*/**/*_boldref.nii.gz"))) == 1  # grayordinates have none
    for path in files:
        sidecar = json.loads(sidecar_of(path).read_text())
        assert {"Description", "Sources", "Fingerprint", "SoftwareVersions"} <= set(sidecar)
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]


def test_every_column_is_described(finished):
    assert_columns_are_described(finished[0])


def test_every_source_is_there(finished, dataset):
    assert_sources_resolve(finished[0])


def test_tables_have_all_rois_in_atlas_order(finished):
    out, _ = finished
    names = list(atlas.roi_names())
    series = read(out, "sub-01*_stat-mean_timeseries.tsv")
    assert list(series.columns) == names and len(series) == N_VOLUMES
    for pattern in ("*pearsoncorrelation_relmat.tsv", "*similarity_relmat.tsv"):
        matrix = read(out, "sub-01" + pattern, index_col="Node")
        assert list(matrix.index) == list(matrix.columns) == names
        values = matrix.to_numpy()
        np.testing.assert_allclose(values, values.T, atol=1e-6)
        assert np.nanmax(np.abs(values)) <= 1 + 1e-6
    attention = read(out, "sub-01*_desc-attention_relmat.tsv", index_col="Node")
    np.testing.assert_allclose(np.nansum(attention, axis=1), 1, atol=1e-3)
    embedding = read(out, "sub-01*_desc-functional_embedding.tsv")
    assert embedding.shape == (450, 2 + 8) and list(embedding["name"]) == names


@pytest.mark.parametrize(
    ("model", "trained", "said"),
    [("untrained", False, "has random weights"), ("bsym-sim-v1", True, "simulated people alone")],
)
def test_what_a_model_is_stands_everywhere(dataset, tmp_path, model, trained, said):
    """Also the runs of networks of the published size."""
    out = tmp_path / "out"
    one = ("--participant-label", "03", *FAST)
    result = participant_level(dataset, out, "--model", model, *one)
    assert result.code == 0, result.err
    assert said in result.err
    assert read(out, "*_desc-functional_embedding.tsv").shape == (450, 2 + 128)
    sidecars = [p for p in out.glob("sub-*/**/*.json") if "Model" in json.loads(p.read_text())]
    assert len(sidecars) == sum(product.group == "embedding" for product in products().values())
    for path in sidecars:
        document = json.loads(path.read_text())
        assert document["Model"]["Trained"] is trained
        assert said in document["Warning"]
    (summary,) = out.glob("logs/*_summary.tsv")
    assert ("in domain" if trained else "not trained") in summary.read_text()


def test_known_connectivity_comes_back(dataset, finished):
    from bsym_bids.demo.cli import connectivity_files
    from bsym_bids.demo.dataset import compare_with_truth

    correlations = dict(compare_with_truth(dataset, connectivity_files(finished[0])))
    assert len(correlations) == 2
    assert min(correlations.values()) > 0.5


def test_dataset_is_valid_bids(finished):
    assert [issue for issue in validate(finished[0]) if issue.severity == "error"] == []


def test_names_are_valid_in_the_extended_schema(finished, tmp_path):
    assert_strictly_valid(finished[0], tmp_path)


def test_second_run_changes_nothing(dataset, finished, small_model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data_files(out)}
    result = participant_level(dataset, out, *small_model)
    assert result.code == 0, result.err
    assert "unchanged" in result.err
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in data_files(out)}


def test_other_settings_replace_everything_and_mix_nothing(
    dataset, finished, small_model, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    settings = ("--participant-label", "01", "--nuisance", "none", "--parcel-method", "pca", *FAST)
    result = participant_level(dataset, out, *small_model, *settings)
    assert result.code == 0, result.err
    files = [p for p in out.glob("sub-01/**/*") if p.suffix in (".tsv", ".npz")]
    assert len(files) == len(SURE)
    assert not list(out.glob("sub-01/**/*_stat-mean_*"))
    for path in files:
        used = json.loads(sidecar_of(path).read_text())["TimeSeriesSettings"]
        assert (used["ParcelMethod"], used["NuisanceStrategy"]["name"]) == ("pca", "none")


def test_another_scaling_keeps_the_time_series(dataset, finished, small_model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (series,) = out.glob("sub-01/**/*_stat-mean_timeseries.tsv")
    (embedding,) = out.glob("sub-01/**/*_desc-functional_embedding.tsv")
    before = series.stat().st_mtime_ns, embedding.read_bytes()
    arguments = ("--participant-label", "sub-01", "--scaling", "zscore", *FAST)
    result = participant_level(dataset, out, *small_model, *arguments)
    assert result.code == 0, result.err
    assert series.stat().st_mtime_ns == before[0]
    assert embedding.read_bytes() != before[1]


def test_dry_run_tells_all_and_writes_nothing(dataset, tmp_path):
    out = tmp_path / "out"
    result = participant_level(dataset, out, "--dry-run")
    assert result.code == 0, result.err
    assert not out.exists()
    for product in SURE:
        assert product.suffix in result.out
    assert "desc-preproc_bold.nii.gz" in result.out
    assert "2 participant(s), 2 run(s)" in result.out


def test_absent_weights_stop_the_run_before_anything_is_written(dataset, tmp_path):
    started = time.monotonic()
    result = run_command(
        dataset,
        tmp_path / "out",
        "participant",
        env={"BSYM_MODEL": "", "BSYM_MODEL_HOME": str(tmp_path / "none")},
    )
    assert result.code == 66
    assert time.monotonic() - started < 20
    assert "brainsymphony-v1" in result.err and "--model-dir" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_environment_names_the_default_model(dataset, tmp_path):
    result = run_command(
        dataset, tmp_path / "out", "participant", "--dry-run", env={"BSYM_MODEL": "untrained"}
    )
    assert result.code == 0, result.err


def test_written_settings_repeat_the_run(dataset, finished, tmp_path):
    (config,) = (finished[0] / "logs").glob("*_config.toml")
    result = run_command(dataset, tmp_path / "out", "participant", "--config", config, "--dry-run")
    assert result.code == 0, result.err
    assert result.out.count("  run ") == 2


def test_first_crash_stops_the_others_when_asked(bids, small_model, tmp_path):
    """Without the option they are complete: see test_bad_inputs."""
    (bold,) = bids.glob("derivatives/**/sub-01*_desc-preproc_bold.nii.gz")
    bold.write_bytes(bold.read_bytes()[: bold.stat().st_size // 2])
    out = tmp_path / "out"
    result = participant_level(bids, out, *small_model, "--nprocs", "1", "--stop-on-first-crash")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert bold.name in result.err
    assert not data_files(out)
    (summary,) = (out / "logs").glob("*_summary.tsv")
    table = pd.read_csv(summary, sep="\t", dtype=str).set_index("participant")
    assert table["status"].to_dict() == {"01": "failed", "03": "not run"}
    assert "sub-03: done" not in result.err


def test_short_run_gets_time_series_but_no_embedding(bids, tmp_path):
    import nibabel as nib

    (bold,) = bids.glob("derivatives/**/sub-01*_desc-preproc_bold.nii.gz")
    image = nib.load(bold)
    nib.save(image.slicer[..., :150], bold)
    (confounds,) = bids.glob("derivatives/**/sub-01*_desc-confounds_timeseries.tsv")
    lines = confounds.read_text().splitlines()
    confounds.write_text("\n".join(lines[:151]) + "\n")
    out = tmp_path / "out"
    result = participant_level(bids, out, "--participant-label", "01")
    assert result.code == 65
    assert "200" in result.err and "hint" in result.err
    assert list(out.glob("sub-01/**/*_relmat.tsv"))
    assert not list(out.glob("sub-01/**/*embedding*"))


def test_killed_run_leaves_no_half_written_file_and_goes_on(
    dataset, finished, small_model, tmp_path
):
    out = tmp_path / "out"
    program = Path(sys.executable).with_name("bsym-bids")
    call = [program, dataset, out, "participant", "--skip-reports", *small_model]
    process = subprocess.Popen(call, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("sub-*/**/*relmat.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in out.glob("sub-*/**/*.json"):
        json.loads(path.read_text())
    result = participant_level(dataset, out, *small_model)
    assert result.code == 0, result.err
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    for path in data_files(finished[0]):
        again = out / path.relative_to(finished[0])
        if path.suffix == ".tsv":
            assert again.read_bytes() == path.read_bytes(), path.name


def test_two_processes_on_one_run_do_not_disturb_each_other(dataset, small_model, tmp_path):
    out = tmp_path / "out"
    program = Path(sys.executable).with_name("bsym-bids")
    call = [program, dataset, out, "participant", "--skip-reports", *small_model, *FAST]
    call += ["--participant-label", "03"]
    both = [subprocess.Popen(call, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 73], said
    assert sum("another process is working on this run" in text for text in said) == 1
    assert len(data_files(out)) == len(SURE)
    again = participant_level(dataset, out, *small_model, "--participant-label", "03", *FAST)
    assert again.code == 0 and "unchanged" in again.err


def can_be_somebody_else() -> bool:
    call = ["unshare", "--user", "--map-user=12345", "true"]
    return shutil.which("unshare") is not None and subprocess.run(call, check=False).returncode == 0


@pytest.mark.skipif(not can_be_somebody_else(), reason="user namespaces are not permitted here")
def test_runs_as_a_user_without_name_and_home(dataset, small_model, tmp_path):
    cwd, out = tmp_path / "cwd", tmp_path / "out"
    cwd.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    program = Path(sys.executable).with_name("bsym-bids")
    call = ["unshare", "--user", "--map-user=12345", "--map-group=12345", program]
    call += [dataset, out, "participant", *small_model, "--participant-label", "01"]
    done = subprocess.run(
        [*call, *FAST], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(cwd.iterdir())


def test_named_plugin_is_used(dataset, small_model, tmp_path):
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("{plugin: Linear}")
    arguments = ("--participant-label", "03", "--use-plugin", plugin, *FAST)
    result = participant_level(dataset, tmp_path / "out", *small_model, *arguments)
    assert result.code == 0, result.err
    (log,) = (tmp_path / "out" / "logs").glob("*.log")
    assert "Running serially" in log.read_text()


def test_work_directory_is_used_and_cleaned(dataset, small_model, tmp_path):
    out, work = tmp_path / "out", tmp_path / "scratch"
    arguments = (*small_model, "--participant-label", "03", "-w", work, *FAST)
    assert participant_level(dataset, out, *arguments).code == 0
    assert (work / "bsym" / "sub_03").is_dir()
    assert not (out / "work").exists()
    leftover = work / "bsym" / "sub_03" / "leftover"
    leftover.mkdir()
    assert participant_level(dataset, out, *arguments, "--clean-workdir").code == 0
    assert not leftover.exists()
