"""What programs are told that run the command: made from the parser, and true."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from fnmatch import fnmatchcase
from inspect import getsource
from io import StringIO
from pathlib import Path

import boutiques
import pytest
import yaml
from test_config import OPTIONS

from bsym_bids import __version__, cli, errors
from bsym_bids.cli import build_parser, main, parse_config
from bsym_bids.config import GROUP_FIELDS, RunConfig
from bsym_bids.descriptors.boutiques import DEFAULTS, describe_command, read_facts
from bsym_bids.descriptors.runners import nipoppy_bundle, runner_files
from bsym_bids.errors import BsymError, UsageError, explain_machine
from bsym_bids.outputs.names import RunNames, ScanNames, dataset_path, dataset_products
from bsym_bids.summary import Outcome, print_summary
from bsym_bids.workflows import participant

ROOT = Path(__file__).parents[2]
RUNNERS = ROOT / "docs" / "runners"
DESCRIPTOR = describe_command(build_parser())
INPUTS = {entry["id"]: entry for entry in DESCRIPTOR["inputs"]}
ACTIONS = {
    action.dest: action
    for action in build_parser()._actions
    if not {"--help", "--version", "--bids-exec-spec"} & set(action.option_strings)
}
FACTS = read_facts()
CALL = {"bids_dir": "in", "output_dir": "out"}


def command_line(invocation, descriptor=DESCRIPTOR):
    """Return the arguments that Boutiques makes of an invocation."""
    done = boutiques.execute("simulate", json.dumps(descriptor), "-i", json.dumps(invocation))
    program, *arguments = shlex.split(done.shell_command)
    assert program == "bsym-bids"
    return arguments


def invocation_of(level, words):
    """Turn words of a command line into an invocation."""
    names = {flag: name for name, action in ACTIONS.items() for flag in action.option_strings}
    given = {**CALL, "analysis_level": level}
    for word in words:
        if word.startswith("-v"):
            given["verbose"] = word
        elif word in names:
            name = names[word]
            given[name] = {"Flag": True}.get(INPUTS[name]["type"], [])
        elif INPUTS[name]["type"] == "Number":
            given[name] = int(word) if INPUTS[name]["integer"] else float(word)
        else:
            given[name] = [*given[name], word] if INPUTS[name].get("list") else word
    return given


def numbers(name, value):
    """Return whether the command takes a number."""
    level = "group" if name in GROUP_FIELDS else "participant"
    flag = INPUTS[name]["command-line-flag"]
    try:
        parse_config(["in", "out", level, f"{flag}={value}"])
    except UsageError as error:
        assert flag in str(error)
        return False
    return True


def test_the_command_prints_its_descriptor(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--bids-exec-spec"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == DESCRIPTOR and not err


@pytest.mark.parametrize("name", ["boutiques", "cbrain"])
def test_boutiques_takes_the_descriptors(name):
    boutiques.validate(str(RUNNERS / name / "bsym-bids.json"))


def test_every_argument_is_described_as_the_parser_has_it():
    assert list(INPUTS) == sorted(ACTIONS, key=lambda name: bool(ACTIONS[name].option_strings))
    for name, action in ACTIONS.items():
        entry = INPUTS[name]
        assert entry["description"] == action.help
        assert entry["optional"] == bool(action.option_strings)
        assert entry["value-key"] == f"[{name.upper()}]"
        assert DESCRIPTOR["command-line"].split().count(entry["value-key"]) == 1
        assert entry.get("list", False) == (action.nargs == "+")
        flag = entry.get("command-line-flag")
        assert name == "verbose" or flag in (action.option_strings or [None])
        if action.choices:
            assert entry["value-choices"] == list(action.choices)


def test_types_are_those_of_the_settings():
    kinds = {
        "bool": {"Flag"},
        "int": {"Number"},
        "float": {"Number"},
        "Path": {"File", "String"},
        "tuple[str, ...]": {"String"},
        "Mapping[str, Path]": {"String"},
        "str": {"String"},
    }
    for item in fields(RunConfig):
        if item.name != "verbose":
            entry = INPUTS[item.name]
            declared = str(item.type).removesuffix(" | None")
            assert entry["type"] in kinds[declared], item.name
            assert entry.get("integer", False) == (declared == "int")
    files = {name for name, entry in INPUTS.items() if entry["type"] == "File"}
    paths = {item.name for item in fields(RunConfig) if str(item.type).startswith("Path")}
    assert files == {*paths, "config"} - set(FACTS["written"])


def test_groups_are_those_of_the_parser():
    found = {group["name"]: group["members"] for group in DESCRIPTOR["groups"]}
    assert found["Model"][0] == "model"
    assert sorted(name for members in found.values() for name in members) == sorted(ACTIONS)
    titles = {str(group.title).lower() for group in build_parser()._action_groups}
    assert {name.lower() for name in found} == titles


def test_defaults_are_told_but_not_given():
    # A default-value would be put on the command line, and go before the file of --config.
    assert not any("default-value" in entry for entry in INPUTS.values())
    told = DESCRIPTOR["custom"][DEFAULTS]
    config = RunConfig(Path("in"), Path("out"), "group")
    for item in fields(RunConfig):
        value = getattr(config, item.name)
        if isinstance(value, tuple | str | float) and value and item.name != "analysis_level":
            assert told[item.name] == (list(value) if isinstance(value, tuple) else value)
    assert told["seed"] == 0 and told["fd_threshold"] == 0.0
    assert all("default" in INPUTS[name]["description"] for name in told)


def test_settings_of_a_file_hold(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('nuisance = "36p"\nfolds = 7\n')
    call = {**CALL, "analysis_level": "group", "config": str(file), "seed": 3}
    config = parse_config(command_line(call))
    assert (config.nuisance, config.folds, config.seed) == ("36p", 7, 3)


# Options that contradict none of each other; each of all is in one of these calls.
TOGETHER = [
    set(OPTIONS) - {"reliability", "max_streamlines", "task_id", "run_id"}
    - {"state", "apply_head", "harmonize", "skip_reports", "write_slurm"},
    set(OPTIONS) - {"streamlines", "modalities", "predict", "apply_head", "save_head"}
    - {"reports_only", "write_slurm"},
    {"apply_head"},
    {"write_slurm", "slurm_throttle"},
]  # fmt: skip


@pytest.mark.parametrize("names", TOGETHER, ids=["fixed", "until", "applied", "script"])
def test_an_invocation_reaches_every_setting(names):
    # A head is kept of what is predicted: its own columns come before those of --predict.
    ordered = sorted(names, key=lambda name: name != "save_head")
    words = [word for name in ordered for word in OPTIONS[name][0]]
    level = "participant" if "write_slurm" in names else "group"
    config = parse_config(command_line(invocation_of(level, words)))
    assert config == parse_config(["in", "out", level, *words])
    assert all(getattr(config, name) == OPTIONS[name][1] for name in names)


def test_no_option_is_left_out():
    assert set().union(*TOGETHER) == set(OPTIONS)


def test_many_values_and_odd_paths_arrive_whole():
    config = parse_config(
        command_line(
            {
                "bids_dir": "/a data",
                "output_dir": "/out/it's",
                "analysis_level": "participant",
                "participant_label": ["sub-01", "02"],
                "session_label": ["ses-1"],
                "derivatives": ["fmriprep=/a data/fmriprep", "qsiprep=/q"],
                "modalities": ["bold", "dwi"],
                "nprocs": 2,
                "mem_gb": 4,
                "dry_run": True,
                "clean_workdir": False,
                "verbose": "-v",
            }
        )
    )
    assert config == RunConfig(
        Path("/a data"),
        Path("/out/it's"),
        "participant",
        participant_label=("01", "02"),
        session_label=("1",),
        derivatives={"fmriprep": Path("/a data/fmriprep"), "qsiprep": Path("/q")},
        nprocs=2,
        mem_gb=4.0,
        dry_run=True,
        verbose=1,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"analysis_level": "session"},
        {"participant_label": "01"},
        {"participant_label": []},
        {"engine": "ants"},
        {"nprocs": 0},
        {"nprocs": 1.5},
        {"reliability": 1},
        {"streamlines": 10, "reliability": 0.9},
        {"no_such_option": 1},
    ],
)
def test_what_cannot_be_meant_is_no_invocation(given):
    call = {**CALL, "analysis_level": "participant", **given}
    with pytest.raises(boutiques.InvocationValidationError):
        boutiques.invocation(json.dumps(DESCRIPTOR), "-i", json.dumps(call))


@pytest.mark.parametrize("name", [n for n, entry in INPUTS.items() if entry["type"] == "Number"])
def test_ranges_of_numbers_are_those_of_the_command(name):
    entry = INPUTS[name]
    step = 1 if entry["integer"] else 1e-6
    assert "minimum" in entry
    for edge, inward in (("minimum", step), ("maximum", -step)):
        if edge in entry:
            assert numbers(name, entry[edge]) != entry.get(f"exclusive-{edge}", False)
            assert numbers(name, entry[edge] + inward)
            assert not numbers(name, entry[edge] - inward)


VALUES = {"predict": "age", "state": "ses-a ses-b", "save_head": "h.npz", "harmonize": "combat"}
VALUES |= {"contrast": "ses-a-ses-b", "reliability": "0.9"}


@pytest.mark.parametrize("pair", FACTS["exclusive"], ids=" ".join)
def test_options_that_exclude_each_other_are_told(pair):
    one, other = pair
    assert other in INPUTS[one]["disables-inputs"] and one in INPUTS[other]["disables-inputs"]
    words = []
    for name in pair:
        takes = INPUTS[name]["type"] != "Flag"
        words += [INPUTS[name]["command-line-flag"], *[str(VALUES.get(name, 9))] * takes]
    with pytest.raises(UsageError):
        parse_config(["in", "out", "group", *words])


def test_requests_of_the_group_level_are_told():
    disabled = INPUTS["analysis_level"]["value-disables"]
    assert disabled["group"] == [] and disabled["participant"] == FACTS["group_only"]
    for name in FACTS["group_only"]:
        with pytest.raises(UsageError, match="group level"):
            flag = INPUTS[name]["command-line-flag"]
            parse_config(["in", "out", "participant", flag, *VALUES.get(name, "x").split()])


def test_exit_codes_are_those_of_the_errors_and_of_the_documentation():
    told = {entry["code"]: entry["description"] for entry in DESCRIPTOR["error-codes"]}
    ours = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)
            and issubclass(kind, BsymError)}  # fmt: skip
    assert set(told) == ours | {0, cli._INTERNAL_ERROR, cli._INTERRUPTED}
    page = (ROOT / "docs" / "running.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.M)
    assert told == {int(code): text.replace("`", "") for code, text in rows}


def test_output_files_are_those_that_are_written():
    paths = {entry["id"]: entry["path-template"] for entry in DESCRIPTOR["output-files"]}
    assert paths["output_dataset"] == "[OUTPUT_DIR]"
    assert all(path.startswith("[OUTPUT_DIR]") for path in paths.values())
    for key in dataset_products():
        pattern = paths[f"{key}_file"].replace("[OUTPUT_DIR]", "/out")
        assert fnmatchcase(str(dataset_path(Path("/out"), key, "age")), pattern)
    always = [entry["id"] for entry in DESCRIPTOR["output-files"] if not entry["optional"]]
    assert always == ["output_dataset", "dataset_description_file"]


def test_version_and_image():
    assert DESCRIPTOR["tool-version"] == __version__
    assert DESCRIPTOR["container-image"]["image"] == f"bsym-bids:{__version__}"
    assert not {"url", "doi", "tool-doi", "descriptor-url"} & set(DESCRIPTOR)


@pytest.mark.parametrize("name", sorted(runner_files(DESCRIPTOR)))
def test_committed_files_are_those_of_the_parser(name):
    again = "run scripts/make_descriptors.py"
    assert (RUNNERS / name).read_text("utf-8") == runner_files(DESCRIPTOR)[name], again


def test_no_other_files_are_committed():
    found = {p.relative_to(RUNNERS).as_posix() for p in RUNNERS.rglob("*") if p.is_file()}
    assert found == set(runner_files(DESCRIPTOR))


def test_the_page_names_files_that_there_are():
    page = (ROOT / "docs" / "runners.md").read_text("utf-8")
    named = {name.rstrip(".") for name in re.findall(r"docs/runners/[\w./-]+", page)}
    assert named and all((ROOT / name).exists() for name in named)
    assert {Path(name).parts[2] for name in named} == {p.name for p in RUNNERS.iterdir()}


# Nipoppy 0.4: the keys that its models take (they take no others), and what it fills in.
NIPOPPY = {
    "config": {"NAME", "VERSION", "DESCRIPTION", "CONTAINER_INFO", "CONTAINER_CONFIG", "STEPS"}
    | {"VARIABLES", "PIPELINE_TYPE", "SCHEMA_VERSION", "BIDS_PATH_INJECTION_MAP"},
    "step": {"NAME", "ANALYSIS_LEVEL", "DESCRIPTOR_FILE", "INVOCATION_FILE", "HPC_CONFIG_FILE"}
    | {"TRACKER_CONFIG_FILE", "PYBIDS_IGNORE_FILE", "GENERATE_PYBIDS_DATABASE"}
    | {"CONTAINER_CONFIG"},
    "container": {"COMMAND", "BIND_PATHS", "ENV_VARS", "ARGS", "INHERIT"},
    "tracker": {"PATHS", "PARTICIPANT_SESSION_DIR", "SCHEMA_VERSION"},
    "levels": {"participant_session", "participant", "session", "group"},
}
FILLED = {
    "NIPOPPY_PARTICIPANT_ID": "01",
    "NIPOPPY_SESSION_ID": "a",
    "NIPOPPY_BIDS_PARTICIPANT_ID": "sub-01",
    "NIPOPPY_BIDS_SESSION_ID": "ses-a",
    "NIPOPPY_DPATH_BIDS": "/study/bids",
    "NIPOPPY_DPATH_DERIVATIVES": "/study/derivatives",
    "NIPOPPY_DPATH_PIPELINE_OUTPUT": "/study/derivatives/bsym-bids/0/output",
    "NIPOPPY_DPATH_PIPELINE_WORK": "/study/scratch/work",
    "NIPOPPY_DPATH_CONTAINERS": "/study/containers",
    "PIPELINE_NAME": "bsym-bids",
    "PIPELINE_VERSION": __version__,
    "FMRIPREP_VERSION": "24.1.1",
    "BSYM_MODEL_HOME": "/models",
    "HPC_ACCOUNT_NAME": "lab",
}


def filled(text):
    return json.loads(re.sub(r"\[\[(\w+)\]\]", lambda match: FILLED[match[1]], text))


@pytest.mark.parametrize("sessions", [True, False])
def test_the_pipeline_for_nipoppy_is_one(sessions):
    bundle = nipoppy_bundle(DESCRIPTOR, sessions)
    config = filled(bundle["config.json"])
    assert set(config) <= NIPOPPY["config"]
    assert (config["NAME"], config["VERSION"]) == ("bsym-bids", __version__)
    assert (config["PIPELINE_TYPE"], config["SCHEMA_VERSION"]) == ("processing", "1.0")
    assert config["CONTAINER_INFO"] == {"FILE": f"/study/containers/bsym-bids_{__version__}.sif"}
    assert set(config["CONTAINER_CONFIG"]) <= NIPOPPY["container"]
    used = set(re.findall(r"\[\[(\w+)\]\]", "".join(bundle.values())))
    ours = {name for name in used if not name.startswith(("NIPOPPY_", "PIPELINE_", "HPC_"))}
    assert ours == set(config["VARIABLES"])
    files = {"config.json"}
    for step in config["STEPS"]:
        assert set(step) <= NIPOPPY["step"] and step["ANALYSIS_LEVEL"] in NIPOPPY["levels"]
        files |= {value for key, value in step.items() if key.endswith("_FILE")}
    assert files == set(bundle)
    names = [step["NAME"] for step in config["STEPS"]]
    assert len(names) == len(set(names))
    assert not {"queue", "working_directory", "command"} & set(filled(bundle["hpc.json"]))
    assert "[[" not in bundle["descriptor.json"]


@pytest.mark.parametrize("sessions", [True, False])
@pytest.mark.parametrize(("step", "modalities"), [("bold", 1), ("dwi", 1), ("both", 2)])
def test_steps_of_nipoppy_call_the_command(step, modalities, sessions):
    bundle = nipoppy_bundle(DESCRIPTOR, sessions)
    config = parse_config(command_line(filled(bundle[f"invocation-{step}.json"])))
    assert config.participant_label == ("01",)
    assert config.session_label == (("a",) if sessions else ())
    assert len(config.modalities) == modalities
    assert config.output_dir == Path(FILLED["NIPOPPY_DPATH_PIPELINE_OUTPUT"])
    assert config.derivatives == {"fmriprep": Path("/study/derivatives/fmriprep/24.1.1/output")}
    assert (config.nprocs, config.mem_gb) == (4, 8.0)


def test_the_group_step_of_nipoppy_calls_the_group_level():
    bundle = nipoppy_bundle(DESCRIPTOR)
    assert not re.search(r"PARTICIPANT|SESSION", bundle["invocation-group.json"])
    assert parse_config(command_line(filled(bundle["invocation-group.json"]))).analysis_level == (
        "group"
    )


@pytest.mark.parametrize("sessions", [True, False])
def test_nipoppy_tracks_every_file_that_is_sure_to_be_there(sessions):
    entities = {"sub": "01", **({"ses": "a"} if sessions else {})}
    runs = [
        RunNames(Path(), {**entities, "task": "rest", "run": "1"}, "MNI152NLin2009cAsym", "2"),
        RunNames(Path(), {**entities, "task": "rest"}, "fsLR", density="91k"),
    ]
    scans = [
        ScanNames(Path(), entities, fibre_capacity=False),
        ScanNames(Path(), {**entities, "acq": "b"}, "ACPC", fibre_capacity=False),
    ]
    groups = {"bold": ("timeseries", "embedding"), "dwi": ("connectome", "structural")}
    bundle = nipoppy_bundle(DESCRIPTOR, sessions)
    patterns = {step: filled(bundle[f"tracker-{step}.json"]) for step in ("bold", "dwi", "both")}
    assert all(set(tracker) <= NIPOPPY["tracker"] for tracker in patterns.values())
    for step, names in (("bold", runs), ("dwi", scans)):
        for name in names:
            paths = [str(path) for group in groups[step] for path in name.group_paths(group)]
            for pattern in patterns[step]["PATHS"]:
                # As of a path: a star does not go across folders.
                assert sum(Path(path).match(pattern) for path in paths) == 1, pattern
            assert len(paths) == len(patterns[step]["PATHS"])
    assert patterns["both"]["PATHS"] == patterns["bold"]["PATHS"] + patterns["dwi"]["PATHS"]


BABS = {name for name in runner_files(DESCRIPTOR) if name.startswith("babs/")}


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("name", sorted(BABS))
def test_babs_calls_the_command(name, session):
    text = (RUNNERS / name).read_text("utf-8")
    text = text.replace("# $SESSION", "$SESSION") if session else text
    config = yaml.safe_load(text)
    # What BABS 0.5.4 takes of a dataset; it takes nothing else.
    keys = {"origin_url", "path_in_babs", "is_zipped", "required_files"}
    keys |= {"unzipped_path_containing_subject_dirs"}
    datasets = config["input_datasets"]
    roots = {}
    for dataset, entry in datasets.items():
        assert set(entry) <= keys and dataset.isidentifier()
        roots[dataset] = f"{entry['path_in_babs']}{'/' + dataset if entry['is_zipped'] else ''}"
    words = []
    for key, value in config["bids_app_args"].items():
        assert isinstance(value, str)
        if key == "$SUBJECT_SELECTION_FLAG":
            words += [value, "sub-01"]
        elif key == "$SESSION_SELECTION_FLAG":
            words += [value, "ses-a"]
        else:
            words += [key, *shlex.split(value.replace("$BABS_TMPDIR", "/here/work"))]
    words = [word.replace("${PWD}", "/here") for word in words]
    first = f"/here/{next(iter(roots.values()))}"
    parsed = parse_config([first, "/here/outputs/bsym", "participant", *words])
    assert parsed.participant_label == ("01",)
    assert parsed.session_label == (("a",) if session else ())
    assert parsed.work_dir == Path("/here/work")
    several = len(datasets) > 1
    assert parsed.modalities == (("bold", "dwi") if several else ("bold",))
    expected = {key: Path("/here", path) for key, path in roots.items()} if several else {}
    assert parsed.derivatives == expected


@pytest.mark.parametrize("name", sorted(BABS))
def test_babs_gets_its_resources(name):
    config = yaml.safe_load((RUNNERS / name).read_text("utf-8"))
    # What BABS 0.5.4 knows for Slurm, and what it takes apart.
    known = {"hard_memory_limit", "temporary_disk_space", "number_of_cpus", "hard_runtime_limit"}
    assert set(config["cluster_resources"]) == {*known, "interpreting_shell"}
    assert config["all_results_in_one_zip"] is True
    assert config["zip_foldernames"] == {"bsym": __version__.replace(".", "-")}
    assert {"script_preamble", "job_compute_space", "singularity_args"} <= set(config)


def test_babs_looks_for_what_is_said(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "none"), str(tmp_path / "out"), "participant"]) == 66
    for error in (KeyError("x"), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "parse_config", lambda _, error=error: (_ for _ in ()).throw(error))
            main([])
    said = StringIO()
    print_summary([Outcome("01", "sub-01_bold", "failed", "why")], tmp_path, said)
    heard = capsys.readouterr().err + said.getvalue()
    heard += str(explain_machine(MemoryError(), "x")) + getsource(participant)
    (name, *_) = sorted(BABS)
    config = yaml.safe_load((RUNNERS / name).read_text("utf-8"))
    for message in config["alert_log_messages"]["stderr"]:
        assert message in heard


def test_cbrain_gets_what_its_modules_need():
    made = json.loads((RUNNERS / "cbrain" / "bsym-bids.json").read_text("utf-8"))
    inputs = {entry["id"]: entry for entry in made["inputs"]}
    assert set(inputs) == set(INPUTS)
    modules = made["custom"]["cbrain:integrator_modules"]
    maker = modules["BoutiquesBidsSingleSubjectMaker"]
    assert inputs[maker["dataset_input_id"]]["type"] == "File"
    assert inputs[maker["subjects_input_id"]]["list"] is True
    assert set(modules["BoutiquesFileTypeVerifier"]) == {maker["dataset_input_id"]}
    outputs = {entry["id"]: entry["path-template"] for entry in made["output-files"]}
    assert outputs == {"output_dataset": "[OUTPUT_DIR]"}
    assert set(modules["BoutiquesOutputFileTypeSetter"]) == set(outputs)
    config = parse_config(command_line({"bids_dir": "data", "analysis_level": "participant"}, made))
    assert (config.output_dir, config.work_dir) == (Path("bsym"), Path("work"))
    assert modules["BoutiquesPostProcessingCleaner"] == [str(config.work_dir)]
