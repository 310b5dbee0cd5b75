"""Readers of text files under fuzzing: sidecars, tables, gradients, recipes, settings, cards."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tomli_w
import yaml
from fuzz_case import Target, must
from fuzz_mutations import (
    TEXTS,
    as_json,
    changed,
    encoded,
    hostile,
    of_table,
    scrambled,
    with_long_numbers,
)

from bsym_bids.bold.confounds import read_confounds
from bsym_bids.bold.nuisance import load_strategy
from bsym_bids.config import make_config
from bsym_bids.dwi.gradients import LARGEST_B, check_gradients, read_gradients
from bsym_bids.dwi.presets import load_preset
from bsym_bids.errors import BsymError, InputMissingError
from bsym_bids.inputs.bold import Candidate, complete
from bsym_bids.inputs.datasets import check_bids, find_derivatives, is_qsiprep
from bsym_bids.inputs.files import entities_of
from bsym_bids.inputs.records import Derivatives
from bsym_bids.inputs.selection import check_filters, fits, read_filter_file
from bsym_bids.inputs.series import Series, acquired, count_weighted
from bsym_bids.methods.facts import source_programs
from bsym_bids.model.cards import own_card
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.dataset import check_location, describe_dataset, linked_folders
from bsym_bids.prediction.column_values import class_names, in_class_order
from bsym_bids.prediction.phenotypes import read_phenotypes
from bsym_bids.prediction.records import Unit
from bsym_bids.prediction.targets import (
    categorical_column,
    group_labels,
    make_target,
    numeric_column,
)

N_ROWS, N_VOLUMES = 30, 10
_STEM = "sub-01_task-rest"
_SIDECAR = {
    "RepetitionTime": 2.0,
    "TaskName": "rest",
    "SliceTiming": [0.0, 0.5],
    "SkullStripped": False,
    "Sources": ["bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz"],
    "IntendedFor": "bids::sub-01/func/x.nii.gz",
}
_DWI = {
    "PhaseEncodingDirection": "j-",
    "TotalReadoutTime": 0.05,
    "IntendedFor": ["dwi/x.nii.gz"],
    "EchoTime": 2.0,
}
_DESCRIPTION = {
    "Name": "x",
    "BIDSVersion": "1.8.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "2.0"}],
    "PipelineDescription": {"Name": "y"},
    "DatasetLinks": {"raw": "file:///data/raw", "fmriprep": "file:///data/fmriprep"},
}


def _write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- sidecars ------------------------------------------------------------------------------------


def _bold_setup(folder: Path) -> Any:
    series = f"{_STEM}_space-MNI152NLin6Asym_desc-preproc_bold"
    path = _write(folder / "sub-01" / "func" / f"{series}.nii.gz", "")
    return Candidate(path, entities_of(path), Derivatives("fmriprep", folder))


def _bold_sidecar(candidate: Any, rng: Random) -> None:
    path = candidate.path.with_name(candidate.path.name.replace(".nii.gz", ".json"))
    path.write_bytes(as_json(rng, changed(rng, _SIDECAR)))
    seconds = complete(candidate).repetition_time
    must(seconds is None or (type(seconds) is float and 0 < seconds < 100), f"TR {seconds!r}")


def _dwi_setup(folder: Path) -> Any:
    path = _write(folder / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", "")
    _write(path.with_name("sub-01_dwi.bval"), "0 1000 1000")
    _write(path.with_name("sub-01_dwi.bvec"), "0 1 0\n0 0 1\n0 0 0")
    return Series(path, Derivatives("raw", folder))


def _dwi_sidecar(series: Any, rng: Random) -> None:
    path = series.path.with_name("sub-01_dwi.json")
    path.write_bytes(as_json(rng, changed(rng, _DWI)))
    image = acquired(series)
    must(image.phase_encoding in (None, "i", "i-", "j", "j-", "k", "k-"), "phase encoding")
    time = image.readout_time
    must(time is None or (type(time) is float and 0 < time < 1), f"readout time {time!r}")


def _description_setup(folder: Path) -> Path:
    for name in ("data/derivatives/x/sub-01/func", "out"):
        (folder / name).mkdir(parents=True)
    return folder


def _description(folder: Path, rng: Random) -> None:
    content = as_json(rng, changed(rng, _DESCRIPTION))
    data, out = folder / "data", folder / "out"
    for place in (data, data / "derivatives" / "x", out):
        (place / "dataset_description.json").write_bytes(content)
    linked_folders(out)
    source_programs(out)
    for found in find_derivatives(data):
        is_qsiprep(found)
    describe_dataset(out, {"raw": data})
    json.loads((out / "dataset_description.json").read_text())
    check_location(data, out, folder / "work")
    check_bids(data, skip_validation=rng.random() < 0.5)


_FILTERS = {"bold": {"task": "rest", "session": ["a", None], "run": 1}, "dwi": {"run": "01"}}


def _filter_file(folder: Path, rng: Random) -> None:
    path = _write(folder / "filter.json", as_json(rng, changed(rng, _FILTERS)))
    series = folder / "sub-01" / "dwi" / "sub-01_run-01_dwi.nii.gz"
    for query in ("bold", "dwi", "t1w"):
        filters = read_filter_file(path, query)
        check_filters(query, filters)
        fits(series, filters)


# --- gradients -----------------------------------------------------------------------------------


def _gradient_texts() -> tuple[str, str]:
    vectors = np.random.default_rng(0).standard_normal((3, N_VOLUMES))
    vectors /= np.linalg.norm(vectors, axis=0)
    vectors[:, 0] = 0
    bvals = " ".join(["0"] + ["1000"] * (N_VOLUMES - 1)) + "\n"
    return bvals, "\n".join(" ".join(f"{x:.6f}" for x in row) for row in vectors) + "\n"


def _gradients(folder: Path, rng: Random) -> None:
    bvals, bvecs = _gradient_texts()
    which = rng.randrange(3)
    bval = _write(folder / "x.bval", of_table(rng, bvals, " ") if which != 1 else bvals)
    bvec = _write(folder / "x.bvec", of_table(rng, bvecs, " ") if which != 0 else bvecs)
    if rng.random() < 0.2:
        target = rng.choice([bval, bvec])
        target.write_bytes(scrambled(rng, target.read_bytes()))
    must(count_weighted(bval) >= 0, "count of weighted volumes")
    found, _ = read_gradients(bval, bvec, N_VOLUMES)
    must(found.bvals.shape == (N_VOLUMES,) and found.bvecs.shape == (N_VOLUMES, 3), "shapes")
    must(bool(np.isfinite(found.bvals).all() and np.isfinite(found.bvecs).all()), "not finite")
    must(found.bvals.min() >= 0 and found.bvals.max() <= LARGEST_B, f"b {found.bvals}")
    lengths = np.linalg.norm(found.bvecs, axis=1)
    must(bool(((lengths == 0) | (abs(lengths - 1) < 1e-6)).all()), f"lengths {lengths}")
    check_gradients(found, "x")


# --- tables --------------------------------------------------------------------------------------

_CONFOUNDS = ("trans_x", "trans_x_derivative1", "rot_z", "csf", "white_matter", "a_comp_cor_00")
_RECIPE = """
name: mine
columns: [trans_x, trans_x_derivative1, rot_z_power2, csf, "white_*", "/cosine.*|csf/"]
acompcor: {masks: [CSF], components: 1}
high_pass: 0.01
"""


def _confounds_text() -> str:
    draw = np.random.default_rng(0)
    header = [*_CONFOUNDS, "framewise_displacement", "non_steady_state_outlier00"]
    rows = ["\t".join(header)]
    for row in range(N_ROWS):
        cells = [f"{x:.4f}" for x in draw.standard_normal(len(_CONFOUNDS) + 1)]
        cells[1] = "n/a" if row == 0 else cells[1]
        rows.append("\t".join([*cells, str(int(row == 0))]))
    return "\n".join(rows) + "\n"


def _confounds_setup(folder: Path) -> Any:
    return folder, load_strategy(_write(folder / "mine.yaml", _RECIPE)), load_strategy("none")


def _confounds(state: Any, rng: Random) -> None:
    folder, mine, none = state
    path = folder / f"{_STEM}_desc-confounds_timeseries.tsv"
    document: Any = {"a_comp_cor_00": {"Mask": "CSF", "Retained": True}}
    text = _confounds_text()
    if rng.random() < 0.3:
        path.write_text(text)
        path.with_suffix(".json").write_bytes(as_json(rng, changed(rng, document)))
    else:
        path.write_bytes(of_table(rng, text))
        path.with_suffix(".json").write_text(json.dumps(document))
    read_confounds(path, none, N_ROWS)
    found = read_confounds(path, mine, N_ROWS)
    must(bool(np.isfinite(found.values).all()), "regressors are not finite")
    must(found.values.shape == (N_ROWS, len(found.names)), "shape")
    fd = found.framewise_displacement
    must(fd is None or bool((np.isfinite(fd) & (fd >= 0)).all()), "displacement")


_PARTICIPANTS = "participant_id\tage\tsex\tsite\n" + "".join(
    f"sub-{index:02}\t{20 + index * 1.5}\t{'FM'[index % 2]}\tsite{index % 3}\n"
    for index in range(N_ROWS)
)
_SESSIONS = "participant_id\tsession_id\tage\n" + "".join(
    f"sub-{index:02}\tses-{session}\t{index + session}\n"
    for index in range(9)
    for session in (1, 2)
)
_COLUMNS = {
    "age": {"Description": "Age", "Units": "year", "LongName": "x"},
    "sex": {"Levels": {"F": "female", "M": {"Description": "male"}}},
    "site": {"Description": "Where"},
}


def _phenotypes(folder: Path, rng: Random) -> None:
    paths = [folder / "participants.tsv", folder / "phenotype" / "x.tsv", folder / "sessions.tsv"]
    texts = [_PARTICIPANTS, _PARTICIPANTS.replace("age", "total"), _SESSIONS]
    which = rng.randrange(4)
    for index, (path, text) in enumerate(zip(paths, texts, strict=True)):
        _write(path, of_table(rng, text) if which == index else text)
    document = as_json(rng, changed(rng, _COLUMNS)) if which == 3 else json.dumps(_COLUMNS)
    _write(folder / "participants.json", document)
    tables = read_phenotypes(folder)
    units = [Unit(f"{index:02}") for index in range(N_ROWS)]
    name = rng.choice(["age", "sex", "site", "total", "participants:age", "x:total", "Age", "zzz"])
    column = tables.column(name)
    for task in (None, "regression", "classification"):
        with suppress(BsymError):
            target = make_target(column, units, task)
            must(not np.isinf(target.values).any(), "infinite label")
            must(target.labelled.sum() >= 10, "labels")
    in_class_order(set(class_names(column).values()), column)
    categorical_column(column, units)
    group_labels(column, units)
    with suppress(BsymError):
        must(not np.isinf(numeric_column(column, units)).any(), "infinite number")


# --- recipes, settings, cards --------------------------------------------------------------------


def _as_yaml(rng: Random, document: Any) -> bytes:
    """Return a document as YAML, sometimes with what only YAML has."""
    try:
        text = with_long_numbers(lambda: yaml.safe_dump(document, allow_unicode=True))
    except RecursionError:
        text = "a: " + "[" * 3000
    match rng.randrange(16):
        case 0:
            tag = rng.choice(["int", "float", "bool", "timestamp", "binary", "null", "omap", "set"])
            text = text.replace(": ", f": !!{tag} ", 1)
        case 1:
            text += rng.choice(["x: &a [*a]\n", "x: *nobody\n", "<<: {name: 1}\n", "<<: 3\n"])
        case 2:
            text += "name: &n0 [x, x]\n" + _laughs(rng)
        case 3:
            text = f"!!python/object/apply:os.system ['touch {rng.random()}']\n"
        case 4:
            text = text.replace(": ", rng.choice([": 2020-13-45 ", ": 0x" + "f" * 5000 + " "]), 1)
        case 5:
            text = text.replace("name: ", "name: " + "[" * 2000, 1)
        case 6:
            text += "? [a, b]\n: 1\n? {c: d}\n: 2\n"
    return encoded(rng, text)


def _laughs(rng: Random) -> str:
    """Return aliases of aliases, of which there are a billion when they are followed."""
    if rng.random() < 0.5:
        lines = [f"x{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 9)}]" for i in range(1, 9)]
        return "\n".join(lines) + "\ncolumns: *n8\ncitation: *n8\ndescription: *n8\n"
    lines = ["m0: &m0 {name: x}"]
    lines += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def _nuisance(state: Any, rng: Random) -> None:
    folder, document = state
    path = _write(folder / "mine.yaml", _as_yaml(rng, changed(rng, document)))
    found = load_strategy(path)
    must(isinstance(found.name, str), "name")
    must(all(isinstance(entry, str) for entry in (*found.columns, *found.citation)), "columns")
    for value in (found.high_pass, found.low_pass):
        must(type(value) is float and 0 <= value < math.inf, f"frequency {value!r}")


def _nuisance_setup(folder: Path) -> Any:
    return folder, yaml.safe_load(_RECIPE) | {"citation": ["x"], "description": "text"}


_PRESET_KEYS = {"base": "fast", "reliability": 0.9, "mrtrix3": {"step": 0.4}, "voxel_size": 2.0}


def _preset_setup(folder: Path) -> Any:
    import bsym_bids

    packaged = Path(bsym_bids.__file__).parent / "data" / "tractography" / "full.yaml"
    return folder, yaml.safe_load(packaged.read_text())


def _preset(state: Any, rng: Random) -> None:
    folder, whole = state
    document = rng.choice([whole, _PRESET_KEYS])
    path = _write(folder / "mine.yaml", _as_yaml(rng, changed(rng, document)))
    found = load_preset(path)
    must(0 < found.reliability < 1 and found.max_streamlines >= 1, "sampling")
    must(type(found.lmax) is int and type(found.batch_size) is int, "types")
    must(0 <= found.min_length < found.max_length, "lengths")
    json.dumps(found.parameters("dipy"), allow_nan=False)


_SETTINGS: dict[str, Any] = {
    "participant_label": ["01", "sub-02"],
    "derivatives": {"fmriprep": "/data/x"},
    "nuisance": "36p",
    "high_pass": 0.01,
    "fd_threshold": 0.5,
    "min_coverage": 0.5,
    "model_tr": 2.0,
    "window_step": 50,
    "nprocs": 2,
    "mem_gb": 4.0,
    "seed": 3,
    "bids_filter_file": "filter.json",
    "space": ["fsLR"],
    "verbose": 1,
    "skip_reports": True,
}


def _settings(folder: Path, rng: Random) -> None:
    document = changed(rng, _SETTINGS)
    try:
        text = with_long_numbers(lambda: tomli_w.dumps(document))
    except (TypeError, ValueError, AttributeError, RecursionError):  # null, keys that are none
        text = tomli_w.dumps(_SETTINGS).replace("36p", rng.choice(["[" * 2000, "\\u0000/x.yaml"]))
    if rng.random() < 0.05:
        text = text.replace("= 3", "= 0x" + "f" * 5000).replace("= 2.0", "= " + "[" * 3000)
    path = _write(folder / "run.toml", encoded(rng, text))
    given = {"bids_dir": folder, "output_dir": folder / "out", "analysis_level": "participant"}
    config = make_config(given, path).with_absolute_paths()
    must(0 < config.model_tr < math.inf and 0 <= config.min_coverage <= 1, "numbers")
    must(config.high_pass is None or 0 <= config.high_pass < math.inf, "high pass")
    must(0 <= config.seed < 2**64, f"seed {config.seed}")
    must(all(type(label) is str and label for label in config.participant_label), "labels")
    load_strategy(config.nuisance)


_CARD: dict[str, Any] = {
    "name": "lab-x",
    "version": "1",
    "trained": True,
    "url": "https://example.org/x",
    "warning": "mind",
    "files": {"context": {"path": "context.pth", "sha256": "0" * 64}},
    "network": {"spatial_heads": 4, "max_hops": 2, "diffusion_theta": 0.1},
    "contract": {
        "rois": 450,
        "window_frames": 200,
        "repetition_time": 2.0,
        "repetition_time_tolerance": 0.1,
        "scaling": "robust",
        "structural_connectivity": {
            "measure": "count",
            "volume_normalised": True,
            "transform": "log10",
            "streamlines": [1e5, 1e6],
        },
    },
    "quality": {"reconstruction": {"r2": 0.5}},
    "limits": ["none"],
}


def _card(folder: Path, rng: Random) -> None:
    from bsym_bids.model.contract import check_contract, contract_deviations
    from bsym_bids.model.structural import stated_convention
    from bsym_bids.model.weights import Release

    document = changed(rng, _CARD)
    is_json = rng.random() < 0.3
    for name in ("model.yaml", "model.json"):
        (folder / name).unlink(missing_ok=True)
    name, content = "model.yaml", b""
    if is_json:
        name, content = "model.json", as_json(rng, document)
    else:
        content = _as_yaml(rng, document)
    _write(folder / name, content)
    card = own_card(folder)
    must(card is not None, "no card")
    for entry in card["files"].values():
        inside = (folder / entry["path"]).resolve()
        must(inside.is_relative_to(folder.resolve()) and inside != folder.resolve(), "path")
    release = Release(card["name"], card["version"], card["trained"], card)
    must(len(release.fingerprint) == 64 and isinstance(release.warning, str), "release")
    check_contract(release, 200)
    contract_deviations(card, 0.8, "robust")
    stated_convention(card)
    yaml.safe_dump(card)
    with suppress(InputMissingError):  # its files are not here
        resolve_release(str(card["name"]), folder, {})


_PLUGIN = {"plugin": "MultiProc", "plugin_args": {"n_procs": 2, "memory_gb": 2.0}}


def _plugin(folder: Path, rng: Random) -> None:
    from bsym_bids.workflows.execution import choose_plugin

    path = _write(folder / "plugin.yaml", _as_yaml(rng, changed(rng, _PLUGIN)))
    must(isinstance(choose_plugin(path, 1, 1.0).name, str), "name")


def _documents(folder: Path, rng: Random) -> None:
    """Read anything at all by the functions that every reader stands on."""
    from bsym_bids import untrusted

    path = folder / "anything"
    text = rng.choice([*map(str, TEXTS), "{}", "[]"])
    document = hostile(rng)
    match rng.randrange(3):
        case 0:
            _write(path, as_json(rng, document))
        case 1:
            _write(path, _as_yaml(rng, document))
        case _:
            _write(path, encoded(rng, text))
    for read in (untrusted.read_json, untrusted.read_yaml, untrusted.read_toml):
        try:
            repr(read(path))[:10]
        except ValueError:
            continue


def _same(folder: Path) -> Path:
    return folder


TARGETS = (
    Target("sidecars of BOLD series", _bold_setup, _bold_sidecar, 12),
    Target("sidecars of diffusion series", _dwi_setup, _dwi_sidecar, 12),
    Target("dataset descriptions", _description_setup, _description, 6),
    Target("filter files", _same, _filter_file, 6),
    Target("gradients", _same, _gradients, 16),
    Target("confounds", _confounds_setup, _confounds, 16),
    Target("phenotype tables", _same, _phenotypes, 14),
    Target("nuisance recipes", _nuisance_setup, _nuisance, 14),
    Target("tractography presets", _preset_setup, _preset, 10),
    Target("run settings", _same, _settings, 12),
    Target("model cards", _same, _card, 14),
    Target("plugin files", _same, _plugin, 4),
    Target("documents", _same, _documents, 8),
)
