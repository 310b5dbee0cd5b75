"""Named releases: where files are, integrity, strict loading; and the command ``bsym-model``."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from model_recipe import DATA, official
from model_tiny import HEADS, tiny_sc, tiny_states, tiny_windows

from bsym_bids.errors import BadDataError, BsymError, InputMissingError, UsageError
from bsym_bids.model import default_model_name, load_model, resolve_release
from bsym_bids.model.cli import main
from bsym_bids.model.weights import git_blob_sha1, known_releases, read_card, release_folder

OFFICIAL_SHA1 = {
    "context.pth": "4515abab4b649e6315e460263254d93ffcc41a8e",
    "fusion.pth": "cf6c0d10f9566bcd4cd6c20c0bc1ab375227deaa",
}


def lab_release(folder, **changes):
    """Write the small network as a release of one's own and return its card."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for branch, state in tiny_states().items():
        path = folder / f"{branch}.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        files[branch] = {"path": path.name, "sha256": sha256}
    card = {"name": "lab-x", "version": "3", "trained": True, "files": files, "network": HEADS}
    card |= changes
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return card


def repin(folder, branch):
    """Make the card agree with a file that was changed."""
    card = yaml.safe_load((folder / "model.yaml").read_text())
    content = (folder / f"{branch}.pth").read_bytes()
    card["files"][branch]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "model.yaml").write_text(yaml.safe_dump(card))


def real_files(folder, layout):
    """Lay out the two official files that are here, with the official card cut down to them."""
    (folder / layout).mkdir(parents=True, exist_ok=True)
    for name in OFFICIAL_SHA1:
        shutil.copy(DATA / "weights" / name, folder / layout)
    card = read_card("brainsymphony-v1") | {"name": "two-real-files"}
    card["files"] = {branch: card["files"][branch] for branch in ("context", "perceiver")}
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return folder


# --- the official release ------------------------------------------------------------------------


def test_cards_pin_the_official_files():
    files = read_card("brainsymphony-v1")["files"]
    pinned = {entry["path"].rpartition("/")[2]: entry["git_sha1"] for entry in files.values()}
    assert len(pinned) == 5
    for name, sha1 in OFFICIAL_SHA1.items():
        assert git_blob_sha1((DATA / "weights" / name).read_bytes()) == pinned[name] == sha1


def test_git_blob_sha1_is_that_of_git():
    # `printf 'hello\n' | git hash-object --stdin`
    assert git_blob_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize("layout", ["checkpoints/functional_v1", "."])
def test_missing_files_are_named_with_the_ways_out(tmp_path, layout):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    for name in OFFICIAL_SHA1:
        shutil.copy(DATA / "weights" / name, tmp_path / layout)
    with pytest.raises(InputMissingError) as error:
        resolve_release("brainsymphony-v1", tmp_path)
    assert error.value.exit_code == 66
    for word in ("spatial.pth", "temporal.pth", "structural.pth", str(tmp_path)):
        assert word in str(error.value)
    assert "context.pth" not in str(error.value)
    assert "fusion.pth" not in str(error.value)
    for way in ("1be0ae52253a2dde8fda72dd6fd151dcc15625ba", "--model-dir", "--model untrained"):
        assert way in error.value.hint


@pytest.mark.parametrize("layout", ["checkpoints/functional_v1", "."])
def test_the_two_real_files_are_verified_and_load(tmp_path, layout):
    release = resolve_release("two-real-files", real_files(tmp_path, layout))
    assert release.files["context"] == tmp_path / layout / "context.pth"
    model = load_model(release)
    assert model.perceiver.latents.shape == (450, 128)
    assert torch.equal(model.context.mask_token, official("context.pth")["mask_token"])


@pytest.mark.parametrize("change", ["truncated", "substituted", "empty"])
def test_a_wrong_file_is_refused_by_name(tmp_path, change):
    real_files(tmp_path, ".")
    content = (tmp_path / "fusion.pth").read_bytes()
    wrong = {"truncated": content[:-1], "empty": b"", "substituted": b"\0" + content[1:]}
    (tmp_path / "fusion.pth").write_bytes(wrong[change])
    with pytest.raises(BadDataError, match=r"fusion\.pth: not the file") as error:
        resolve_release("two-real-files", tmp_path)
    assert OFFICIAL_SHA1["fusion.pth"] in str(error.value)


def test_wrong_files_of_the_official_name_are_refused(tmp_path):
    for entry in read_card("brainsymphony-v1")["files"].values():
        path = tmp_path / "brainsymphony-v1" / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"anything")
    with pytest.raises(BadDataError, match=r"spatial\.pth: not the file of brainsymphony-v1"):
        resolve_release("brainsymphony-v1", env={"BSYM_MODEL_HOME": str(tmp_path)})


def test_places_of_the_files(tmp_path):
    name = "brainsymphony-v1"
    home, cache = {"HOME": "/home/me"}, {"XDG_CACHE_HOME": "/var/cache/me"}
    assert str(release_folder(name, home)) == f"/home/me/.cache/bsym-bids/models/{name}"
    assert str(release_folder(name, home | cache)) == f"/var/cache/me/bsym-bids/models/{name}"
    assert release_folder(name, {"XDG_CACHE_HOME": "relative"}) is None
    every = home | cache | {"BSYM_MODEL_HOME": "/models"}
    assert str(release_folder(name, every)) == f"/models/{name}"
    with pytest.raises(InputMissingError, match="HOME"):
        resolve_release(name, env={})
    with pytest.raises(InputMissingError, match=str(tmp_path)):
        resolve_release(name, tmp_path / "absent", env=every)


def test_nothing_is_written_when_files_are_missing(tmp_path):
    with pytest.raises(InputMissingError):
        resolve_release("brainsymphony-v1", env={"HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())


def test_default_name():
    assert default_model_name({}) == default_model_name({"BSYM_MODEL": ""}) == "brainsymphony-v1"
    assert default_model_name({"BSYM_MODEL": "untrained"}) == "untrained"


def test_unknown_name_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="nonsense") as error:
        resolve_release("nonsense", tmp_path)
    assert all(name in error.value.hint for name in known_releases())


# --- random weights ------------------------------------------------------------------------------


def test_untrained_says_so():
    release = resolve_release("untrained", env={})
    assert release.trained is False
    assert "random weights" in release.warning
    assert release.files == {}
    with pytest.raises(UsageError, match="untrained"):
        resolve_release("untrained", "/somewhere")


def test_untrained_weights_depend_on_the_seed_alone():
    release = resolve_release("untrained")
    before = torch.get_num_threads()
    one = load_model(release, seed=3).state_dict()
    rng = torch.get_rng_state()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(9)
        again = load_model(release, seed=3).state_dict()
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(rng)
    other = load_model(release, seed=4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["spatial.pos_enc.pe"], other["spatial.pos_enc.pe"])


def test_untrained_has_the_sizes_of_the_release():
    state = load_model(resolve_release("untrained")).state_dict()
    for branch, file in (("context", "context.pth"), ("perceiver", "fusion.pth")):
        theirs = {f"{branch}.{key}": value.shape for key, value in official(file).items()}
        assert theirs == {
            key: value.shape for key, value in state.items() if key.startswith(f"{branch}.")
        }
    code = state["temporal.pos_enc.pe"][0]
    assert code[7, 10].item() == pytest.approx(np.sin(7 / 10000 ** (10 / 128)), abs=1e-6)
    assert code[7, 11].item() == pytest.approx(np.cos(7 / 10000 ** (10 / 128)), abs=1e-6)


# --- a release of one's own ----------------------------------------------------------------------


def test_own_release_loads(tmp_path):
    lab_release(tmp_path)
    release = resolve_release("lab-x", tmp_path)
    assert (release.name, release.version, release.trained) == ("lab-x", "3", True)
    assert release.warning == ""
    assert pickle.loads(pickle.dumps(release)) == release
    output = load_model(release)(fmri=tiny_windows(), sc=tiny_sc())
    assert output.fused_embedding is not None


def test_fingerprint_follows_what_decides_the_network(tmp_path):
    prints = set()
    for index, changes in enumerate(
        [{}, {"version": "4"}, {"network": HEADS | {"spatial_heads": 4}}, {"licence": "MIT"}]
    ):
        lab_release(tmp_path / str(index), **changes)
        prints.add(resolve_release("lab-x", tmp_path / str(index)).fingerprint)
    assert len(prints) == 3  # the licence decides nothing
    assert resolve_release("untrained").fingerprint not in prints


def test_own_release_has_to_be_named(tmp_path):
    lab_release(tmp_path)
    with pytest.raises(InputMissingError) as error:
        resolve_release("brainsymphony-v1", tmp_path)
    assert "lab-x" in error.value.hint


def test_own_release_cannot_take_a_known_name(tmp_path):
    lab_release(tmp_path, name="brainsymphony-v1")
    with pytest.raises(InputMissingError):
        resolve_release("brainsymphony-v1", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["context.pth"]),
        (b"PK\x03\x04 but no archive", ["context.pth"]),
        (pickle.dumps({"mask_token": os.system}, protocol=2), ["context.pth"]),
        (None, ["context.pth", "list instead of a state dict"]),
    ],
)
def test_what_is_no_state_dict_is_refused_by_name(tmp_path, content, words):
    lab_release(tmp_path)
    path = tmp_path / "context.pth"
    if content is None:
        torch.save([torch.ones(3)], path)
    else:
        path.write_bytes(content)
    repin(tmp_path, "context")
    with pytest.raises(BadDataError) as error:
        load_model(resolve_release("lab-x", tmp_path))
    for word in words:
        assert word in str(error.value)


def test_wrong_key_names_model_folder_branch_and_key(tmp_path):
    lab_release(tmp_path)
    state = torch.load(tmp_path / "temporal.pth", weights_only=True)
    del state["layers.1.norm2.bias"]
    torch.save(state, tmp_path / "temporal.pth")
    repin(tmp_path, "temporal")
    with pytest.raises(BadDataError) as error:
        load_model(resolve_release("lab-x", tmp_path))
    for word in ("lab-x", str(tmp_path), "temporal", "layers.1.norm2.bias is missing"):
        assert word in str(error.value)


def test_file_that_changes_after_it_was_verified_is_refused(tmp_path):
    lab_release(tmp_path)
    release = resolve_release("lab-x", tmp_path)
    torch.save({}, tmp_path / "gate.pth")
    with pytest.raises(BadDataError, match=r"gate\.pth: changed"):
        load_model(release)
    with pytest.raises(BadDataError, match=r"gate\.pth: not the file"):
        resolve_release("lab-x", tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"version": 3}, "version"),
        ({"trained": "yes"}, "trained"),
        ({"network": {"heads": 4}}, "heads"),
        ({"files": {"spatial": "spatial.pth"}}, "spatial"),
        ({"files": {"spatial": {"path": "spatial.pth"}}}, "sha256"),
        ({"files": {"spatial": {"path": "../spatial.pth", "sha256": "0"}}}, "outside"),
        ({"files": {"other": {"path": "other.pth", "sha256": "0"}}}, "files"),
        ({"files": {}}, "files"),
    ],
)
def test_card_is_checked(tmp_path, changes, word):
    lab_release(tmp_path, **changes)
    with pytest.raises(BadDataError, match=word) as error:
        resolve_release("lab-x", tmp_path)
    assert "model.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00"])
def test_what_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(BadDataError, match=r"model\.yaml"):
        resolve_release("lab-x", tmp_path)


# --- command -------------------------------------------------------------------------------------


def test_list_names_the_default_and_what_is_here(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BSYM_MODEL_HOME", str(tmp_path))
    monkeypatch.setenv("BSYM_MODEL", "untrained")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("brainsymphony-v1: ")
    assert lines[0].endswith("its files are not here")
    assert lines[1].startswith("untrained (default): ")


def test_info_is_the_card(capsys, tmp_path):
    card = lab_release(tmp_path)
    assert main(["info", "lab-x", "--model-dir", str(tmp_path)]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown.pop("here") == f"files in {tmp_path}"
    assert shown == card


def test_verify(capsys, tmp_path):
    lab_release(tmp_path)
    command = ["verify", "lab-x", "--model-dir", str(tmp_path)]
    assert main(command) == 0
    assert resolve_release("lab-x", tmp_path).fingerprint in capsys.readouterr().out
    content = bytearray((tmp_path / "spatial.pth").read_bytes())
    content[100] ^= 1
    (tmp_path / "spatial.pth").write_bytes(content)
    assert main(command) == 65
    message = capsys.readouterr().err
    assert "spatial.pth" in message
    assert "hint:" in message
    assert main(["verify", "brainsymphony-v1", "--model-dir", str(tmp_path)]) == 66


@pytest.mark.parametrize("arguments", [[], ["verify"], ["fly", "x"], ["info", "nonsense"]])
def test_wrong_usage_is_64(arguments):
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 64


def test_nothing_heavy_is_imported_before_loading():
    script = (
        "import sys; from bsym_bids.model.cli import main; main(['list'])\n"
        "import bsym_bids.model; from bsym_bids.model import resolve_release\n"
        "resolve_release('untrained')\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'nipype') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_errors_of_resolving_are_explained():
    for error in (InputMissingError, BadDataError, UsageError):
        assert issubclass(error, BsymError)
