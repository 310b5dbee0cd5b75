"""Presets: those of the package are complete, and mistakes in a user's own are named."""

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bsym_bids.dwi import presets
from bsym_bids.dwi.presets import DipyParameters, Mrtrix3Parameters, Preset, load_preset
from bsym_bids.errors import InputMissingError, UsageError

FOLDER = Path(presets.__file__).parents[1] / "data" / "tractography"


@pytest.fixture
def user(tmp_path):
    """Write a preset file and load it."""

    def load(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), "utf-8")
        return load_preset(path)

    return load


FULL = yaml.safe_load((FOLDER / "full.yaml").read_text("utf-8"))


def packaged():
    return deepcopy(FULL)


def changed(key, value, drop=False):
    """Return the text of a whole preset with one key changed; ``dipy.step`` is a nested one."""
    document = packaged()
    *group, last = key.split(".")
    where = document[group[0]] if group else document
    if drop:
        del where[last]
    else:
        where[last] = value
    return document


KEYS = [f.name for f in fields(Preset)]
GROUPS = ("mrtrix3", "dipy")
KEYS += [f"mrtrix3.{f.name}" for f in fields(Mrtrix3Parameters)]
KEYS += [f"dipy.{f.name}" for f in fields(DipyParameters)]
WRONG = [[1], {"a": 1}, None, float("nan"), -1, 10**12, ""]


@pytest.mark.parametrize("name", ["fast", "full"])
def test_presets_of_the_package_load(name):
    assert presets.preset_names() == ("fast", "full")
    preset = load_preset(name)
    assert preset.name == name and preset.sift2 and preset.dipy.step == preset.mrtrix3.step == 0.5
    assert preset.batch_size < preset.max_streamlines
    # everything that decides a tractogram is in the sidecar, and nothing of the other engine
    for engine, other in (("dipy", "mrtrix3"), ("mrtrix3", "dipy")):
        values = preset.parameters(engine)
        assert set(values) == {f.name for f in fields(Preset)} - {other}
        assert values[engine]["angle"] == getattr(preset, engine).angle


def test_what_the_two_are_for():
    fast, full = load_preset("fast"), load_preset("full")
    assert (fast.reliability, full.reliability) == (0.95, 0.99)
    assert (fast.voxel_size, full.voxel_size) == (2.5, None)
    assert fast.max_streamlines < full.max_streamlines


def test_a_whole_file_is_a_preset(user):
    assert user(packaged()) == load_preset("full")
    assert user(changed("name", "mine")) == replace(load_preset("full"), name="mine")


def test_a_file_may_only_say_what_differs(user):
    preset = user("base: fast\nreliability: 0.9\ndipy:\n  angle: 30\n")
    fast = load_preset("fast")
    assert preset == replace(
        fast,
        name="my",
        description="fast, changed by my.yaml",
        reliability=0.9,
        dipy=replace(fast.dipy, angle=30.0),
    )
    named = user("base: full\nname: other\ndescription: A test\n", "b.yml")
    assert (named.name, named.description) == ("other", "A test")
    assert user("base: full\n").batch_size == load_preset("full").batch_size


def test_native_and_millimetres(user):
    assert user("base: fast\nvoxel_size: native\n").voxel_size is None
    assert user("base: full\nvoxel_size: 2\n").voxel_size == 2.0


@pytest.mark.parametrize("text", ["1e6", "1.0e6", "1e+6", "1_000_000", "1000000.0", "1000000"])
def test_whole_numbers_however_they_are_written(user, text):
    value = user(f"base: fast\nmax_streamlines: {text}\n").max_streamlines
    assert value == 1_000_000 and isinstance(value, int)


def test_small_numbers_however_they_are_written(user):
    assert user("base: fast\nmrtrix3:\n  cutoff: 5e-2\n").mrtrix3.cutoff == 0.05
    with pytest.raises(UsageError, match="cutoff is '5e-2'"):
        user("base: fast\nmrtrix3:\n  cutoff: '5e-2'\n")


@pytest.mark.parametrize("key", KEYS)
def test_every_wrong_value_is_named(user, key):
    for value in WRONG:
        if isinstance(value, dict) and key in GROUPS:
            continue
        check_wrong_value(user, key, value)


def check_wrong_value(user, key, value):
    with pytest.raises(UsageError) as raised:
        user(changed(key, value))
    message = str(raised.value)
    assert "my.yaml" in message and key.split(".")[-1] in message and "must be" in message
    assert raised.value.exit_code == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reliability", 1.0),
        ("reliability", True),
        ("reliability", "0.9"),
        ("max_streamlines", 0),
        ("max_streamlines", 10.5),
        ("max_streamlines", True),
        ("batch_size", float("inf")),
        ("voxel_size", 0.1),
        ("voxel_size", "Native"),
        ("lmax", 5),
        ("lmax", 10),
        ("lmax", True),
        ("sift2", 1),
        ("sift2", "yes"),
        ("name", 5),
        ("mrtrix3.response", "manual"),
        ("mrtrix3.fod", "msmt"),
        ("dipy.sphere", "symmetric724"),
        ("dipy.angle", 91),
        ("dipy", "fast"),
        ("mrtrix3", None),
    ],
)
def test_values_next_to_right_ones(user, key, value):
    with pytest.raises(UsageError, match=r"my\.yaml: .*must be") as raised:
        user(changed(key, value))
    assert key.split(".")[-1] in str(raised.value) and repr(value) in str(raised.value)


@pytest.mark.parametrize("key", KEYS)
def test_every_missing_key_is_named(user, key):
    with pytest.raises(UsageError, match=r"my\.yaml.* is missing") as raised:
        user(changed(key, None, drop=True))
    assert repr(key.split(".")[-1]) in str(raised.value)
    assert "base: fast" in raised.value.hint


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("reliabilty", "reliability"),
        ("max_streamline", "max_streamlines"),
        ("dipy.sphare", "sphere"),
        ("mrtrix3.cut_off", "cutoff"),
    ],
)
@pytest.mark.parametrize("base", [True, False])
def test_unknown_keys_are_refused_with_the_one_that_was_meant(user, key, meant, base):
    document = changed(key, 1)
    if base:
        group, _, last = key.rpartition(".")
        document = {"base": "full", **({group: {last: 1}} if group else {last: 1})}
    with pytest.raises(UsageError, match=f"unknown key '{key.split('.')[-1]}'") as raised:
        user(document)
    assert f"did you mean {meant!r}" in str(raised.value) and "my.yaml" in str(raised.value)


def test_a_key_that_is_like_no_other(user):
    with pytest.raises(UsageError, match=r"unknown key 7$") as raised:
        user({**packaged(), 7: 1})
    assert "known keys: name, description" in raised.value.hint


def test_bounds_have_to_fit_each_other(user):
    with pytest.raises(UsageError, match=r"my\.yaml: min_length must be below max_length"):
        user("base: fast\nmin_length: 100\nmax_length: 100\n")
    with pytest.raises(UsageError, match=r"my\.yaml: fa_seed must not be below fa_stop"):
        user("base: fast\nfa_stop: 0.3\n")
    assert user("base: fast\nfa_stop: 0.2\n").fa_stop == 0.2


@pytest.mark.parametrize("base", ["slow", "my.yaml", ["fast"], None, {}])
def test_a_base_is_a_preset_of_the_package(user, base):
    with pytest.raises(UsageError, match=r"my\.yaml: base is .*one of fast, full"):
        user({"base": base})


@pytest.mark.parametrize("text", ["", "[1, 2]", "fast", "a: [1"])
def test_what_is_no_mapping(user, text):
    with pytest.raises(UsageError, match=r"my\.yaml: (must be a mapping|cannot be read as YAML)"):
        user(text)


def test_names_and_paths(tmp_path):
    with pytest.raises(UsageError, match="'fsat', did you mean 'fast'") as raised:
        load_preset("fsat")
    assert "fast, full; or the path of a YAML file" in raised.value.hint
    with pytest.raises(UsageError, match=r"preset 'thorough'$"):
        load_preset("thorough")
    for path in ("mine.yaml", "mine.YML", tmp_path / "mine"):
        with pytest.raises(InputMissingError, match="no such tractography preset file"):
            load_preset(path)
    with pytest.raises(UsageError, match="cannot be read as text"):
        load_preset(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"a\.yaml: cannot be read as text"):
        load_preset(tmp_path / "a.yaml")


def test_a_file_in_the_folder_does_not_hide_a_preset(tmp_path, monkeypatch):
    (tmp_path / "fast").write_text("base: full\n")
    monkeypatch.chdir(tmp_path)
    assert load_preset("fast").reliability == 0.95
    assert load_preset(tmp_path / "fast").reliability == 0.99


@given(st.floats(0.01, 0.99999), st.integers(1, 10**7), st.sampled_from([2, 4, 6, 8]))
def test_right_values_come_through(reliability, batch_size, lmax):
    document = {**packaged(), "reliability": reliability, "batch_size": batch_size, "lmax": lmax}
    preset = presets._make(document, "a.yaml")
    assert (preset.reliability, preset.batch_size, preset.lmax) == (reliability, batch_size, lmax)
