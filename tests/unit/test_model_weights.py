"""Named releases: where files are, integrity, strict loading; and the command ``bsym-model``."""

import hashlib
import io
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from model_recipe import DATA, official
from model_tiny import HEADS, tiny_sc, tiny_states, tiny_windows

from bsym_bids.errors import BadDataError, BsymError, InputMissingError, UsageError
from bsym_bids.model import cards, default_model_name, load_model, resolve_release, weights
from bsym_bids.model.cards import known_releases, read_card
from bsym_bids.model.cli import main
from bsym_bids.model.weights import checksums, release_folder

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
        sums, size = checksums(DATA / "weights" / name)
        assert sums["git_sha1"] == pinned[name] == sha1
        assert size == (DATA / "weights" / name).stat().st_size


def test_checksums_are_those_of_git_and_sha256sum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    # `git hash-object file`, `sha256sum file`
    assert checksums(path)[0] == {
        "git_sha1": "ce013625030ba8dba906f756967f9e9ca394464a",
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    }


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
    for way in ("bsym-model fetch brainsymphony-v1", "--from", "--model-dir", "$BSYM_MODEL_HOME"):
        assert way in error.value.hint
    assert "--model untrained" in error.value.hint


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


class Harmful:
    """Would make a file if its pickle were executed."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def as_archive(value):
    """Return a value as torch keeps it: a pickle in a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 but no archive", pickle.dumps({"mask_token": 1}, protocol=2)]
)
def test_what_is_no_state_dict_is_refused_by_name(tmp_path, content):
    lab_release(tmp_path)
    (tmp_path / "context.pth").write_bytes(content)
    repin(tmp_path, "context")
    with pytest.raises(BadDataError, match=r"context\.pth"):
        load_model(resolve_release("lab-x", tmp_path))


@pytest.mark.parametrize("value", [[torch.ones(3)], torch.ones(3), 3, {}])
def test_what_holds_something_else_is_refused_by_name(tmp_path, value):
    lab_release(tmp_path)
    torch.save(value, tmp_path / "context.pth")
    repin(tmp_path, "context")
    with pytest.raises(BadDataError, match=r"context\.pth: holds .* instead of a state dict"):
        load_model(resolve_release("lab-x", tmp_path))


@pytest.mark.parametrize("form", ["pickle", "archive"])
@pytest.mark.parametrize("place", ["alone", "among others"])
def test_code_in_a_pickle_is_not_executed(tmp_path, form, place):
    lab_release(tmp_path)
    marker = tmp_path / "executed"
    harmful = Harmful(marker) if place == "alone" else {"mask_token": Harmful(marker)}
    content = pickle.dumps(harmful, protocol=2) if form == "pickle" else as_archive(harmful)
    (tmp_path / "context.pth").write_bytes(content)
    repin(tmp_path, "context")
    with pytest.raises(BadDataError, match=r"context\.pth: not a state dict"):
        load_model(resolve_release("lab-x", tmp_path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(harmful))
    assert marker.exists()  # it would have been


def change(folder, branch, change):
    """Change a state dict of the release in a folder."""
    state = torch.load(folder / f"{branch}.pth", weights_only=True)
    change(state)
    torch.save(state, folder / f"{branch}.pth")
    repin(folder, branch)


def with_nan(state):
    state["layers.1.mlp.0.bias"][2] = float("nan")


def with_infinity(state):
    state["layers.1.mlp.0.bias"][0] = -float("inf")


def of_integers(state):
    state["layers.0.norm1.weight"] = torch.ones(8, dtype=torch.int64)


def of_no_tensor(state):
    state["layers.0.norm1.weight"] = [1.0] * 8


def without_a_key(state):
    del state["layers.1.norm2.bias"]


def with_another_key(state):
    state["layers.1.norm3.bias"] = torch.ones(8)


def of_another_shape(state):
    state["layers.0.norm1.weight"] = torch.ones(9)


def of_other_rois(state):
    state["embedding_layer.weight"] = torch.ones(8, 13)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (with_nan, "layers.1.mlp.0.bias holds values that are not finite"),
        (with_infinity, "layers.1.mlp.0.bias holds values that are not finite"),
        (of_integers, "layers.0.norm1.weight is not an array of floating-point numbers"),
        (of_no_tensor, "layers.0.norm1.weight is not an array of floating-point numbers"),
        (without_a_key, "layers.1.norm2.bias is missing"),
        (with_another_key, "layers.1.norm3.bias is unexpected"),
        (of_another_shape, "layers.0.norm1.weight has shape (9,) instead of (8,)"),
        (of_other_rois, "embedding_layer.weight is made for 13 ROIs, but "),
    ],
)
def test_bad_weights_are_refused_by_model_file_and_key(tmp_path, fault, words):
    lab_release(tmp_path)
    change(tmp_path, "temporal", fault)
    with pytest.raises(BadDataError) as error:
        load_model(resolve_release("lab-x", tmp_path))
    assert f"model lab-x: {tmp_path / 'temporal.pth'} (temporal): {words}" in str(error.value)
    if fault is of_other_rois:
        assert f"{tmp_path / 'perceiver.pth'} (perceiver): latents for 12" in str(error.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_single(tmp_path, kind):
    lab_release(tmp_path)
    for branch in tiny_states():
        change(
            tmp_path, branch, lambda state: state.update({k: v.to(kind) for k, v in state.items()})
        )
    model = load_model(resolve_release("lab-x", tmp_path))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    wanted = torch.from_numpy(tiny_states()["perceiver"]["latents"]).to(kind).float()
    assert torch.equal(model.perceiver.latents, wanted)
    assert model(fmri=tiny_windows(), sc=tiny_sc()).fused_embedding is not None


def test_one_missing_file_is_named(tmp_path):
    lab_release(tmp_path)
    (tmp_path / "structural.pth").unlink()
    with pytest.raises(InputMissingError, match=r"files are missing in .*: structural\.pth$"):
        resolve_release("lab-x", tmp_path)


def test_file_that_changes_after_it_was_verified_is_refused(tmp_path):
    lab_release(tmp_path)
    release = resolve_release("lab-x", tmp_path)
    torch.save({}, tmp_path / "gate.pth")
    with pytest.raises(BadDataError, match=r"gate\.pth: changed"):
        load_model(release)
    with pytest.raises(BadDataError, match=r"gate\.pth: not the file"):
        resolve_release("lab-x", tmp_path)


PINNED = {"path": "spatial.pth", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../x"}, "name is '../x', but must be"),
        ({"version": 3}, "version is 3, but must be text"),
        ({"version": None}, "version is None"),
        ({"trained": "yes"}, "trained is 'yes', but must be true or false"),
        ({"network": [4]}, "network is [4], but must be a mapping"),
        ({"network": {"heads": 4}}, "network.heads is unknown"),
        ({"network": {"spatial_heads": 0}}, "network.spatial_heads is 0"),
        ({"network": {"spatial_heads": True}}, "network.spatial_heads is True"),
        ({"network": {"diffusion_theta": float("nan")}}, "network.diffusion_theta is nan"),
        ({"files": {"spatial": "spatial.pth"}}, "files.spatial needs"),
        ({"files": {"spatial": {"path": "spatial.pth"}}}, "sha256"),
        ({"files": {"spatial": PINNED | {"path": "../spatial.pth"}}}, "outside the folder"),
        ({"files": {"spatial": PINNED | {"path": "/spatial.pth"}}}, "outside the folder"),
        ({"files": {"spatial": PINNED | {"sha256": "0"}}}, "files.spatial.sha256 is '0'"),
        ({"files": {"spatial": PINNED | {"git_sha1": 12}}}, "files.spatial.git_sha1 is 12"),
        ({"files": {"other": PINNED}}, "files"),
        ({"files": {}}, "files"),
        ({"files": None, "sizes": {}}, "files"),
        ({"url": "nowhere"}, "url is 'nowhere'"),
        ({"contract": 450}, "contract is 450"),
        ({"contract": {"roi": 450}}, "contract.roi is unknown"),
        ({"contract": {"rois": "450"}}, "contract.rois is '450', but must be a whole number"),
        ({"contract": {"window_frames": 0}}, "contract.window_frames is 0"),
        ({"contract": {"roi_names_sha256": "x"}}, "contract.roi_names_sha256 is 'x'"),
        ({"contract": {"repetition_time": -1}}, "contract.repetition_time is -1"),
        ({"contract": {"repetition_time_tolerance": 12}}, "repetition_time_tolerance is 12"),
        ({"contract": {"scaling": "median"}}, "contract.scaling is 'median', but must be one of"),
        (
            {"contract": {"structural_connectivity": {"transform": "ln"}}},
            "contract.structural_connectivity.transform is 'ln'",
        ),
        (
            {"contract": {"structural_connectivity": {"log": True}}},
            "contract.structural_connectivity.log is unknown",
        ),
        *(
            (
                {"contract": {"structural_connectivity": {"streamlines": value}}},
                f"contract.structural_connectivity.streamlines is {value}, but must be",
            )
            for value in (5, [5], [0, 5], [5, 4], [1, 2, 3], [True, 5], [1, float("inf")])
        ),
        ({"limits": "none"}, "limits is 'none'"),
        ({"lacks": ["gate"]}, "lacks is ['gate']"),
        ({"training": ""}, "training is ''"),
        ({"quality": {"reconstruction": 0.4}}, "quality.reconstruction is 0.4"),
    ],
)
def test_card_is_checked_by_file_and_key(tmp_path, changes, words):
    lab_release(tmp_path, **changes)
    with pytest.raises(BadDataError) as error:
        resolve_release("lab-x", tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'model.yaml'}: ")
    assert words in str(error.value)


@pytest.mark.parametrize("key", ["name", "version", "trained", "network", "files"])
def test_card_needs_what_the_network_is_loaded_with(tmp_path, key):
    card = lab_release(tmp_path)
    del card[key]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(BadDataError, match=f"model\\.yaml: .*{key}"):
        resolve_release("lab-x", tmp_path)


def keys_of(card, above=""):
    """Yield every key below a card, a dot for each level."""
    for key, value in card.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{above}{key}.")


# What a card of the program may leave out.
OPTIONAL = (
    *("source", "citation", "warning", "quality", "sizes", "files", "network.", "lacks."),
    "contract.structural_connectivity.streamlines",
)


@pytest.mark.parametrize("name", known_releases())
def test_cards_of_the_program_say_everything(name):
    card = read_card(name)
    assert {"contract.rois", "training", "limits", "lacks", "licence"} <= set(keys_of(card))
    for key in keys_of(card):
        if key.startswith((*OPTIONAL, "training.")) or key == "packaged":
            continue  # how a training is told is not prescribed
        without = yaml.safe_load(yaml.safe_dump(card))
        *above, last = key.split(".")
        inside = without
        for part in above:
            inside = inside[part]
        del inside[last]
        with pytest.raises(BadDataError, match=rf"a card: {key} is missing"):
            cards.check_card(without, "a card", in_full=True)


def test_random_weights_are_never_called_trained():
    card = read_card("untrained") | {"trained": True}
    with pytest.raises(BadDataError, match="trained is true"):
        cards.check_card(card, "a card", in_full=True)


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
    assert lines[0].endswith("its files are not here (bsym-model fetch brainsymphony-v1)")
    assert lines[-1].startswith("untrained (default): ")


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


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Make a release of half precision part of the program, and return the folder of its files."""
    card = read_card("untrained") | {"name": "lab-sim", "packaged": True, "trained": True}
    del card["sizes"], card["contract"]
    folder = tmp_path / "weights" / "lab-sim"
    card |= lab_release(folder, name="lab-sim", network=HEADS)
    card["contract"] = read_card("untrained")["contract"] | {"rois": 12, "window_frames": 20}
    for branch in card["files"]:
        change(folder, branch, lambda state: state.update({k: v.half() for k, v in state.items()}))
    card["files"] = yaml.safe_load((folder / "model.yaml").read_text())["files"]
    (folder / "model.yaml").unlink()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "lab-sim.yaml").write_text(yaml.safe_dump(card))
    monkeypatch.setattr(cards, "_cards_folder", lambda: tmp_path / "models")
    for module in (cards, weights):
        monkeypatch.setattr(module, "packaged_folder", lambda name: tmp_path / "weights" / name)
    return folder


def test_packaged_release_is_here_without_any_home(packaged, monkeypatch, capsys):
    release = resolve_release("lab-sim", env={})
    assert release.folder == packaged and set(release.files) == set(tiny_states())
    model = load_model(release)
    assert next(model.parameters()).dtype == torch.float32
    monkeypatch.delenv("HOME")
    for command, words in (("list", "comes with bsym-bids"), ("fetch", "comes with bsym-bids")):
        assert main([command, "lab-sim"][: 1 if command == "list" else 2]) == 0
        assert words in capsys.readouterr().out
    assert main(["verify", "lab-sim"]) == 0
    assert release.fingerprint in capsys.readouterr().out


def test_damaged_installation_says_so(packaged):
    (packaged / "spatial.pth").unlink()
    with pytest.raises(InputMissingError, match=r"spatial\.pth") as error:
        resolve_release("lab-sim")
    assert "install it again" in error.value.hint


def test_packaged_folder_is_in_the_package():
    folder = cards.packaged_folder("x")
    assert folder.parts[-4:] == ("bsym_bids", "data", "weights", "x")


def test_nothing_heavy_is_imported_before_loading():
    script = (
        "import sys; from bsym_bids.model.cli import main; main(['list'])\n"
        "from bsym_bids.model import fetch_release, resolve_release\n"
        "resolve_release('untrained')\n"
        "heavy = ('torch', 'numpy', 'scipy', 'nipype', 'requests', 'urllib3')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_errors_of_resolving_are_explained():
    for error in (InputMissingError, BadDataError, UsageError):
        assert issubclass(error, BsymError)
