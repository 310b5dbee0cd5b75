"""Models as users meet them: none here, fetched on first use, made for something else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import participant_level, run_command
from small_network import FUNCTIONAL_SIZES, write_release

from bsym_bids.model.cards import read_card
from bsym_bids.outputs.names import products
from tests.file_server import FileServer

#: What every run gives, whatever it is.
SURE = [product for product in products().values() if not product.optional]
FAST = ("--window-step", "200")
# The program with one more release that it knows, whose files are on a server.
PROGRAM = """
import sys
from pathlib import Path
from bsym_bids.model import cards
cards._cards_folder = lambda: Path(sys.argv[1])
from bsym_bids.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def remote(small_model, tmp_path):
    """Serve the small model as a known release; return the server and the folder of cards."""
    folder = small_model[-1]
    own = yaml.safe_load((folder / "model.yaml").read_text())
    files = {
        entry["path"]: (folder / entry["path"]).read_bytes() for entry in own["files"].values()
    }
    with FileServer(files) as server:
        card = read_card("untrained") | own | {"name": "remote", "url": server.url}
        del card["sizes"], card["warning"]
        (tmp_path / "cards").mkdir()
        (tmp_path / "cards" / "remote.yaml").write_text(yaml.safe_dump(card))
        yield server, tmp_path / "cards"


def test_no_network_stops_in_seconds_with_the_ways_out(dataset, tmp_path):
    with FileServer({}) as server:
        refused = server.url
    started = time.monotonic()
    result = run_command(
        dataset,
        tmp_path / "out",
        "participant",
        env={
            "BSYM_OFFLINE": "",
            "BSYM_MODEL_MIRROR": refused,
            "BSYM_MODEL_HOME": str(tmp_path / "models"),
        },
    )
    assert result.code == 66
    assert time.monotonic() - started < 30
    assert "Connection refused" in result.err and "Traceback" not in result.err
    for way in ("bsym-model fetch brainsymphony-v1", "--from", "--model-dir", "$BSYM_MODEL_HOME"):
        assert way in result.err
    assert not (tmp_path / "out").exists()


def test_jobs_that_start_at_once_fetch_once_and_all_go_on(dataset, remote, tmp_path):
    server, cards = remote
    out, home = tmp_path / "out", tmp_path / "models"
    call = [sys.executable, "-c", PROGRAM, cards, dataset, out, "participant", "--model", "remote"]
    call.append("--skip-reports")
    call += [*FAST, "--scaling", "zscore", "--nprocs", "1", "--participant-label"]
    environment = {"PATH": "/usr/bin:/bin", "BSYM_MODEL_HOME": str(home)}
    jobs = [
        subprocess.Popen([*map(str, call), label], env=environment, stderr=-1, text=True)
        for label in ("01", "03")
    ]
    said = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert sorted(server.paths) == sorted(server.files)
    assert sum("remote: fetching" in text for text in said) == 1
    assert all("the scaling of ROIs is 'zscore'" in text for text in said)
    files = [p for p in out.glob("sub-*/**/*") if p.suffix in (".tsv", ".npz")]
    assert len(files) == 2 * len(SURE)
    sidecars = [json.loads(path.read_text()) for path in out.glob("sub-*/**/*.json")]
    deviations = [s["ModelContractDeviations"] for s in sidecars if "Model" in s]
    assert len(deviations) == 2 * sum(p.group == "embedding" for p in products().values())
    assert all("'zscore'" in text for texts in deviations for text in texts)
    assert all(len(texts) == 1 for texts in deviations)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"rois": 400}, "perceiver.pth: latents is made for 400 ROIs instead of 450"),
        ({"steps": 160}, "perceiver.pth: head.2.weight is made for 160 frames instead of 200"),
    ],
)
def test_network_for_something_else_stops_the_run(dataset, tmp_path, sizes, words):
    changed = {
        branch: own | {key: value for key, value in sizes.items() if key in own}
        for branch, own in FUNCTIONAL_SIZES.items()
    }
    folder = tmp_path / "model"
    folder.mkdir()
    write_release(folder, changed, name="other")
    out = tmp_path / "out"
    result = participant_level(dataset, out, "--model", "other", "--model-dir", folder)
    assert result.code == 65
    assert f"{folder}/{words}" in result.err and "Traceback" not in result.err
    assert not out.exists()


def test_weights_that_cannot_be_loaded_stop_the_run(dataset, small_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_model[-1], folder)
    state = torch.load(folder / "spatial.pth", weights_only=True)
    state["embedding_layer.bias"][0] = float("nan")
    torch.save(state, folder / "spatial.pth")
    card = yaml.safe_load((folder / "model.yaml").read_text())
    content = (folder / "spatial.pth").read_bytes()
    card["files"]["spatial"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    out = tmp_path / "out"
    result = participant_level(dataset, out, "--model", "small", "--model-dir", folder)
    assert result.code == 65
    assert f"{folder / 'spatial.pth'} (spatial): embedding_layer.bias holds" in result.err
    assert not out.exists()
