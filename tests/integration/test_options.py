"""What each option of the command line does, where a dry run or a stubbed graph shows it."""

import errno
import io
import json
import logging
import os
import re
import shutil
from collections import namedtuple

import pytest
from fake_bids import CIFTI, MNI6, MNI2009, add_run, make_fmriprep, make_qsiprep, make_raw, write

from bsym_bids.cli import main
from bsym_bids.config import RunConfig
from bsym_bids.errors import OutputIOError
from bsym_bids.jobs import RunJob
from bsym_bids.outputs.names import products
from bsym_bids.workflows import invocation, participant
from bsym_bids.workflows.execution import Failure

# Runs of the fake dataset, and the forms in which each is there.
#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
RUNS = {
    "sub-01_ses-a_task-rest_run-1": (f"{MNI2009}_res-2", f"{MNI6}_res-1", f"{MNI6}_res-2", CIFTI),
    "sub-01_ses-a_task-rest_run-2": (f"{MNI2009}_res-2",),
    "sub-01_ses-b_task-movie_acq-mb": (f"{MNI2009}_res-2", "space-T1w"),
    "sub-02_ses-a_task-rest_run-1": (f"{MNI6}_res-2",),
    "sub-03_ses-a_task-rest_run-1": ("space-T1w", ""),
}


@pytest.fixture(autouse=True)
def untouched_process():
    """Take back what a run sets for its own process: variables and loggers."""
    environment = dict(os.environ)
    ours, nipype = logging.getLogger("bsym_bids"), logging.getLogger("nipype")
    before = (ours.level, ours.propagate, ours.handlers[:], nipype.handlers[:])
    os.environ["BSYM_MODEL"] = "untrained"
    yield
    os.environ.clear()
    os.environ.update(environment)
    ours.level, ours.propagate, ours.handlers[:], nipype.handlers[:] = before


@pytest.fixture
def bids(tmp_path):
    raw = make_raw(tmp_path / "bids", "01", "02", "03", "04")
    prep = make_fmriprep(raw / "derivatives" / "fmriprep")
    for run, forms in RUNS.items():
        add_run(prep, run, forms)
    return raw


@pytest.fixture
def call(bids, tmp_path, capsys):
    """Call the participant level on the fake dataset; return code, output and errors."""

    def caller(*arguments, level="participant", source=bids, output=tmp_path / "out"):
        code = main([str(source), str(output), level, *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return caller


@pytest.fixture
def dry(call):
    """Return the runs that a dry run would process, without their ``sub-``, by run and form."""

    def caller(*arguments, **options):
        code, out, err = call("--dry-run", *arguments, **options)
        assert code == 0, err
        return re.findall(r"^  run sub-(\S+)$", out, re.MULTILINE)

    return caller


@pytest.mark.parametrize(("asked", "written"), [([], "dipy"), (["--modalities", "bold"], None)])
def test_tasks_of_a_script_have_the_engine_that_was_found_here(
    call, bids, tmp_path, monkeypatch, asked, written
):
    make_qsiprep(bids / "derivatives" / "qsiprep", "sub-01_ses-a")
    monkeypatch.setenv("PATH", str(tmp_path))  # without MRtrix3
    script = tmp_path / "jobs.sh"
    code, _, err = call("--write-slurm", script, *asked)
    assert code == 0, err
    (options,) = re.findall(r"^OPTIONS=\((.*)\)$", script.read_text(), re.M)
    assert re.findall(r"--engine (\S+)", options) == ([written] if written else [])


FIRST = f"01_ses-a_task-rest_run-1_{MNI2009}_res-2"
SECOND = f"01_ses-a_task-rest_run-2_{MNI2009}_res-2"
MOVIE = f"01_ses-b_task-movie_acq-mb_{MNI2009}_res-2"
OTHER = f"02_ses-a_task-rest_run-1_{MNI6}_res-2"


def test_everything_is_the_default(dry):
    assert dry() == [FIRST, SECOND, MOVIE, OTHER]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--participant-label", "02"], [OTHER]),
        (["--participant-label", "sub-01", "02"], [FIRST, SECOND, MOVIE, OTHER]),
        (["--session-label", "b"], [MOVIE]),
        (["--session-label", "ses-a"], [FIRST, SECOND, OTHER]),
        (["--task-id", "movie"], [MOVIE]),
        (["--task-id", "task-rest"], [FIRST, SECOND, OTHER]),
        (["--run-id", "2"], [SECOND]),
        (["--run-id", "run-01"], [FIRST, OTHER]),
        (["--session-label", "a", "--run-id", "1", "--participant-label", "01"], [FIRST]),
        (["--space", "MNI152NLin6Asym"], [FIRST.replace(MNI2009, MNI6), OTHER]),
        (["--space", "MNI152NLin6Asym:res-1"], [f"01_ses-a_task-rest_run-1_{MNI6}_res-1"]),
        (["--space", "fsLR"], [f"01_ses-a_task-rest_run-1_{CIFTI}"]),
        (
            ["--space", "fsLR", "MNI152NLin6Asym"],
            [f"01_ses-a_task-rest_run-1_{CIFTI}", OTHER],
        ),
    ],
)
def test_selection_of_runs(dry, arguments, expected):
    assert dry(*arguments) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"bold": {"task": "movie"}}, [MOVIE]),
        ({"bold": {"acquisition": None, "run": 2}}, [SECOND]),
        ({"bold": {"session": ["a", "b"], "acquisition": "*"}}, [MOVIE]),
        ({"t1w": {"session": "b"}}, [FIRST, SECOND, MOVIE, OTHER]),
    ],
)
def test_filter_file_selects(dry, tmp_path, filters, expected):
    file = write(tmp_path / "filters.json", filters)
    assert dry("--bids-filter-file", file) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--participant-label", "9"], 18, "--participant-label 9: not found"),
        (["--session-label", "c"], 18, "--session-label c: not found"),
        (["--task-id", "rset"], 18, "rest"),
        (["--run-id", "7"], 18, "--run-id 7: not found"),
        (["--task-id", "movie", "--run-id", "2"], 18, "nothing to process"),
        (["--space", "T1w"], 64, "--space T1w: not supported"),
        (["--bids-filter-file", "none.json"], 66, "no such filter file"),
        (["--derivatives", "a=nowhere"], 66, "--derivatives a="),
        (["--nuisance", "37p"], 64, "did you mean '36p'?"),
        (["--nuisance", "none.yml"], 66, "no such nuisance strategy file"),
        (["--model", "none"], 64, "there is no model 'none'"),
        (["--model", "brainsymphony-v1", "--model-dir", "."], 66, "files are missing in"),
        (["--model-dir", "."], 64, "model 'untrained' has no files"),
        (["--config", "none.toml"], 66, "no such configuration file"),
        (["--use-plugin", "none.yml"], 66, "no such plugin file"),
        (["--high-pass", "0.1", "--low-pass", "0.05"], 64, "not below"),
        (["--mem-gb", "0.001"], 64, "--mem-gb"),
        (["--model-tr", "inf"], 64, "--model-tr"),
        (["--fd-threshold", "nan"], 64, "--fd-threshold"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    call, tmp_path, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    found, _, err = call(*arguments)
    assert found == code and words in err
    assert err.startswith("bsym-bids: error: ")
    assert not (tmp_path / "out").exists()


def test_named_derivatives_are_read_and_no_others(dry, bids, tmp_path):
    elsewhere = make_fmriprep(tmp_path / "elsewhere", "sub-05_task-x")
    expected = f"05_task-x_{MNI2009}_res-2"
    assert dry("--derivatives", f"mine={elsewhere}") == [expected]
    both = dry("--derivatives", elsewhere, f"old={bids / 'derivatives' / 'fmriprep'}")
    assert both == [FIRST, SECOND, MOVIE, OTHER, expected]
    assert dry(source=elsewhere) == [expected]


def test_name_of_derivatives_is_the_one_in_the_plan(call, bids):
    prep = bids / "derivatives" / "fmriprep"
    _, out, _ = call("--dry-run", "--derivatives", f"mine={prep}")
    assert f"derivatives mine: {prep}\n" in out


def test_validation_is_skipped_when_asked(call, dry, bids):
    (bids / "dataset_description.json").unlink()
    code, _, err = call("--dry-run")
    assert code == 16 and "--skip-bids-validation" in err
    assert dry("--skip-bids-validation") == dry("--skip-bids-validation", "-v")


def test_database_is_kept_and_follows_the_dataset(call, dry, bids, tmp_path):
    database = tmp_path / "db"
    assert len(dry("--bids-database-dir", database)) == 4
    assert list(database.rglob("sub-*.json"))
    add_run(bids / "derivatives" / "fmriprep", "sub-02_ses-z_task-rest")
    assert len(dry("--bids-database-dir", database)) == 5
    _, _, err = call("--dry-run", "-v", "--bids-database-dir", database)
    assert f"INFO: {database}" in err and "folders of participants" in err


def test_settings_of_a_file_count_unless_the_command_line_says_otherwise(dry, tmp_path):
    file = write(tmp_path / "run.toml", 'task_id = "movie"\nmodel = "untrained"\n')
    assert dry("--config", file) == [MOVIE]
    assert dry("--config", file, "--task-id", "rest", "--run-id", "2") == [SECOND]


def test_dry_run_tells_what_is_skipped_and_what_is_wrong(call, tmp_path):
    code, out, _ = call("--dry-run", "--task-id", "rest")
    assert code == 0
    assert re.search(r"skipped .*task-movie.*: not selected by session, task or run", out)
    assert re.search(r"skipped .*sub-04: no fMRIPrep derivatives", out)
    assert re.search(r"problem: sub-03.*: none of its spaces can be used \(T1w, native\)", out)
    assert out.count("    write ") == 3 * len(SURE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--participant-label", "01"]])
def test_group_level_needs_outputs(call, tmp_path, arguments):
    code, _, err = call(*arguments, level="group")
    assert code == 66 and "process the participants first" in err and "hint" in err
    assert not (tmp_path / "out").exists()


# --- what keeps a run from starting --------------------------------------------------------------


def no_dataset(bids, tmp_path):
    shutil.rmtree(bids)


def no_description(bids, tmp_path):
    (bids / "dataset_description.json").write_text("not JSON")


def no_derivatives(bids, tmp_path):
    shutil.rmtree(bids / "derivatives")


def no_participants(bids, tmp_path):
    for folder in [*bids.glob("sub-??"), *bids.glob("derivatives/fmriprep/sub-??")]:
        shutil.rmtree(folder)


def no_usable_space(bids, tmp_path):
    for label in ("01", "02"):
        shutil.rmtree(bids / "derivatives" / "fmriprep" / f"sub-{label}")


def output_below_a_file(bids, tmp_path):
    (tmp_path / "out").touch()
    return {"output": tmp_path / "out" / "deep"}


def output_in_the_raw_data(bids, tmp_path):
    return {"output": bids / "sub-01" / "out"}


def output_is_the_input(bids, tmp_path):
    return {"output": bids}


def output_is_the_derivatives(bids, tmp_path):
    prep = bids / "derivatives" / "fmriprep"
    (prep / "dataset_description.json").unlink()
    return {"output": prep}


def output_of_another_program(bids, tmp_path):
    write(tmp_path / "out" / "dataset_description.json", {"GeneratedBy": [{"Name": "XCP-D"}]})


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (no_dataset, 66, "no such folder"),
        (no_description, 16, "dataset_description.json"),
        (no_derivatives, 66, "no fMRIPrep derivatives found"),
        (no_participants, 66, "no folder of a participant"),
        (no_usable_space, 66, "none of its spaces can be used"),
        (output_below_a_file, 73, "Not a directory"),
        (output_in_the_raw_data, 73, "inside the input data"),
        (output_is_the_input, 73, "is the input dataset"),
        (output_is_the_derivatives, 73, "derivatives that are read"),
        (output_of_another_program, 73, "XCP-D"),
    ],
)
def test_bad_folders_are_explained(call, bids, tmp_path, prepare, code, words):
    options = prepare(bids, tmp_path) or {}
    before = {p for p in bids.rglob("*") if p.is_file()} if bids.exists() else set()
    found, _, err = call(**options)
    assert found == code and words in err
    if bids.exists():
        assert {p for p in bids.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("what", ["bids/work", "bids"])
def test_work_folder_in_the_raw_data_is_refused(call, tmp_path, what):
    code, _, err = call("--work-dir", tmp_path / what)
    assert code == 73 and "work folder" in err


@pytest.mark.parametrize("what", ["bids/database", "bids"])
def test_database_in_the_raw_data_is_refused(call, tmp_path, what):
    code, _, err = call("--bids-database-dir", tmp_path / what, "--dry-run")
    assert code == 73 and "database folder" in err and "--bids-database-dir" in err


def test_cleaning_the_work_folder_never_takes_the_outputs(call, tmp_path):
    # -w /scratch --clean-workdir empties /scratch/bsym, a likely name for the outputs
    kept = write(tmp_path / "bsym" / "kept.tsv", "x")
    code, _, err = call("-w", tmp_path, "--clean-workdir", output=tmp_path / "bsym")
    assert code == 73 and "--work-dir" in err
    assert kept.exists()


def test_too_little_space_stops_the_run(call, monkeypatch, tmp_path):
    usage = namedtuple("usage", ["total", "used", "free"])(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = call()
    assert code == 74
    assert "100 MB free, but about 160 MB are needed" in err and "hint" in err
    assert not list((tmp_path / "out").rglob("*.tsv"))


def test_errors_of_the_system_are_explained_wherever_they_happen(call, monkeypatch):
    def fails(*_, **__):
        raise PermissionError(13, "Permission denied", "somewhere/deep")

    monkeypatch.setattr(participant, "plan_inputs", fails)
    code, _, err = call()
    assert code == 73 and "somewhere/deep: Permission denied" in err and "permissions" in err


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_too_little_memory_is_no_fault(call, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(participant, "plan_inputs", fails)
    code, _, err = call()
    assert code == 1 and "out of memory" in err and "--nprocs" in err


def test_fault_of_ours_says_how_to_see_more(call, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(participant, "plan_inputs", fails)
    code, _, err = call()
    assert code == 70 and "BSYM_DEBUG" in err and "oops" in err
    monkeypatch.setenv("BSYM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        call()


# --- what reaches the graphs, and what the console tells -----------------------------------------


@pytest.fixture
def stub(monkeypatch):
    """Run no graph: pretend that the steps end well, and keep what they were given."""
    given = {}

    def run_chunk(jobs, config, plugin, threads, progress):
        given.update(jobs=jobs, config=config, plugin=plugin, threads=threads)
        given.setdefault("chunks", []).append(list(jobs))
        return given.get("failures", {})

    monkeypatch.setattr(participant, "_run_chunk", run_chunk)
    return given


def test_machine_options_reach_the_graphs(call, stub, tmp_path):
    call("--nprocs", 6, "--omp-nthreads", 2, "--mem-gb", 5, "-w", tmp_path / "scratch")
    arguments = stub["plugin"].arguments
    assert (arguments["n_procs"], arguments["memory_gb"]) == (6, 5.0)
    assert (stub["threads"].run, stub["threads"].scan) == (2, 2)
    assert stub["config"].scratch == tmp_path / "scratch"
    assert (tmp_path / "scratch").is_dir() and not (tmp_path / "out" / "work").exists()


def test_written_settings_name_the_model_that_the_environment_gave(call, stub, tmp_path):
    call()
    (file,) = (tmp_path / "out" / "logs").glob("*_config.toml")
    os.environ["BSYM_MODEL"] = "brainsymphony-v1"
    code, _, err = call("--config", file, "--dry-run")
    assert code == 0, err


def test_plugin_file_reaches_the_graphs(call, stub, tmp_path):
    file = write(tmp_path / "p.yml", "{plugin: SLURM, plugin_args: {sbatch_args: --mem=4G}}")
    call("--use-plugin", file)
    assert (stub["plugin"].name, stub["plugin"].arguments) == ("SLURM", {"sbatch_args": "--mem=4G"})


def test_many_participants_are_cut_into_graphs(call, stub, monkeypatch):
    monkeypatch.setattr(participant, "_CHUNK", 1)
    call()
    assert stub["chunks"] == [["01"], ["02"]]


def test_participants_that_lost_their_worker_are_tried_again_alone(call, monkeypatch):
    calls = []

    def run_chunk(jobs, config, plugin, threads, progress):
        calls.append((sorted(jobs), plugin.arguments["n_procs"]))
        if len(calls) == 1:
            run = jobs["02"][0].run.label
            return {("02", run): Failure("killed", "", worker_died=True)}
        return {}

    monkeypatch.setattr(participant, "_run_chunk", run_chunk)
    _, _, err = call("--nprocs", 6, "--omp-nthreads", 2)
    assert calls == [(["01", "02"], 6), (["02"], 2)]
    assert "trying again alone" in err


@pytest.mark.parametrize(("options", "chunks"), [([], 2), (["--stop-on-first-crash"], 1)])
def test_first_crash_stops_later_graphs_when_asked(call, stub, monkeypatch, options, chunks):
    monkeypatch.setattr(participant, "_CHUNK", 1)
    run = f"sub-{FIRST}"
    stub["failures"] = {("01", run): Failure("x.nii.gz: broken", "copy it again", 65)}
    code, _, err = call("--participant-label", "01", "02", *options)
    assert code == 1
    assert len(stub["chunks"]) == chunks
    assert stub["config"].stop_on_first_crash is bool(options)
    assert f"{run}: failed: x.nii.gz: broken" in err and "hint: copy it again" in err
    assert "sub-01: failed in" in err
    assert f"sub-{OTHER}: not run: stopped before" in err
    assert "sub-02: done" not in err or not options


def test_participant_with_one_run_left_says_so_per_run(call, monkeypatch, tmp_path):
    """A run that was up to date is unchanged, though its participant had another to do."""
    finished = {FIRST}
    monkeypatch.setattr(
        RunJob, "is_done", lambda job, _: job.run.label.removeprefix("sub-") in finished
    )

    def run_chunk(jobs, config, plugin, threads, progress):
        finished.update({SECOND, MOVIE})
        return {}

    monkeypatch.setattr(participant, "_run_chunk", run_chunk)
    code, _, err = call("--participant-label", "01")
    assert code == 0, err
    (summary,) = (tmp_path / "out" / "logs").glob("*_summary.tsv")
    status = [line.split("\t")[1:3] for line in summary.read_text().splitlines()[1:]]
    assert status == [
        [f"sub-{FIRST}", "unchanged"],
        [f"sub-{SECOND}", "done"],
        [f"sub-{MOVIE}", "done"],
    ]


def test_summary_is_printed_even_when_it_cannot_be_kept(call, stub, monkeypatch):
    def full(*_):
        raise OutputIOError("summary.tsv: No space left on device")

    monkeypatch.setattr(participant, "write_summary", full)
    code, _, err = call()
    assert code == 74
    assert err.index("3 participant(s)") < err.index("summary.tsv: No space left")


@pytest.mark.parametrize(("option", "levels"), [("", 0), ("-v", 1), ("-vv", 2)])
def test_verbose_tells_more(call, stub, option, levels):
    code, _, err = call(*([option] if option else []))
    assert code == 1  # the stub writes nothing
    assert ("INFO: model untrained" in err) is (levels >= 1)
    assert ("INFO: work directory" in err) is (levels >= 1)
    assert "WARNING: The model 'untrained'" in err


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_nipype_reaches_the_console_only_when_debugging(tmp_path, verbose):
    config = RunConfig(tmp_path, tmp_path / "out", "participant", verbose=verbose)
    console = io.StringIO()
    logger = logging.getLogger("nipype")
    logger.addHandler(logging.StreamHandler(console))
    before = logger.handlers[:]
    with invocation.run_log(config) as run_id:
        logging.getLogger("nipype.workflow").warning("from nipype")
    assert logger.handlers == before
    assert ("from nipype" in console.getvalue()) is (verbose == 2)
    assert "from nipype" in (tmp_path / "out" / "logs" / f"{run_id}.log").read_text()


def test_log_on_a_full_disk_stays_silent(tmp_path, capsys):
    config = RunConfig(tmp_path, tmp_path / "out", "participant")
    with invocation.run_log(config) as run_id:
        log = tmp_path / "out" / "logs" / f"{run_id}.log"
        (handler,) = (h for h in logging.getLogger("nipype").handlers if "_LogFile" in repr(h))
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115 (the handler closes it)
        logging.getLogger("nipype.workflow").warning("lost")
    assert log.exists()
    assert capsys.readouterr().err == ""


def test_settings_of_a_run_are_kept(call, stub, tmp_path):
    call("--seed", 7, "--task-id", "rest")
    (file,) = (tmp_path / "out" / "logs").glob("*_config.toml")
    text = file.read_text()
    assert "seed = 7" in text and json.dumps(["rest"])[1:-1] in text
