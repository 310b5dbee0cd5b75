from dataclasses import fields
from pathlib import Path

import pytest

from bsym_bids.cli import build_parser, main, parse_config
from bsym_bids.config import CALL_FIELDS, GROUP_FIELDS, RunConfig, read_toml, write_toml
from bsym_bids.errors import InputMissingError, UsageError

CALL = ["in", "out", "participant"]

# Every option with a value that differs from its default, and the field as it must arrive.
OPTIONS = {
    "participant_label": (["--participant-label", "sub-01", "02"], ("01", "02")),
    "session_label": (["--session-label", "ses-a", "b"], ("a", "b")),
    "task_id": (["--task-id", "rest", "task-movie"], ("rest", "movie")),
    "run_id": (["--run-id", "1", "run-02"], ("1", "02")),
    "bids_filter_file": (["--bids-filter-file", "f.json"], Path("f.json")),
    "derivatives": (
        ["--derivatives", "a=x/y", "p/q"],
        {"a": Path("x/y"), "q": Path("p/q")},
    ),
    "modalities": (["--modalities", "dwi"], ("dwi",)),
    "space": (["--space", "fsLR", "MNI152NLin6Asym"], ("fsLR", "MNI152NLin6Asym")),
    "nuisance": (["--nuisance", "36p"], "36p"),
    "high_pass": (["--high-pass", "0.01"], 0.01),
    "low_pass": (["--low-pass", "0.1"], 0.1),
    "fd_threshold": (["--fd-threshold", "0.3"], 0.3),
    "min_coverage": (["--min-coverage", "0.8"], 0.8),
    "parcel_method": (["--parcel-method", "pca"], "pca"),
    "engine": (["--engine", "dipy"], "dipy"),
    "preset": (["--preset", "fast"], "fast"),
    "reliability": (["--reliability", "0.9"], 0.9),
    "max_streamlines": (["--max-streamlines", "5000"], 5000),
    "streamlines": (["--streamlines", "1000"], 1000),
    "save_tractogram": (["--save-tractogram", "trx"], "trx"),
    "gradient_check": (["--gradient-check", "warn"], "warn"),
    "sc_measure": (["--sc-measure", "count"], "count"),
    "sc_transform": (["--sc-transform", "log10p1"], "log10p1"),
    "model": (["--model", "untrained"], "untrained"),
    "model_dir": (["--model-dir", "m"], Path("m")),
    "model_tr": (["--model-tr", "0.72"], 0.72),
    "window_step": (["--window-step", "50"], 50),
    "scaling": (["--scaling", "zscore"], "zscore"),
    "work_dir": (["-w", "scratch"], Path("scratch")),
    "clean_workdir": (["--clean-workdir"], True),
    "nprocs": (["--nprocs", "3"], 3),
    "omp_nthreads": (["--omp-nthreads", "2"], 2),
    "mem_gb": (["--mem-gb", "4"], 4.0),
    "use_plugin": (["--use-plugin", "p.yml"], Path("p.yml")),
    "write_slurm": (["--write-slurm", "job.sh"], Path("job.sh")),
    "slurm_throttle": (["--slurm-throttle", "5"], 5),
    "bids_database_dir": (["--bids-database-dir", "db"], Path("db")),
    "skip_bids_validation": (["--skip-bids-validation"], True),
    "stop_on_first_crash": (["--stop-on-first-crash"], True),
    "dry_run": (["--dry-run"], True),
    "reports_only": (["--reports-only"], True),
    "skip_reports": (["--skip-reports"], True),
    "predict": (["--predict", "age", "sex"], ("age", "sex")),
    "state": (["--state", "ses-a", "ses-b"], ("ses-a", "ses-b")),
    "contrast": (["--contrast", "ses-a-ses-b"], ("ses-a-ses-b",)),
    "task_type": (["--task-type", "regression"], "regression"),
    "features": (["--features", "fc", "sc"], ("fc", "sc")),
    "folds": (["--folds", "4"], 4),
    "repeats": (["--repeats", "2"], 2),
    "permutations": (["--permutations", "10"], 10),
    "bootstrap": (["--bootstrap", "20"], 20),
    "group_by": (["--group-by", "family"], "family"),
    "confounds": (["--confounds", "fd_mean"], ("fd_mean",)),
    "harmonize": (["--harmonize", "combat"], "combat"),
    "site": (["--site", "scanner"], "scanner"),
    "save_head": (["--predict", "age", "--save-head", "h.npz"], Path("h.npz")),
    "apply_head": (["--apply-head", "h.npz"], Path("h.npz")),
    "seed": (["--seed", "7"], 7),
    "verbose": (["-vv"], 2),
}


def test_every_setting_has_an_option_and_every_option_a_setting():
    settings = {f.name for f in fields(RunConfig)} - set(CALL_FIELDS)
    assert settings == set(OPTIONS)
    actions = {a.dest for a in build_parser()._actions} - {"help", "version", "config"}
    assert actions == settings | set(CALL_FIELDS)


@pytest.mark.parametrize("name", OPTIONS)
def test_option_reaches_its_setting(name):
    arguments, expected = OPTIONS[name]
    level = "group" if name in GROUP_FIELDS else "participant"
    config = parse_config([*CALL[:2], level, *arguments])
    assert getattr(config, name) == expected
    default = RunConfig(Path("in"), Path("out"), level)
    assert getattr(default, name) != expected
    # A head is kept of what is predicted, so that neither goes alone.
    together = {"predict"} if name == "save_head" else set()
    unchanged = {f.name for f in fields(RunConfig)} - {name} - together
    assert all(getattr(config, other) == getattr(default, other) for other in unchanged)


# Options that contradict each other.
EITHER = {"reliability", "max_streamlines", "task_id", "run_id"}
EITHER |= {"state", "apply_head", "harmonize", "reports_only", "write_slurm"}
OR = {"streamlines", "modalities", "state", "apply_head", "save_head", "skip_reports"}
OR |= {"write_slurm"}
SCRIPT = set(OPTIONS) - {"write_slurm", "slurm_throttle", "participant_label"}


@pytest.mark.parametrize(
    ("level", "without"), [("group", EITHER), ("group", OR), ("participant", SCRIPT)]
)
def test_written_settings_repeat_the_run(tmp_path, level, without):
    arguments = [
        word for name, (words, _) in OPTIONS.items() if name not in without for word in words
    ]
    call = [*CALL[:2], level]
    config = parse_config([*call, *arguments])
    write_toml(config, tmp_path / "run.toml")
    assert parse_config([*call, "--config", str(tmp_path / "run.toml")]) == config


def test_labels_in_a_file_may_carry_their_prefixes(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('participant_label = ["sub-01", "02"]\ntask_id = "task-rest"\n')
    values = read_toml(file)
    assert values == {"participant_label": ("01", "02"), "task_id": ("rest",)}


def test_command_line_wins_over_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('nuisance = "36p"\nhigh-pass = 1\nspace = "fsLR"\n')
    config = parse_config([*CALL, "--config", str(file), "--nuisance", "none"])
    assert (config.nuisance, config.high_pass, config.space) == ("none", 1.0, ("fsLR",))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nuisanse = 'x'", "nuisanse"),
        ("seed = 'one'", "seed"),
        ("dry_run = 1", "dry_run"),
        ("derivatives = ['a']", "derivatives"),
        ("derivatives = {a = 3}", "derivatives"),
        ("task_id = 3", "task_id"),
        ("work_dir = 3", "work_dir"),
        ("streamlines = 1e6", "streamlines"),
        ("reliability = 'high'", "reliability"),
        ("modalities = 2", "modalities"),
        ("seed = ", "TOML"),
    ],
)
def test_bad_file_is_named_with_the_setting(tmp_path, text, word):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=word) as caught:
        read_toml(file)
    assert str(file) in str(caught.value)


def test_absent_file(tmp_path):
    with pytest.raises(InputMissingError):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--min-coverage", "1.5"],
        ["--high-pass", "-1"],
        ["--window-step", "0"],
        ["--model-tr", "0"],
        ["--fd-threshold", "-0.1"],
        ["--nprocs", "0"],
        ["--mem-gb", "0"],
        ["--mem-gb", "0.05"],  # nothing could ever start
        ["--mem-gb", "inf"],
        ["--high-pass", "inf"],
        ["--low-pass", "nan"],
        ["--fd-threshold", "inf"],
        ["--model-tr", "inf"],
        ["--omp-nthreads", "0"],
        ["--seed", "-1"],
        ["--derivatives", "a=x", "a=y"],
        ["--reliability", "0"],
        ["--reliability", "1"],
        ["--reliability", "1.2"],
        ["--reliability", "nan"],
        ["--max-streamlines", "0"],
        ["--streamlines", "-5"],
        ["--streamlines", "1000", "--reliability", "0.9"],
        ["--reports-only", "--skip-reports"],
        ["--streamlines", "1000", "--max-streamlines", "2000"],
        ["--task-id", "rest", "--modalities", "dwi"],
        ["--run-id", "1", "--modalities", "dwi"],
        ["--preset", ""],
    ],
)
def test_numbers_that_cannot_be_meant(arguments, capsys):
    assert main([*CALL, *arguments]) == 64
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "modalities = []",
        "modalities = ['bold', 'eeg']",
        "engine = 'ants'",
        "save_tractogram = 'trk'",
        "gradient_check = 'on'",
        "sc_measure = 'sift2'",
        "sc_transform = 'log'",
    ],
)
def test_choices_of_a_file_are_checked(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text)
    name = text.split(" ")[0].replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} is "):
        parse_config([*CALL, "--config", str(file)])


@pytest.mark.parametrize(
    "option", ["--engine", "--modalities", "--sc-measure", "--save-tractogram"]
)
def test_choices_of_the_command_line_are_checked(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*CALL, option, "none-such"])
    assert caught.value.code == 64
    assert option in capsys.readouterr().err


def test_the_number_of_streamlines_on_the_command_line_replaces_that_of_a_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("reliability = 0.9\nmax_streamlines = 7\n")
    config = parse_config([*CALL, "--config", str(file), "--streamlines", "1000"])
    assert (config.streamlines, config.reliability, config.max_streamlines) == (1000, None, None)
    config = parse_config([*CALL, "--config", str(file), "--reliability", "0.8"])
    assert (config.reliability, config.max_streamlines) == (0.8, 7)
    file.write_text("streamlines = 1000\n")
    config = parse_config([*CALL, "--config", str(file), "--max-streamlines", "5"])
    assert (config.streamlines, config.max_streamlines) == (None, 5)
    file.write_text("streamlines = 1000\nreliability = 0.9\n")
    with pytest.raises(UsageError, match="contradict"):
        parse_config([*CALL, "--config", str(file)])


@pytest.mark.parametrize("name", ["nuisance", "preset"])
def test_files_that_may_be_names_hold_in_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").touch()
    for given, absolute in (("own.yaml", str(tmp_path / "own.yaml")), ("full", "full")):
        config = parse_config([*CALL, f"--{name}", given]).with_absolute_paths()
        assert getattr(config, name) == absolute


def test_group_level_needs_outputs(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "group"]) == 66
    assert "process the participants first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--predict", "age", "--state", "ses-a", "ses-b"], "exclude each other"),
        (["--predict", "age", "--apply-head", "h.npz"], "exclude each other"),
        (["--save-head", "h.npz"], "none are fitted"),
        (["--state", "ses-a"], "at least two labels"),
        (["--predict", "age", "--confounds", "none", "age"], "goes with no others"),
        (["--predict", "age", "--save-head", "h", "--harmonize", "combat"], "exclude each other"),
    ],
)
def test_requests_that_contradict_each_other(arguments, said):
    with pytest.raises(UsageError, match=said):
        parse_config(["in", "out", "group", *arguments])


def test_wrong_usage_exits_64():
    with pytest.raises(SystemExit) as caught:
        main(["in"])
    assert caught.value.code == 64
