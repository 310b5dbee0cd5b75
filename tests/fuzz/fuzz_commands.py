"""The commands and the pages under fuzzing: whole calls on datasets in which files went wrong."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_binary import _damaged, _image, _weights_setup
from fuzz_case import Nonsense, Target, must
from fuzz_mutations import MARKUP, PLACES, TEXTS, as_json, changed, of_table, scrambled
from fuzz_texts import (
    _CARD,
    _COLUMNS,
    _DESCRIPTION,
    _DWI,
    _FILTERS,
    _PARTICIPANTS,
    _SIDECAR,
    _as_yaml,
    _confounds_text,
    _gradient_texts,
)
from written_outputs import correlations, write_run, write_scan

from bsym_bids import atlas
from bsym_bids.errors import BsymError
from bsym_bids.outputs.tables import Matrix

#: Exit codes that an explained failure may have; 70 is a fault of the program.
EXPLAINED = {0, 1, 16, 18, 64, 65, 66, 73, 74}
_PEOPLE = 12
#: Where links of pages lead: within the page, to files beside it, and to references.
_OWN_LINK = re.compile(r"#|data:image/png|data:,|[\w%.-][\w%./~-]*$|https://doi")


def _called(call: Any, arguments: list[str]) -> str:
    """Call a command in this process; return what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call(arguments)
        except SystemExit as error:
            code = error.code
    logging.getLogger("bsym_bids").handlers.clear()
    written = out.getvalue() + err.getvalue()
    written.encode("utf-8")  # a terminal takes nothing else
    if code not in EXPLAINED:
        raise Nonsense(f"exit code {code}: {err.getvalue()[-300:]}")
    must("Traceback" not in written, "a traceback")
    must("\x1b" not in written, "an escape sequence for terminals")
    return written


# --- bsym-bids, dry runs -------------------------------------------------------------------------


def _tree_setup(folder: Path) -> Path:
    root = folder / "good"
    files: dict[str, bytes | str] = {
        "dataset_description.json": json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}),
        "participants.tsv": _PARTICIPANTS,
    }
    derivatives = "derivatives/fmriprep"
    files[f"{derivatives}/dataset_description.json"] = json.dumps(_DESCRIPTION)
    series = gzip.compress(_image((9, 13, 9, 3), np.diag([16.0, 16, 16, 1])), 1)
    for label in ("01", "02"):
        stem = f"{derivatives}/sub-{label}/func/sub-{label}_task-rest"
        space = f"{stem}_space-MNI152NLin6Asym"
        files[f"{space}_desc-preproc_bold.nii.gz"] = series
        files[f"{space}_desc-preproc_bold.json"] = json.dumps(_SIDECAR)
        files[f"{space}_desc-brain_mask.nii.gz"] = series
        files[f"{stem}_desc-confounds_timeseries.tsv"] = _confounds_text()
        files[f"{stem}_desc-confounds_timeseries.json"] = "{}"
        dwi = f"sub-{label}/dwi/sub-{label}_dwi"
        bvals, bvecs = _gradient_texts()
        files[f"{dwi}.nii.gz"] = series
        files[f"{dwi}.bval"], files[f"{dwi}.bvec"] = bvals, bvecs
        files[f"{dwi}.json"] = json.dumps(_DWI)
        files[f"sub-{label}/anat/sub-{label}_T1w.nii.gz"] = series
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def _spoil(rng: Random, root: Path) -> None:
    """Change some files of a dataset, or put others there."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    for _ in range(rng.choice([1, 2, 4])):
        path = rng.choice(paths)
        if not path.is_file() or path.is_symlink():
            continue
        match rng.randrange(10):
            case 0:
                path.unlink()
                path.symlink_to(rng.choice(["/dev/zero", "/nowhere", "/etc", "..", path.name]))
            case 1:
                name = rng.choice(
                    ["<b>x", "a\nb", "..", "x" * 200, "\udcff", "\x1b[2J", "sub-01_sub-02", " "]
                )
                with contextlib.suppress(OSError):
                    path.rename(path.with_name(f"{name}{path.name}"))
            case 2:
                path.unlink()
                path.mkdir()
            case 3:
                with contextlib.suppress(OSError):
                    path.parent.rename(path.parent.with_name(rng.choice(["func ", "x<b>", "sub-"])))
            case _ if path.suffix == ".json":
                with contextlib.suppress(ValueError):  # it was changed before
                    document = json.loads(path.read_bytes())
                    path.write_bytes(as_json(rng, changed(rng, document)))
            case _ if path.suffix in (".tsv", ".bval", ".bvec"):
                separator = "\t" if path.suffix == ".tsv" else " "
                with contextlib.suppress(ValueError):
                    path.write_bytes(of_table(rng, path.read_text(), separator))
            case _:
                path.write_bytes(_damaged(rng, _image((9, 13, 9, 3), np.diag([16.0, 16, 16, 1]))))


def _dry_run(folder: Path, rng: Random) -> None:
    from bsym_bids.cli import main

    root, out = folder / "data", folder / "out"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder / "good", root)
    _spoil(rng, root)
    arguments = [str(root), str(out), "participant", "--dry-run", "--model", "untrained"]
    match rng.randrange(6):
        case 0:
            path = folder / "filter.json"
            path.write_bytes(as_json(rng, changed(rng, _FILTERS)))
            arguments += ["--bids-filter-file", str(path)]
        case 1:
            option = rng.choice(["--participant-label", "--task-id", "--run-id", "--session-label"])
            label = rng.choice([t for t in TEXTS if t and "\x00" not in t and t[0] != "-"])
            arguments += [option, label]
        case 2:
            arguments += ["--skip-bids-validation", "--modalities", "bold"]
        case 3:
            arguments += ["--derivatives", f"x={root / 'derivatives' / 'fmriprep'}"]
    _called(main, arguments)
    must(not out.exists(), "a dry run wrote something")


# --- bsym-model ----------------------------------------------------------------------------------


def _model_setup(folder: Path) -> Any:
    import hashlib

    _, _, paths = _weights_setup(folder)
    heads = {f"{name}_heads": 2 for name in ("spatial", "temporal", "perceiver", "structural")}
    files = {
        branch: {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for branch, path in paths.items()
    }
    return folder, _CARD | {"files": files, "network": heads}, paths


def _model(state: Any, rng: Random) -> None:
    from bsym_bids.model.cli import main

    folder, card, paths = state
    if rng.random() < 0.5:
        (folder / "model.yaml").write_bytes(_as_yaml(rng, changed(rng, card)))
    else:
        (folder / "model.yaml").write_text(json.dumps(card))
    path = rng.choice(list(paths.values()))
    content = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(scrambled(rng, content))
    try:
        command = rng.choice(["verify", "info"])
        _called(main, [command, "lab-x", "--model-dir", str(folder)])
    finally:
        path.write_bytes(content)


def _check_setup(folder: Path) -> Any:
    out = folder / "out"
    names = write_run(out, "01")
    series = np.random.default_rng(0).random((20, 450))
    Matrix(series, atlas.roi_names()).write(names.path("denoised"))
    table = names.path("denoised")
    return out, table, table.read_text(), json.loads(table.with_suffix(".json").read_text())


def _check(state: Any, rng: Random) -> None:
    from bsym_bids.model.cli import main

    out, table, text, sidecar = state
    is_table = rng.random() < 0.5
    table.write_bytes(of_table(rng, text) if is_table else text.encode())
    document = json.dumps(sidecar).encode() if is_table else as_json(rng, changed(rng, sidecar))
    table.with_suffix(".json").write_bytes(document)
    _called(main, ["check", str(out), "--model", "untrained", "--print-only"])


# --- the group level -----------------------------------------------------------------------------


def _study_setup(folder: Path) -> Path:
    bids, out = folder / "bids", folder / "good"
    bids.mkdir()
    (bids / "dataset_description.json").write_text("{}")
    matrix = correlations()
    for index in range(_PEOPLE):
        write_run(out, f"{index:02}", matrix if index == 0 else None)
    names = write_run(out, "00", matrix)
    for index in range(1, _PEOPLE):
        write_run(out, f"{index:02}")
        other = write_run(out, f"{index:02}")
        for key in ("connectivity", "run_quality"):
            for path, source in ((other.path(key), names.path(key)),):
                shutil.copy(source, path)
                shutil.copy(source.with_suffix(".json"), path.with_suffix(".json"))
    return folder


def _study(folder: Path, rng: Random) -> None:
    from bsym_bids.cli import main

    bids, out = folder / "bids", folder / "out"
    if not out.exists():
        shutil.copytree(folder / "good", out)
    (bids / "participants.tsv").write_bytes(of_table(rng, _PARTICIPANTS))
    (bids / "participants.json").write_bytes(as_json(rng, changed(rng, _COLUMNS)))
    path = rng.choice(sorted(out.rglob("*.json")))
    content = path.read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(as_json(rng, changed(rng, json.loads(content))))
    column = rng.choice(["age", "sex", "site", "age", "x:age", *PLACES[:3], MARKUP[0]])
    options = rng.choice([[], ["--group-by", "site"], ["--task-type", "classification"]])
    arguments = [str(bids), str(out), "group", "--dry-run", "--predict", column, *options]
    try:
        _called(main, [*arguments, "--model-dir", str(folder / "nothing")])
    finally:
        path.write_bytes(content)


# --- pages ---------------------------------------------------------------------------------------


class _Seen(HTMLParser):
    """Complains about elements and attributes that no page of ours has."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        must(tag not in ("img", "iframe", "object", "embed", "base", "b"), f"<{tag}>")
        for name, value in attrs:
            must(not name.startswith("on"), f"{name} in <{tag}>")
            if name in ("href", "src", "xlink:href", "action"):
                must(_OWN_LINK.match(value or "") is not None, f"{name}={value!r}")


def _pages_setup(folder: Path) -> Path:
    out = folder / "good"
    fc = correlations()
    write_run(out, "01", fc, embedding=np.random.default_rng(0).random((450, 8)), similarity=fc)
    counts = np.random.default_rng(0).integers(0, 9, (450, 450))
    write_scan(out, "01", (counts + counts.T).astype(float))
    logs = out / "logs" / "sub-01"
    logs.mkdir(parents=True)
    (logs / "crash-x.txt").write_text("Traceback\n  x\nValueError: x\n")
    (logs / "record.json").write_text(json.dumps(_RECORD))
    (out / "logs" / "20260101T000000_aaaaaaaa_summary.tsv").write_text(_SUMMARY)
    (out / "dataset_description.json").write_text(json.dumps(_DESCRIPTION))
    return folder


_RECORD = {
    "label": "01",
    "version": "0.1",
    "call": "x",
    "series": [
        {
            "label": "sub-01_task-rest_space-MNI152NLin6Asym",
            "kind": "bold",
            "status": "failed",
            "reason": "because",
            "hint": "do",
            "files": {"series": "fmriprep:sub-01/x.nii.gz"},
            "route": ["first"],
        }
    ],
    "skipped": [["raw:sub-01/x", "reason"]],
}
_SUMMARY = (
    "participant\trun\tstatus\treason\thint\tmodel_domain\n"
    "01\tsub-01_task-rest_space-MNI152NLin6Asym\tfailed\tbecause\tn/a\tn/a\n"
    "02\tn/a\tfailed\tno\tdo\tn/a\n"
)


def _pages(folder: Path, rng: Random) -> None:
    from bsym_bids.methods.facts import facts_of
    from bsym_bids.methods.text import paragraphs
    from bsym_bids.methods.writing import markdown_of, page_of
    from bsym_bids.reports.group_page import write_group_page
    from bsym_bids.reports.participant_page import render_participant

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "good", out)
    for path in rng.sample(sorted(out.rglob("*.json")), 3):
        document = json.loads(path.read_text())
        for _ in range(3):
            document = changed(rng, document)
        if isinstance(document, dict):
            document["Notes"] = [str(rng.choice(TEXTS)) for _ in range(3)]
            document["Warning"] = str(rng.choice(MARKUP))
        path.write_bytes(as_json(rng, document))
    for path in rng.sample(sorted([*out.rglob("*_qc.tsv"), *out.rglob("*summary.tsv")]), 1):
        path.write_bytes(of_table(rng, path.read_text()))
    (out / "logs" / "sub-01" / "crash-x.txt").write_text(rng.choice(MARKUP) * 3)
    if rng.random() < 0.3:
        other = out / "logs" / f"sub-{rng.choice(['<b>x', 'x y', 'x<'])}"
        other.mkdir()
        (other / "record.json").write_bytes(as_json(rng, changed(rng, _RECORD)))
    facts = facts_of(out)
    page_of(facts).encode()
    text = markdown_of(paragraphs(facts))
    must(not re.search(r"(?<!\\)<(?!https)", text), "markup in CITATION.md")
    if rng.random() < 0.3:
        page = render_participant(out, "01")
        page.encode()
        must(_Seen(page).scripts == 0, "a script in a page")
    write_group_page(out, folder / "cache")
    page = (out / "group_participants.html").read_text("utf-8")
    must(_Seen(page).scripts == 2, "another script in a page")


def _records_setup(folder: Path) -> Path:
    logs = folder / "logs" / "sub-01"
    logs.mkdir(parents=True)
    return folder


def _records(out: Path, rng: Random) -> None:
    """Make pages of what is on record alone, which has no figures."""
    from bsym_bids.outputs.participant_record import ParticipantRecord, Series, write_record
    from bsym_bids.reports.group_page import write_group_page
    from bsym_bids.reports.participant_page import render_participant

    path = out / "logs" / "sub-01" / "record.json"
    path.write_bytes(as_json(rng, changed(rng, changed(rng, _RECORD))))
    summary = out / "logs" / "20260101T000000_aaaaaaaa_summary.tsv"
    summary.write_bytes(of_table(rng, _SUMMARY))
    (out / "dataset_description.json").write_bytes(as_json(rng, changed(rng, _DESCRIPTION)))
    page = ""
    with contextlib.suppress(BsymError):
        page = render_participant(out, "01")
    must(_Seen(page).scripts == 0, "a script in a page")
    write_record(out, ParticipantRecord("01", series=(Series("x", "bold", "done"),)))
    render_participant(out, "01").encode("utf-8", "backslashreplace")
    write_group_page(out, out / "cache")
    page = (out / "group_participants.html").read_text("utf-8")
    must(_Seen(page).scripts == 2, "another script in a page")


TARGETS = (
    Target("bsym-bids participant --dry-run", _tree_setup, _dry_run, 8, 30.0),
    Target("bsym-model verify, info", _model_setup, _model, 4, 20.0),
    Target("bsym-model check", _check_setup, _check, 1, 60.0),
    Target("bsym-bids group --dry-run", _study_setup, _study, 3, 30.0),
    Target("records", _records_setup, _records, 10, 20.0),
    Target("pages", _pages_setup, _pages, 2, 60.0),
)
