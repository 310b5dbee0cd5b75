"""Full disks and ended processes: what is said, what is left, and whether the next run goes on."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import participant_level

from bsym_bids.outputs.names import products

#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
PROGRAM = Path(sys.executable).with_name("bsym-bids")
ONE = ("--participant-label", "01", "--window-step", "200")


def data_files(out: Path) -> list[Path]:
    return [p for p in out.glob("sub-*/**/*") if p.suffix in (".tsv", ".npz")]


# The limits fall into the intermediate results and into the outputs of a run of 200 volumes.
@pytest.mark.parametrize("largest", [100_000, 1_000_000])
def test_disk_that_takes_no_more_is_explained_and_the_next_run_goes_on(
    dataset, small_model, tmp_path, largest
):
    out = tmp_path / "out"
    result = participant_level(
        dataset,
        out,
        *small_model,
        *ONE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert result.code == 74, result.err
    assert "Traceback" not in result.err
    assert "File too large" in result.err and "hint" in result.err
    assert not data_files(out)
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    (summary,) = (out / "logs").glob("*_summary.tsv")
    assert "\tfailed\t" in summary.read_text()
    if largest == 1_000_000:
        assert participant_level(dataset, out, *small_model, *ONE).code == 0
        assert len(data_files(out)) == len(SURE)


def can_mount() -> bool:
    call = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(call, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
@pytest.mark.parametrize(
    ("where", "files"),
    [("out", 14), ("out", 45), ("out", 62), ("work", 4), ("work", 22)],
)
def test_full_file_system_is_explained_and_the_next_run_goes_on(
    dataset, small_model, tmp_path, where, files
):
    """The disk is full for Nipype too, and for the log, the crash files and the summary."""
    full, kept = tmp_path / "full", tmp_path / "kept"
    full.mkdir()
    out = full if where == "out" else tmp_path / "out"
    work = full / "work" if where == "work" else out / "work"
    script = f"""
        mount -t tmpfs -o size=200m,nr_inodes={files} full {full} || exit 70
        "$@"
        code=$?
        find {out} {full} -name '*.part'
        mount -o remount,nr_inodes=100000 {full} && "$@" 2>&1 && cp -r {out} {kept}
        exit $code
    """
    call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    call += [PROGRAM, dataset, out, "participant", *small_model, *ONE, "-w", work]
    call.append("--skip-reports")
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    assert "No space left on device" in done.stderr and "hint" in done.stderr
    assert "1 failed" in done.stderr or files < 15  # or it did not even start
    assert ".part" not in done.stdout
    assert "1 done" in done.stdout
    assert len(data_files(kept)) == len(SURE)


def test_memory_that_does_not_suffice_is_explained(dataset, tmp_path):
    """Too little to load libraries: no traceback, and the way out."""
    call = [PROGRAM, dataset, tmp_path / "out", "participant", "--model", "bsym-sim-v1"]
    call += ["--nprocs", "1", "--skip-reports", "--participant-label", "03"]
    limited = f"ulimit -v 400000; exec {shlex.join(map(str, call))}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "out of memory" in done.stderr and "--mem-gb" in done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr


def test_calls_with_other_settings_do_not_mix(dataset, small_model, tmp_path):
    """The second is refused while the first is at work, and may have its turn afterwards."""
    out = tmp_path / "out"
    call = [PROGRAM, dataset, out, "participant", *small_model, "--skip-reports", "--nprocs", "1"]
    first = subprocess.Popen([*call, "--nuisance", "none"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("work/bsym/*/*/parcellate")) and time.monotonic() < deadline:
        time.sleep(0.05)
    elsewhere = shutil.copytree(dataset / "derivatives" / "fmriprep", tmp_path / "elsewhere")
    options = ("--participant-label", "03", "--derivatives", f"fmriprep={elsewhere}")
    second = participant_level(dataset, out, *small_model, *options)
    _, err = first.communicate(timeout=300)
    assert second.code == 73
    assert "another call is working on BOLD runs there, with other settings" in second.err
    assert first.returncode == 0, err
    strategies = {
        json.loads(path.read_text())["TimeSeriesSettings"]["NuisanceStrategy"]["name"]
        for path in out.glob("sub-*/**/*_desc-denoised_*timeseries.json")
    }
    assert strategies == {"none"}
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["fmriprep"].endswith(str(dataset / "derivatives" / "fmriprep"))


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "everybody"),  # Ctrl-C in a terminal
        (signal.SIGTERM, "the program"),  # a scheduler, `docker stop`
        (signal.SIGKILL, "the program"),  # the kernel, for its memory
    ],
)
def test_ended_program_takes_its_workers_along(dataset, tmp_path, number, whom):
    out = tmp_path / "out"
    call = [PROGRAM, dataset, out, "participant", "--model", "bsym-sim-v1", "--nprocs", "4"]
    call.append("--skip-reports")
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("work/bsym/*/*/embed")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 4
    (os.killpg if whom == "everybody" else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "interrupted" in err
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
