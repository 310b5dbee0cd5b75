"""A model that is not here is fetched when first used, and checked before anything is made."""

import hashlib
import os

import pytest
import yaml
from fake_bids import add_run, make_fmriprep, make_raw

from bsym_bids.cli import main
from bsym_bids.errors import BadDataError
from bsym_bids.model import cards
from bsym_bids.model.cards import read_card
from bsym_bids.workflows import participant
from tests.file_server import FileServer

NAME = "remote"
FILES = {f"weights/{branch}.pth": branch.encode() * 1000 for branch in ("spatial", "context")}


@pytest.fixture
def server():
    with FileServer({f"{NAME}/{path}": content for path, content in FILES.items()}) as server:
        yield server


@pytest.fixture
def bids(tmp_path):
    raw = make_raw(tmp_path / "bids", "01")
    add_run(make_fmriprep(raw / "derivatives" / "fmriprep"), "sub-01_task-rest")
    return raw


@pytest.fixture
def settings(monkeypatch, tmp_path, server):
    """Make a release known that the server has; return what else may be set."""
    entries = {
        path.rpartition("/")[2].removesuffix(".pth"): {
            "path": path,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for path, content in FILES.items()
    }
    card = read_card("untrained") | {"name": NAME, "trained": True, "files": entries}
    del card["sizes"], card["warning"]
    (tmp_path / "cards").mkdir()
    text = yaml.safe_dump(card | {"url": f"{server.url}/{NAME}"})
    (tmp_path / "cards" / f"{NAME}.yaml").write_text(text)
    for key, value in os.environ.items():  # what the run changes is put back
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("BSYM_OFFLINE", "")
    monkeypatch.setenv("BSYM_TIMEOUT", "1")
    monkeypatch.setenv("BSYM_MODEL_HOME", str(tmp_path / "models"))
    monkeypatch.setattr(cards, "_cards_folder", lambda: tmp_path / "cards")
    return monkeypatch


@pytest.fixture
def call(settings, bids, tmp_path, capsys):
    """Run the participant level without graphs; return code, output and errors."""
    settings.setattr(participant, "_run_chunk", lambda *_: {})
    settings.setattr(participant, "_check_network", lambda *_: None)

    def caller(*arguments):
        options = ["--model", NAME, *map(str, arguments)]
        code = main([str(bids), str(tmp_path / "out"), "participant", *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return caller


def test_first_use_fetches_and_the_second_does_not(call, server, tmp_path):
    _, _, err = call()
    assert f"{NAME}: fetching 2 file(s) from {server.url}/{NAME} into {tmp_path}" in err
    for path, content in FILES.items():
        assert (tmp_path / "models" / NAME / path).read_bytes() == content
    assert (tmp_path / "out" / "logs").is_dir()
    asked = list(server.asked)
    assert len(asked) == 2
    _, _, err = call()
    assert server.asked == asked and "fetching" not in err


def test_dry_run_only_says_that_it_would(call, server, tmp_path):
    code, out, _ = call("--dry-run")
    assert code == 0
    assert f"model {NAME}: not here; a run would first fetch it from {server.url}/{NAME}" in out
    assert "run sub-01_task-rest" in out
    assert not server.asked
    assert not (tmp_path / "models").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_switch_forbids_it(call, settings, server, tmp_path, arguments):
    settings.setenv("BSYM_OFFLINE", "1")
    code, _, err = call(*arguments)
    assert code == 66 and "files are missing" in err and "unset BSYM_OFFLINE" in err
    assert not server.asked and not (tmp_path / "models").exists()


def test_folder_of_the_user_is_never_filled(call, server, tmp_path):
    (tmp_path / "mine").mkdir()
    code, _, err = call("--model-dir", tmp_path / "mine")
    assert code == 66 and f"files are missing in {tmp_path / 'mine'}" in err
    assert not server.asked and not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("arguments", [["--participant-label", "9"], ["--nuisance", "37p"]])
def test_what_is_wrong_otherwise_is_said_before_a_download(call, server, arguments):
    code, _, _ = call(*arguments)
    assert code in (18, 64) and not server.asked


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("substitute", 65, "not the file of remote"),
        ("silent", 66, "no answer within"),
        ("forbidden", 66, "HTTP 403"),
    ],
)
def test_failure_stops_the_run_before_anything_is_written(
    call, server, tmp_path, behaviour, code, words
):
    server.usual = behaviour
    found, _, err = call()
    assert found == code and words in err and "hint: " in err
    assert not (tmp_path / "out").exists()
    assert not [path for path in (tmp_path / "models").rglob("*.pth")]


def test_home_that_cannot_be_written_is_named(call, settings, server, tmp_path):
    (tmp_path / "file").touch()
    settings.setenv("BSYM_MODEL_HOME", str(tmp_path / "file"))
    code, _, err = call()
    assert code == 73 and f"{tmp_path / 'file' / NAME}" in err and "$BSYM_MODEL_HOME" in err
    assert not server.asked and not (tmp_path / "out").exists()


def test_damaged_file_at_home_is_refused(call, server, tmp_path):
    call()
    path = tmp_path / "models" / NAME / "weights" / "spatial.pth"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = call()
    assert code == 65 and str(path) in err and f"bsym-model fetch {NAME}" in err
    assert len(server.asked) == 2


def test_deviations_are_said_on_the_console(call):
    _, _, err = call("--scaling", "zscore", "--model-tr", 0.6)
    assert "WARNING: 1 run(s) or scan(s): the scaling of ROIs is 'zscore'" in err
    assert "WARNING: 1 run(s) or scan(s): the frames of the windows are 0.6 s apart" in err
    assert "WARNING" not in call()[2]


def test_what_the_network_cannot_take_stops_the_run_before_anything_is_written(
    call, settings, tmp_path
):
    def refuse(*_):
        raise BadDataError("spatial.pth: made for something else")

    settings.setattr(participant, "_check_network", refuse)
    code, _, err = call()
    assert code == 65 and "made for something else" in err
    assert not (tmp_path / "out").exists()
