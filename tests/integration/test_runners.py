"""What programs that run the command rely on: Boutiques, BABS, Nipoppy, schedulers."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import boutiques
import pytest
from fake_bids import add_run, make_fmriprep, make_raw, undownload, write
from small_network import write_release

from bsym_bids.cli import build_parser, main
from bsym_bids.demo.dataset import make_demo_dataset
from bsym_bids.descriptors.boutiques import describe_command
from bsym_bids.outputs.names import products
from tests.bids_validation import validate

PROGRAM = Path(sys.executable).with_name("bsym-bids")


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    monkeypatch.setenv("BSYM_MODEL", "untrained")


def planned(capsys):
    """Return the participants that a dry run has named."""
    return re.findall(r"^sub-(\w+)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("labels", [["sub-01", "03"], ["01", "sub-03"]])
def test_a_list_of_boutiques_may_carry_prefixes(tmp_path, capsys, labels):
    raw = make_raw(tmp_path / "bids", "01", "02", "03")
    make_fmriprep(raw / "derivatives" / "fmriprep", *(f"sub-0{n}_task-rest" for n in (1, 2, 3)))
    call = {
        "bids_dir": str(raw),
        "output_dir": str(tmp_path / "out"),
        "analysis_level": "participant",
        "participant_label": labels,
        "dry_run": True,
    }
    descriptor = json.dumps(describe_command(build_parser()))
    done = boutiques.execute("simulate", descriptor, "-i", json.dumps(call))
    capsys.readouterr()
    assert main(shlex.split(done.shell_command)[1:]) == 0
    assert planned(capsys) == ["01", "03"]


def make_sparse(dataset):
    """Add to a dataset what a DataLad clone has of those who were not got."""
    everyone = "participant_id\n" + "".join(f"sub-{n:02d}\n" for n in range(1, 30))
    undownload(write(dataset / "participants.tsv", everyone))
    folder = add_run(dataset, "sub-02_task-rest")
    for path in (dataset / "sub-02.html", *folder.iterdir()):
        undownload(path)
    (dataset / "sub-05").symlink_to(dataset / "not" / "there")
    (dataset / "sub-04").mkdir()


def test_what_others_lack_does_not_matter(tmp_path, capsys):
    prep = make_fmriprep(tmp_path / "fmriprep", "sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest")
    make_sparse(prep)
    call = [str(prep), str(tmp_path / "out"), "participant", "--dry-run"]
    assert main([*call, "--participant-label", "sub-01", "--session-label", "ses-2"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  run (sub-\S+?)_space", out, re.MULTILINE) == ["sub-01_ses-2_task-rest"]


def test_more_people_in_the_table_than_folders(tmp_path, capsys):
    raw = make_raw(tmp_path / "bids", "01")
    write(raw / "participants.tsv", "participant_id\tage\nsub-01\t20\nsub-02\t30\nsub-03\t40\n")
    make_fmriprep(raw / "derivatives" / "fmriprep", "sub-01_task-rest")
    assert main([str(raw), str(tmp_path / "out"), "participant", "--dry-run"]) == 0
    assert planned(capsys) == ["01"]


def test_a_participant_who_is_not_there_is_told_from_one_without_data(tmp_path, capsys):
    raw = make_raw(tmp_path / "bids", "01")
    write(raw / "participants.tsv", "participant_id\nsub-01\nsub-02\n")
    make_fmriprep(raw / "derivatives" / "fmriprep", "sub-01_task-rest")
    call = [str(raw), str(tmp_path / "out"), "participant", "--participant-label", "sub-02"]
    assert main([*call, "--dry-run"]) == 18
    assert "--participant-label 02: not found" in capsys.readouterr().err


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Outputs of two jobs that ran at once, each with a participant and a sparse dataset."""
    root = tmp_path_factory.mktemp("at-once")
    make_demo_dataset(root / "demo", participants=("01", "03"), resolution_mm=5, n_volumes=210)
    whole = root / "demo" / "derivatives" / "fmriprep"
    model = root / "model"
    model.mkdir()
    write_release(model)
    jobs = []
    for label in ("01", "03"):
        # A clone of one's own, as in BABS: what is not got of the others dangles.
        clone = root / f"prep{label}"
        clone.mkdir()
        (clone / "dataset_description.json").write_bytes(
            (whole / "dataset_description.json").read_bytes()
        )
        (clone / f"sub-{label}").symlink_to(whole / f"sub-{label}")
        make_sparse(clone)
        call = [PROGRAM, clone, root / "out", "participant", "--participant-label", f"sub-{label}"]
        call += ["--derivatives", f"prep{label}={clone}", "--window-step", "200"]
        call += ["--model", "small", "--model-dir", model, "--nprocs", "1"]
        call += ["-w", root / f"work{label}"]
        jobs.append(subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=os.environ))
    said = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    return root / "out"


def test_jobs_at_once_lose_nothing(at_once):
    files = [p for p in at_once.glob("sub-*/**/*") if p.suffix in (".tsv", ".npz")]
    names = {path.relative_to(at_once).parts[0] for path in files}
    assert names == {"sub-01", "sub-03"}
    assert len(files) == 2 * sum(p.extension in (".tsv", ".npz") for p in products().values())
    assert len(list((at_once / "logs").glob("*_summary.tsv"))) == 2


def test_jobs_at_once_leave_one_valid_description(at_once):
    description = json.loads((at_once / "dataset_description.json").read_text())
    assert set(description["DatasetLinks"]) == {"prep01", "prep03"}
    assert not [p for p in at_once.rglob("*") if p.name.endswith(".part")]
    issues = [i for i in validate(at_once) if i.location == "/dataset_description.json"]
    assert [issue for issue in issues if issue.severity == "error"] == []


def test_the_participant_level_writes_no_file_of_the_group(at_once):
    names = {path.name for path in at_once.iterdir() if path.is_file()}
    assert not [name for name in names if name.startswith(("group", "desc-"))]
