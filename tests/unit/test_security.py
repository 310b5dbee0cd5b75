"""What is not trusted: files and servers cannot run code, write elsewhere, or take all memory."""

import ast
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

import bsym_bids
from bsym_bids import untrusted, workflows
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.bold.volumes import load_image
from bsym_bids.cohort.scaling import CohortScaling
from bsym_bids.config import RunConfig
from bsym_bids.dwi.transforms import load_volume, read_template_transform
from bsym_bids.errors import (
    BadDataError,
    BsymError,
    CannotCreateOutputError,
    InputMissingError,
    UsageError,
)
from bsym_bids.methods.facts import Facts, source_programs
from bsym_bids.methods.text import Paragraph
from bsym_bids.methods.writing import markdown_of
from bsym_bids.model.cards import own_card
from bsym_bids.model.download import Patience, Progress, _check_redirect, download_file
from bsym_bids.model.fetch import fetch_release, first_use_source
from bsym_bids.model.state_dicts import StateDict
from bsym_bids.model.weights import Release, load_model
from bsym_bids.outputs.cohort import read_cohort_scaling, write_cohort_scaling
from bsym_bids.outputs.dataset import check_location, describe_dataset, linked_folders
from bsym_bids.outputs.names import dataset_path
from bsym_bids.outputs.participant_record import read_record
from bsym_bids.outputs.publish import OutputFile, publish, write_whole
from bsym_bids.outputs.tables import Json, Table, Text
from bsym_bids.reports.group_page import write_group_page
from bsym_bids.reports.participant_page import render_participant
from bsym_bids.summary import Outcome, print_failures, write_summary
from bsym_bids.workflows.invocation import run_log

SOURCES = sorted(
    path
    for package in (bsym_bids, workflows)
    for folder in package.__path__
    for path in Path(folder).rglob("*.py")
)
#: Modules that read with a parser itself: files of the program, and of its own work folder.
OF_THE_PROGRAM = {
    "untrusted.py",
    "outputs/names.py",
    "descriptors/boutiques.py",
    "descriptors/runners.py",
    "reports/lights.py",
    "reports/measures.py",
    "slurm.py",
    "interfaces/files.py",
    "dwi/batches.py",
    "simulation/cohort_stand_ins.py",
}


# --- how files are read --------------------------------------------------------------------------


def _named(path: Path) -> str:
    return "/".join(path.parts[-2:] if path.parts[-2] != "bsym_bids" else path.parts[-1:])


def _calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Return the calls in a module: names with their dots, and keyword arguments."""
    tree = ast.parse(path.read_text("utf-8"))
    return [
        (ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=_named)
def test_nothing_reads_in_a_way_that_could_run_code_or_never_end(path):
    for name, given in _calls(path):
        if name == "np.load":
            assert ast.unparse(given.get("allow_pickle", ast.Constant(False))) == "False"
        if name == "torch.load":
            assert ast.unparse(given["weights_only"]) == "True", name
        assert "shell" not in given, name
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.unsafe_load")
        assert not name.startswith(("pickle.", "joblib.", "marshal.", "shelve.")), name
        if name in ("json.loads", "json.load", "yaml.load", "yaml.safe_load", "tomllib.loads"):
            assert _named(path) in OF_THE_PROGRAM, f"{name}: see bsym_bids.untrusted"


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_weights_cannot_run_code(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "context.pth"
    contents = [pickle.dumps(Canary(canary))]
    for new_format in (True, False):
        buffer = io.BytesIO()
        state = {"x": torch.zeros(2), "y": Canary(canary)}
        torch.save(state, buffer, _use_new_zipfile_serialization=new_format)
        contents.append(buffer.getvalue())
    for content in contents:
        path.write_bytes(content)
        sums = {"context": hashlib.sha256(content).hexdigest()}
        release = Release("x", "1", True, {"network": {}}, {"context": path}, sums)
        with pytest.raises(BadDataError, match=r"context\.pth: not a state dict"):
            load_model(release)
        assert not canary.exists()


def test_recipes_and_cards_cannot_run_code(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(BadDataError, match=r"model\.yaml: cannot be read as YAML"):
        own_card(tmp_path)
    assert not canary.exists()


# --- resources -----------------------------------------------------------------------------------


def test_one_number_cannot_stand_for_a_million_million():
    shapes = {"x": torch.zeros(1).expand(10**6, 10**6)}
    with pytest.raises(BadDataError, match="spatial: x is not an array"):
        StateDict("spatial", shapes)
    assert StateDict("spatial", {"x": torch.nn.Parameter(torch.ones(2, 3).T)})


def test_weights_do_not_inflate(tmp_path):
    path, buffer = tmp_path / "context.pth", io.BytesIO()
    torch.save({"x": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            is_data = "/data/" in entry.filename
            new.writestr(entry.filename, bytes(10**8) if is_data else old.read(entry))
    sums = {"context": hashlib.sha256(path.read_bytes()).hexdigest()}
    release = Release("x", "1", True, {"network": {}}, {"context": path}, sums)
    with pytest.raises(BadDataError, match="inflate"):
        load_model(release)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((32767, 32767, 32767), "which no image of MRI has"),
        ((32767, 10, 10), "which no image of MRI has"),
        ((2000, 2000, 2000), "which no image of MRI has"),
        ((600, 600, 600, 300), "cannot hold so many"),
        ((10, -10, 10), "which no image of MRI has"),
    ],
)
def test_headers_that_ask_for_too_much(tmp_path, shape, said):
    path = tmp_path / "bomb.nii.gz"
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    nib.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    dims = np.ones(8, "<i2")
    dims[0], dims[1 : 1 + len(shape)] = len(shape), shape
    content[40:56] = dims.tobytes()
    (tmp_path / "bomb.nii").write_bytes(content)
    path = tmp_path / "bomb.nii"
    with pytest.raises(BadDataError, match=said) as error:
        load_image(path)
    assert str(error.value).startswith(f"{path}: its header says")


@pytest.mark.parametrize(("edge", "said"), [(1e-4, "edges of"), (1e6, "edges of"), (0, "inverse")])
def test_voxels_of_no_size(tmp_path, edge, said):
    image = nib.Nifti1Image(np.ones((9, 9, 9), np.int16), np.eye(4))
    image.header.set_sform(np.diag([edge, 2, 2, 1]), code=1)
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.int16), None, image.header), tmp_path / "x.nii")
    with pytest.raises(BadDataError, match=said):
        load_volume(tmp_path / "x.nii")


def test_a_transform_of_a_few_bytes_cannot_take_all_memory(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup/1")
        group["TransformType"] = [b"AffineTransform_double_3_3"]
        group.create_dataset("TransformParameters", shape=(10**12,), dtype="f8", chunks=(1000,))
    assert path.stat().st_size < 10**5
    with pytest.raises(BadDataError, match="larger than a transform can be"):
        read_template_transform(path)


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/x")])
def test_a_transform_has_no_links(tmp_path, link):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("TransformGroup")["1"] = link
    with pytest.raises(BadDataError, match="1 is a link"):
        read_template_transform(path)


# --- where files go ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "a\0b", "年齢"]
)
def test_columns_name_no_other_place(tmp_path, name):
    for key in ("predictions", "prediction_scores", "prediction_page"):
        path = dataset_path(tmp_path, key, name)
        assert path.parent == tmp_path and path.name.isprintable()
    assert dataset_path(tmp_path, "predictions", "年齢") != dataset_path(
        tmp_path, "predictions", "身長"
    )
    longest = dataset_path(tmp_path, "predictions", "x" * 5000)
    assert len(longest.name) < 200 and longest != dataset_path(tmp_path, "predictions", "x" * 5001)


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../../x", ".", "", " ", "..", "a\\..\\x", ".fetch.lock", "a\0", "a/"]
)
def test_cards_name_no_other_place(tmp_path, path):
    files = {"context": {"path": path, "sha256": "0" * 64}}
    card = {"name": "x", "version": "1", "trained": True, "network": {}, "files": files}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(card))
    if path == "a/":  # is a, and no folder
        assert own_card(tmp_path)
        return
    with pytest.raises(BadDataError, match=r"model\.yaml: files\.context"):
        own_card(tmp_path)


def test_outputs_are_not_written_through_links(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "sub-01").mkdir(parents=True)
    (out / "sub-01" / "func").symlink_to(elsewhere)
    (out / "logs").symlink_to(elsewhere)
    path = out / "sub-01" / "func" / "sub-01_x.tsv"
    with pytest.raises(CannotCreateOutputError, match="func: is a link"):
        publish([OutputFile(path, Table({"a": [1]}), {})], "f")
    with pytest.raises(CannotCreateOutputError, match="logs: is a link"):
        write_whole(out / "logs" / "sub-01" / "record.json", Json({}))
    assert list(elsewhere.iterdir()) == []


def test_logs_are_not_written_through_links_either(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "logs").symlink_to(tmp_path / "elsewhere")
    config = RunConfig(tmp_path, tmp_path / "out", "participant")
    with pytest.raises(CannotCreateOutputError, match="logs: is a link"), run_log(config):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("text", ["a" + ".a" * 5000 + " = 1", "[a" + ".a" * 5000 + "]"])
def test_keys_do_not_take_memory_by_the_square_of_their_length(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(f"seed = 1.5\n{text}\n")
    with pytest.raises(ValueError, match="nested more than"):
        untrusted.read_toml(path)
    path.write_text("model_dir = '" + "a." * 100 + "'\n")
    assert len(untrusted.read_toml(path)["model_dir"]) == 200


def test_readers_are_watched_under_a_limit_of_time_too():
    code = (
        "import ctypes, resource\n"
        "from bsym_bids.untrusted import try_apart\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (15, 15))\n"
        "try_apart(lambda: ctypes.string_at(0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "it is damaged: reading it ended with SIGSEGV" in done.stderr


def test_files_of_the_dataset_are_not_written_through_links(tmp_path):
    out, private = tmp_path / "out", tmp_path / "private"
    out.mkdir()
    private.write_text("alias x=y\n")
    for name in (".bidsignore", "README.md"):
        (out / name).symlink_to(private)
    (out / "atlas-Schaefer2018Tian2020_description.json").symlink_to(tmp_path / "nowhere")
    describe_dataset(out, {})
    assert private.read_text() == "alias x=y\n" and not (tmp_path / "nowhere").exists()
    assert "alias" not in (out / ".bidsignore").read_text()
    assert "work" in (out / ".bidsignore").read_text().splitlines()


def test_lines_of_a_user_in_bidsignore_stay(tmp_path):
    (tmp_path / ".bidsignore").write_text("mine\n")
    describe_dataset(tmp_path, {})
    assert (tmp_path / ".bidsignore").read_text().splitlines()[0] == "mine"


def test_the_work_folder_of_someone_else_is_refused(tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "bsym").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: (work / "bsym").stat().st_uid + 1)
    with pytest.raises(CannotCreateOutputError, match="belongs to another user"):
        check_location(tmp_path / "bids", tmp_path / "out", work)
    monkeypatch.undo()
    check_location(tmp_path / "bids", tmp_path / "out", work)


@pytest.mark.parametrize(
    "links",
    [
        {"raw": "file://["},
        {"raw": 3, "x": None},
        {"x'; script-src *; '": "file:sha256-AB"},
        {"a b": "file:///data"},
        "file:///etc",
        [["raw"]],
    ],
)
def test_links_of_a_dataset_that_are_none(tmp_path, links):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"DatasetLinks": links}))
    assert linked_folders(tmp_path) == {}
    assert source_programs(tmp_path) == {}
    describe_dataset(tmp_path, {"raw": tmp_path / "raw"})
    assert linked_folders(tmp_path)["raw"] == str(tmp_path / "raw")


# --- what is shown -------------------------------------------------------------------------------

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_pages_escape_what_is_on_record(tmp_path):
    logs = tmp_path / "logs"
    series = {
        "label": MARKUP,
        "kind": "bold",
        "status": "failed",
        "reason": MARKUP,
        "hint": MARKUP,
        "files": {MARKUP: MARKUP},
        "route": [MARKUP],
    }
    record = {"version": MARKUP, "call": "x", "series": [series], "skipped": [[MARKUP, MARKUP]]}
    write_whole(logs / "sub-01" / "record.json", Json(record))
    (logs / "sub-01" / "crash-x.txt").write_text(f"</pre>{MARKUP}")
    page = render_participant(tmp_path, "01")
    assert page.count("alert(1)") > 8
    write_summary([Outcome("01", MARKUP, "failed", MARKUP, MARKUP)], logs / "x_summary.tsv")
    write_group_page(tmp_path, tmp_path / "cache")
    for text in (page, (tmp_path / "group_participants.html").read_text("utf-8")):
        assert "<script>alert" not in text and "<img" not in text and "</pre><" not in text


@pytest.mark.parametrize(
    "change",
    [{"series": 3}, {"series": [{}]}, {"series": [[]]}, {"skipped": [1]}, {"version": None}, {}],
)
def test_records_that_are_none(tmp_path, change):
    path = tmp_path / "logs" / "sub-01" / "record.json"
    write_whole(path, Json({"version": "1", "call": "x", "series": [], "skipped": []} | change))
    assert isinstance(read_record(tmp_path, "01").series, tuple)


def test_markdown_has_no_markup_out_of_files():
    text = "by <b>x</b> [a](javascript:b)\n\n# Heading\n\n- item"
    found = markdown_of([Paragraph("T", text)])
    assert "<b>" not in found.replace("\\<", "") and "[a](" not in found
    assert "\n# Heading" not in found and "\n- item" not in found
    assert isinstance(Facts(), Facts)


def test_terminals_get_no_commands(capsys):
    error = BadDataError("a\x1b[2J\x07\u202e\ud800: no\nsecond", "h\x9b")
    assert str(error) == "a\\x1b[2J\\x07\\u202e\\ud800: no\nsecond" and error.hint == "h\\x9b"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    print_failures([Outcome("01", "n/a", "failed", "x\x1b]0;y\x07", "\udcff")])
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\\x1b]0;y" in said and said.encode()


def test_messages_have_a_sensible_length():
    assert len(str(UsageError("x" * 10**6))) < 3000


def test_halves_of_characters_do_not_keep_files_from_being_written(tmp_path):
    for content in (Json({"a": "\ud800"}), Text("\ud800"), Table({"\ud800": ["\udcff"]})):
        content.write(tmp_path / "x")
        assert (tmp_path / "x").read_text("utf-8")
    Json({"a": "\ud800"}).write(tmp_path / "x")
    assert json.loads((tmp_path / "x").read_text()) == {"a": "\ud800"}


def test_cells_end_where_they_are_meant_to(tmp_path):
    Table({"a\tb": ["c\td\ne", "f\u2028g"]}).write(tmp_path / "x.tsv")
    assert (tmp_path / "x.tsv").read_text().splitlines() == ["a b", "c d e", "f g"]


# --- downloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sent", "may_leave", "is_followed"),
    [
        ("https://a.org/x", "https://a.org/y", False, True),
        ("https://a.org/x", "https://b.org/x", False, False),
        ("https://a.org/x", "https://b.org/x", True, True),
        ("https://a.org/x", "http://a.org/x", True, False),
        ("https://a.org/x", "http://b.org/x", True, False),
        ("https://a.org/x", "ftp://a.org/x", True, False),
        ("https://a.org/x", "file:///etc/passwd", True, False),
        ("https://a.org/x", "https://a.org:99999999/x", True, False),
        ("http://a.org/x", "https://a.org/x", False, True),
        ("http://a.org/x", "http://a.org/y", False, True),
        ("http://a.org/x", "http://a.org:8080/y", False, False),
        ("http://a.org/x", "http://169.254.169.254/", True, False),
    ],
)
def test_where_servers_may_send(asked, sent, may_leave, is_followed):
    if is_followed:
        _check_redirect(asked, sent, may_leave)
        return
    with pytest.raises(InputMissingError, match="which is not followed") as error:
        _check_redirect(asked, sent, may_leave)
    assert "--from" in error.value.hint


class _Elsewhere(BaseHTTPRequestHandler):
    """Sends whoever asks to another server."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if server.sends:
            self.send_response(302)
            self.send_header("Location", server.sends)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "9" * 5000)
            self.end_headers()


@pytest.fixture
def servers():
    """Two servers on this machine, the first of which sends to the second."""
    found = [ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) for _ in range(2)]
    for server in found:
        server.asked, server.sends, server.daemon_threads = [], "", True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    found[0].sends = f"http://127.0.0.1:{found[1].server_port}/x"
    yield found
    for server in found:
        server.shutdown()
        server.server_close()


def test_a_server_cannot_send_to_another(tmp_path, servers):
    url = f"http://127.0.0.1:{servers[0].server_port}/x"
    progress = Progress(io.StringIO())
    with pytest.raises(InputMissingError, match="sends elsewhere"):
        download_file([url], tmp_path / "part", Patience(2, 1), progress)
    assert servers[0].asked == ["/x"] and servers[1].asked == []


def test_a_length_that_is_no_number(tmp_path, servers):
    url = f"http://127.0.0.1:{servers[1].server_port}/x"
    download_file([url], tmp_path / "part", Patience(2, 1), Progress(io.StringIO()))
    assert (tmp_path / "part").read_bytes() == b""  # what it should be is for the hash to say


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://example.org/x", True),
        ("file:///data/x", True),
        ("http://127.0.0.1:8000", True),
        ("http://example.org/x", False),
        ("http://localhost.example.org/x", False),
        ("ftp://example.org/x", False),
        ("https://", False),
        ("https://[", False),
        ("example.org", False),
    ],
)
def test_cards_name_places_by_tls(tmp_path, url, is_taken):
    files = {"context": {"path": "a.pth", "sha256": "0" * 64}}
    card = {"name": "x", "version": "1", "trained": True, "network": {}, "files": files, "url": url}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(card))
    if is_taken:
        assert own_card(tmp_path)["url"] == url
        return
    with pytest.raises(BadDataError, match=r"model\.yaml: url is"):
        own_card(tmp_path)


def test_a_mirror_that_is_none_is_a_wrong_setting():
    with pytest.raises(UsageError, match="not an address"):
        first_use_source("brainsymphony-v1", env={"BSYM_MODEL_MIRROR": "http://["})


@pytest.mark.parametrize("link", ["part", "folder", "lock"])
def test_downloads_are_not_written_through_links(tmp_path, link):
    content, home, target = b"weights", tmp_path / "home", tmp_path / "target"
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "a.pth").write_bytes(content)
    home.mkdir()
    files = {"context": {"path": "deep/a.pth", "sha256": hashlib.sha256(content).hexdigest()}}
    card = {"name": "x", "version": "1", "trained": True, "network": {}, "files": files}
    (home / "model.yaml").write_text(yaml.safe_dump(card))
    if link == "folder":
        target.mkdir()
        (home / "deep").symlink_to(target)
    else:
        target.write_text("mine")
        (home / "deep").mkdir()
        name = ".fetch.lock" if link == "lock" else "deep/.a.pth.part"
        (home / name).symlink_to(target)
    with pytest.raises(BsymError):
        fetch_release("x", str(tmp_path / "source"), home, {}, io.StringIO())
    assert list(target.iterdir()) == [] if link == "folder" else target.read_text() == "mine"


@pytest.mark.parametrize(
    "uri", ["bids::../../etc/passwd", "bids::/etc/passwd", "bids:raw:x.tsv", "/etc/passwd", "x"]
)
def test_sources_of_statistics_are_in_the_dataset(tmp_path, uri):
    ones = np.ones(450)
    participants, runs = ("01",), (tmp_path / "sub-01" / "func" / "x.tsv",)
    statistics = RoiStatistics(ones, ones)
    scaling = CohortScaling(statistics, ones.astype(int), participants, runs, (), {})
    path = write_cohort_scaling(scaling, tmp_path, "f")
    assert read_cohort_scaling(tmp_path).runs == runs
    sidecar = path.with_suffix(".json")
    document = json.loads(sidecar.read_text())
    assert document["Sources"] == ["bids::sub-01/func/x.tsv"]
    sidecar.write_text(json.dumps(document | {"Sources": [uri]}))
    with pytest.raises(BadDataError, match="outside of the dataset"):
        read_cohort_scaling(tmp_path)
