"""What fuzzing found (scripts/fuzz.py), each kept as a small case: refused with reason, or read."""

import io
import json
import os
import signal
import time
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsym_bids import untrusted
from bsym_bids.atlas import roi_names
from bsym_bids.bold.confounds import read_confounds
from bsym_bids.bold.nuisance import CompCor, NuisanceStrategy, load_strategy
from bsym_bids.bold.parcellate import parcellate
from bsym_bids.bold.volumes import load_image, open_series
from bsym_bids.config import make_config
from bsym_bids.dwi.gradients import read_gradients
from bsym_bids.dwi.presets import load_preset
from bsym_bids.dwi.tracks import read_tck_header
from bsym_bids.dwi.transforms import Affine, load_volume, read_template_transform
from bsym_bids.errors import BadDataError, BsymError, UsageError
from bsym_bids.inputs.records import Derivatives
from bsym_bids.inputs.series import Series, acquired, count_weighted
from bsym_bids.interfaces.base import FAILURE_RECORD
from bsym_bids.model.cards import own_card
from bsym_bids.outputs.reading import read_numbers, read_roi_column, read_windows, run_of
from bsym_bids.outputs.tables import Table
from bsym_bids.prediction.column_values import class_names, identity, looks_numeric, number_of
from bsym_bids.prediction.feature_file import LAYOUT, DamagedError, Entry, Writer, read_index
from bsym_bids.prediction.heads import Head, HeadFile, Part, read_heads, write_heads
from bsym_bids.prediction.phenotypes import Column, read_phenotypes
from bsym_bids.workflows.execution import choose_plugin, failure_of

DEEP = "[" * 100_000
#: No file of these takes longer than a second; before, some took minutes.
HANG = 20


@pytest.fixture(autouse=True)
def no_hang():
    """End a test that would never end."""

    def expired(*_):
        pytest.fail(f"took more than {HANG} s of the processor")

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


# --- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP, "nested more than 64"),
        ("[" * 900 + "]" * 900, "nested more than 64"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested more than 64"),
        ("1" * 400, "more than 308 digits"),
        ("1" * 5000, "digits"),
        (b"\xff\xfe{\x00}\x00", "utf-8"),
        ("", "Expecting value"),
        ("\0", "Expecting value"),
    ],
)
def test_json_that_is_none(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        untrusted.read_json(path)


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"a": 1}', b'{"a":\r1}', b'{"a":\r\n 1}'])
def test_marks_and_line_ends_do_not_matter(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert untrusted.read_json(tmp_path / "x.json") == {"a": 1}


def laughs(last="a"):
    lines = [f"x{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(["x0: &n0 [ha, ha]", *lines, f"{last}: *n8"])


MERGES = "\n".join(
    ["m0: &m0 {k: v}"]
    + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(), "more than 50000 entries"),
        (MERGES, "more than 50000 entries"),
        ("a: &a [*a]", "an alias stands within"),
        ("&a {<<: *a}", "an alias stands within"),
        ("[" * 2000, "nested more than 64"),
        ("a: " + "1" * 5000, "digits"),
        ("a: 0x" + "f" * 5000, "more than 308 digits"),
        ("a: 2020-13-45", "not of its type"),
        ("a: !!int ''", "not of its type"),
        ("a: !!bool x", "not of its type"),
        ("a: !!timestamp x", "not of its type"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: \0", "not allowed"),
    ],
)
def test_yaml_that_is_none(text, said):
    with pytest.raises(ValueError, match=said):
        untrusted.parse_yaml(text)


def test_yaml_with_a_few_aliases_is_read():
    text = "a: &a {k: v}\nb: *a\nc: {<<: *a, l: w}\n"
    document = untrusted.parse_yaml(text)
    assert document == {"a": {"k": "v"}, "b": {"k": "v"}, "c": {"k": "v", "l": "w"}}
    assert untrusted.parse_yaml("") is None


@pytest.mark.parametrize("text", ["a = " + DEEP, "a = 0x" + "f" * 5000, "a = " + "1" * 5000, "\0"])
def test_toml_that_is_none(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=r"nested|digits|at line 1|at end"):
        untrusted.read_toml(tmp_path / "x.toml")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(ValueError, match="a pipe or a device"):
            untrusted.read_json(tmp_path / name)
    (tmp_path / "large.json").write_text(" " * 100)
    with pytest.raises(ValueError, match="more than 99 bytes"):
        untrusted.read_json(tmp_path / "large.json", most=99)
    with pytest.raises(IsADirectoryError):
        untrusted.read_json(tmp_path)
    with pytest.raises(BadDataError, match="a pipe or a device"):
        (tmp_path / "pipe.json").rename(tmp_path / "pipe.nii.gz")
        load_image(tmp_path / "pipe.nii.gz")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_any_text_is_read_or_refused(text):
    for parse in (untrusted.parse_json, untrusted.parse_yaml):
        try:
            parse(text)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("-1.5e3", -1500), (".5", 0.5), ("3.", 3), ("inf", np.inf)]
)
def test_numbers(text, number):
    assert untrusted.to_float(text) == number


@pytest.mark.parametrize(
    "text", ["", " 1", "1_000", "\u0663", "0x10", "1e", "--1", "1" * 100, "nan0", "\u22121"]
)
def test_what_python_alone_takes_for_a_number(text):
    with pytest.raises(ValueError, match="not a number"):
        untrusted.to_float(text)


def test_reading_that_kills_its_process_does_not_kill_ours():
    with pytest.raises(ValueError, match="SIGSEGV"):
        untrusted.try_apart(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(ValueError, match=r"SIG(XCPU|KILL)"):
        untrusted.try_apart(_turn_for_ever, seconds=1)
    untrusted.try_apart(lambda: None)
    untrusted.try_apart(lambda: 1 / 0)  # who reads it next is told


def _turn_for_ever():
    while True:
        time.process_time()


# --- sidecars and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0.05", -0.05, 0, True, 10.0, float("nan"), [0.05]])
def test_readout_times_that_are_none(tmp_path, value):
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    for name in ("nii.gz", "bval", "bvec"):
        (folder / f"sub-01_dwi.{name}").touch()
    (folder / "sub-01_dwi.json").write_text(json.dumps({"TotalReadoutTime": value}))
    with pytest.raises(BadDataError, match=r"sub-01_dwi\.json: TotalReadoutTime is"):
        acquired(Series(folder / "sub-01_dwi.nii.gz", Derivatives("raw", tmp_path)))


@pytest.mark.parametrize("text", ["0 nan", "0 -5", "0 1_000", "0 inf", "0 \u0663"])
def test_b_values_that_are_none(tmp_path, text):
    bval = tmp_path / "x.bval"
    bval.write_text(text)
    with pytest.raises(BadDataError, match=r"x\.bval"):
        count_weighted(bval)


def test_b_values_with_commas_are_counted_as_they_are_read(tmp_path):
    (tmp_path / "x.bval").write_text("0,1000,1000")
    assert count_weighted(tmp_path / "x.bval") == 2


@pytest.mark.parametrize("b", ["1e300", "1e12", "60000"])
def test_weightings_that_no_scanner_has(tmp_path, b):
    (tmp_path / "x.bval").write_text(f"0 {b}")
    (tmp_path / "x.bvec").write_text("0 1\n0 0\n0 0")
    with pytest.raises(BadDataError, match="no weighting"):
        read_gradients(tmp_path / "x.bval", tmp_path / "x.bvec", 2)


def test_vectors_that_are_none(tmp_path):
    (tmp_path / "x.bval").write_text("0 1000")
    (tmp_path / "x.bvec").write_text("0 1e200\n0 0\n0 0")
    with pytest.raises(BadDataError, match="of no directions"):
        read_gradients(tmp_path / "x.bval", tmp_path / "x.bvec", 2)


@pytest.mark.parametrize("seconds", [0, 1e-9, -2.0, "2.0", True, None, float("nan"), 2e6, [2]])
def test_repetition_times_of_outputs_that_are_none(tmp_path, seconds):
    path = tmp_path / "sub-01_task-x_atlas-y_stat-mean_desc-denoised_timeseries.tsv"
    path.touch()
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": seconds}))
    with pytest.raises(BadDataError, match="RepetitionTime is"):
        run_of(path)


# --- tables --------------------------------------------------------------------------------------

STRATEGY = NuisanceStrategy("x", columns=("csf",))


def confounds(tmp_path, text, strategy=STRATEGY, rows=3):
    path = tmp_path / "x.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_confounds(path, strategy, rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("csf\tcsf\n1\t2\n2\t3\n3\t5\n", "column csf more than once"),
        ("csf\n1_0\n2\n3\n", "'1_0' is not a number"),
        ("csf\n1\n2\n\u0663\n", "is not a number"),
        ("csf\n1\n2\n" + "9" * 400 + "\n", "is not a number"),
        ("csf\n1\n2\n3\n".encode("utf-16"), "cannot be read as a table"),
        (b"csf\n1\n2\n\xff\n", "cannot be read as a table"),
        ("csf\n1\n2\n" + "9" * 200_000 + "\n", "cannot be read as a table"),
    ],
)
def test_confounds_that_are_none(tmp_path, text, said):
    with pytest.raises(BadDataError, match=said):
        confounds(tmp_path, text)


@pytest.mark.parametrize("ends", ["\r", "\r\n"])
def test_confounds_with_other_line_ends(tmp_path, ends):
    text = b"\xef\xbb\xbf" + ends.join(["csf", "1", "2", "4", ""]).encode()
    assert confounds(tmp_path, text).values[:, 0].tolist() == [1, 2, 4]


def test_displacement_below_zero_is_not_used(tmp_path):
    found = confounds(tmp_path, "csf\tframewise_displacement\n1\tn/a\n2\t-1\n4\t0.1\n")
    assert found.framewise_displacement is None and "negative" in " ".join(found.notes)


@pytest.mark.parametrize("mask", [["CSF"], 3, None, {"a": 1}])
def test_masks_that_are_no_text(tmp_path, mask):
    document = {"a_comp_cor_00": {"Mask": mask}}
    (tmp_path / "x.json").write_text(json.dumps(document))
    strategy = NuisanceStrategy("x", acompcor=CompCor(("CSF",), 1))
    with pytest.raises(BadDataError, match="no anatomical CompCor components"):
        confounds(tmp_path, "a_comp_cor_00\n1\n2\n4\n", strategy)


def test_a_table_of_very_many_columns_is_searched_in_no_time(tmp_path):
    header = "\t".join(f"x{i}" for i in range(100_000))
    row = "\t".join(["0"] * 100_000)
    with pytest.raises(BadDataError, match="needs columns that are missing"):
        confounds(tmp_path, f"{header}\n{row}\n", rows=1)
    (tmp_path / "participants.tsv").write_text(f"participant_id\t{header}\nsub-01\t{row}\n")
    with pytest.raises(UsageError, match="no table has a column"):
        read_phenotypes(tmp_path).column("y" * 10_000)


@pytest.mark.parametrize(
    "text", ["9" * 5000, "9" * 60_000 + "!", "1" + " " * 60_000 + "!", "1." * 30_000]
)
def test_cells_of_any_length_are_text(text):
    column = Column("x", None, False, {("01", ""): text, ("02", ""): "1"})
    assert number_of(text) is None
    assert identity(text) == text.lower()
    looks_numeric(column)
    assert class_names(column)["01", ""] == text


def test_an_identifier_of_many_digits_is_exact():
    assert identity("9" * 300) != identity("9" * 299 + "8")
    assert identity("007") == identity("7")


def test_a_column_of_rois_is_finite(tmp_path):
    table = Table({"name": roi_names(), "volume": ["inf"] * 450})
    table.write(tmp_path / "x.tsv")
    with pytest.raises(BadDataError, match="not finite"):
        read_roi_column(tmp_path / "x.tsv", "volume")


def test_tables_of_outputs_that_are_none(tmp_path):
    (tmp_path / "x.tsv").write_text("\t".join(f"x{i}" for i in range(20_000)) + "\n")
    with pytest.raises(BadDataError, match="20000 columns"):
        read_numbers(tmp_path / "x.tsv", "x")
    for value in ("9" * 400, "1e999x", "..", "9" * 5000):
        (tmp_path / "x.tsv").write_text(f"x\n{value}\n")
        with pytest.raises(BadDataError, match=r"x cannot be read of it|not finite"):
            read_numbers(tmp_path / "x.tsv", "x")
    Table({"x": [1.5]}).write(tmp_path / "x.tsv")
    assert read_numbers(tmp_path / "x.tsv", "x").tolist() == [1.5]


# --- recipes, settings, cards --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        laughs("columns"),
        MERGES,
        "name: x\ncolumns: ['/a{99999999999}/']",
        "name: x\ncolumns: ['/" + "(" * 5000 + "/']",
        "name: x\ncolumns: []\nhigh_pass: 0x" + "f" * 300,
        "name: x\ncolumns: []\nhigh_pass: .nan",
        "name: x\ncolumns: []\nhigh_pass: 2020-01-01",
        DEEP,
    ],
)
def test_recipes_that_are_none(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"x\.yaml"):
        load_strategy(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        load_preset(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        choose_plugin(tmp_path / "x.yaml", 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "seed = 0x" + "f" * 300,
        "seed = 0x" + "f" * 5000,
        "seed = 4294967296",
        "high_pass = 0x" + "f" * 300,
        "high_pass = nan",
        "participant_label = [[]]",
        "participant_label = [nan]",
        "participant_label = [{}]",
        'participant_label = [""]',
        'participant_label = ["sub-"]',
        'participant_label = ["a\\u0000"]',
        'bids_filter_file = "a\\u0000"',
        'bids_filter_file = ""',
        'nuisance = "a\\u0000"',
        'derivatives = {x = "a\\u0000"}',
        "a = " + DEEP,
    ],
)
def test_settings_that_are_none(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    given = {"bids_dir": tmp_path, "output_dir": tmp_path / "o", "analysis_level": "participant"}
    with pytest.raises(UsageError):
        make_config(given, tmp_path / "x.toml")


def test_a_name_that_is_too_long_for_a_file_is_none(tmp_path):
    given = {"bids_dir": tmp_path, "output_dir": tmp_path / "o", "analysis_level": "participant"}
    config = make_config({**given, "nuisance": "x" * 5000, "preset": "x/" * 5000})
    assert config.with_absolute_paths().nuisance == "x" * 5000
    with pytest.raises(UsageError, match="unknown nuisance strategy"):
        load_strategy(config.nuisance)


@pytest.mark.parametrize(
    "change",
    [
        "contract: {rois: 0xf" + "f" * 300 + "}",
        "contract: {rois: 10000000000}",
        "contract: {repetition_time: 0x" + "f" * 300 + "}",
        "contract: {repetition_time: .inf}",
        "contract: {repetition_time: 1e-12}",
        "contract: {repetition_time: 720}",
        "network: {max_hops: 100000000}",
        "network: {diffusion_theta: .nan}",
        laughs("training"),
        "quality: {edges: {r2: 0x" + "f" * 300 + "}}",
    ],
)
def test_cards_that_are_none(tmp_path, change):
    files = "files: {context: {path: a.pth, sha256: '" + "0" * 64 + "'}}"
    network = "" if change.startswith("network") else "network: {}"
    text = f"name: x\nversion: '1'\ntrained: true\n{files}\n{network}\n{change}\n"
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(BadDataError, match=r"model\.yaml"):
        own_card(tmp_path)


def test_a_record_of_a_failure_that_is_none(tmp_path):
    (tmp_path / "step").mkdir()
    for content in ("{}", "[]", "3", '{"message": "x", "hint": "y", "exit_code": "z"}', DEEP):
        (tmp_path / "step" / FAILURE_RECORD).write_text(content)
        assert failure_of(tmp_path, tmp_path) is None


# --- images --------------------------------------------------------------------------------------


def test_a_unit_of_time_that_is_none(tmp_path):
    image = nib.Nifti1Image(np.ones((5, 5, 5, 3), np.int16), np.diag([2, 2, 2, 1]))
    image.header["xyzt_units"] = 7
    nib.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[123] = 0xFF
    (tmp_path / "x.nii").write_bytes(content)
    assert open_series(tmp_path / "x.nii", load_image(tmp_path / "x.nii")).repetition_time is None


@pytest.mark.parametrize("offset", [1e30, 1e9, -1e9])
def test_numbers_that_begin_behind_the_end(tmp_path, offset):
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.int16), np.eye(4)), tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(BadDataError, match=r"x\.nii: "):
        load_volume(tmp_path / "x.nii")


@pytest.mark.parametrize("kind", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_masks_of_other_types(tmp_path, kind):
    affine = np.diag([16.0, 16, 16, 1])
    affine[:3, 3] = -72, -104, -60
    nib.save(nib.Nifti1Image(np.ones((9, 13, 9, 3), np.int16), affine), tmp_path / "x.nii")
    nib.save(nib.Nifti1Image(np.zeros((9, 13, 9), kind), affine), tmp_path / "mask.nii")
    with pytest.raises(BadDataError, match=r"mask\.nii: is of type"):
        parcellate(tmp_path / "x.nii", tmp_path / "mask.nii", space="MNI152NLin6Asym")


@pytest.fixture
def cifti(tmp_path):
    from bsym_bids.atlas.grayordinates import _dlabel

    some = _dlabel()[1][np.r_[0:300, 59412:59500]]
    values = np.random.default_rng(0).standard_normal((6, len(some))).astype(np.float32)
    axes = (nib.cifti2.SeriesAxis(0, 2.0, 6), some)
    path = tmp_path / "x_space-fsLR_bold.dtseries.nii"
    nib.save(nib.Cifti2Image(values, axes), path)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'Points="6"', b'Points="9"'),
        (b'Points="6"', b'Points="x"'),
        (b"CIFTI_INDEX_TYPE_SERIES", b"CIFTI_INDEX_TYPE_SCALAR"),
        (b"CIFTI_STRUCTURE_CORTEX_LEFT", b"CIFTI_STRUCTURE_CORTEX_LEXT"),
        (b"<VertexIndices>0 ", b"<VertexIndices>x "),
        (b"</CIFTI>", b"</CIFT >"),
        (b'SurfaceNumberOfVertices="32492"', b'SurfaceNumberOfVertices="3x492"'),
    ],
)
def test_headers_of_cifti_that_are_none(cifti, old, new):
    content = cifti.read_bytes()
    assert content.count(old)
    cifti.write_bytes(content.replace(old, new))
    with pytest.raises(BadDataError, match="x_space-fsLR_bold"):
        parcellate(cifti)


# --- archives ------------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path):
    ones = np.ones((3, 1), np.float32)
    one = Head({"fc": Part(ones, ones[:, 0])}, ("age",), np.ones(1), np.ones((1, 1)), np.ones(1))
    about = {"Target": "x", "TaskType": "regression", "Units": "", "Classes": [], "Settings": {}}
    path = tmp_path / "head.npz"
    write_heads(path, HeadFile({"fc": one}, about))
    assert read_heads(path).predict("fc", {"fc": np.ones((2, 3))}, np.ones((2, 1))).shape == (2,)
    return path


def rewritten(path, **changes):
    arrays = dict(np.load(path)) | changes
    np.savez(path, allow_pickle=True, **arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc/fc/weights", np.full((3, 1), np.nan, np.float32)),
        ("fc/fc/weights", np.full((3, 1), np.inf, np.float32)),
        ("fc/fc/weights", np.ones((4, 1), np.float32)),
        ("fc/fc/weights", np.ones((3, 2), np.float32)),
        ("fc/fc/weights", np.array([["a"], ["b"], ["c"]])),
        ("fc/fc/weights", np.array([{}], dtype=object)),
        ("fc/confound_means", np.array(7.0)),
        ("fc/confound_weights", np.ones((2, 1))),
        ("fc/intercept", np.ones(2)),
        ("fc/intercept", np.full(1, 1e308)),
        ("fc/intercept", np.zeros(1, dtype=[("a", "f8")])),
        ("fc/shares", np.ones(2)),
    ],
)
def test_weights_of_heads_that_do_not_fit(head, name, value):
    rewritten(head, **{name: value})
    with pytest.raises(BadDataError, match=r"head\.npz: not a file of predictors"):
        read_heads(head)


def test_a_head_without_features(head):
    """Nobody has any of none, so that nobody would be predicted."""
    empty = np.empty((0, 1), np.float32)
    rewritten(head, **{"fc/fc/weights": empty, "fc/fc/means": empty[:, 0]})
    with pytest.raises(BadDataError, match=r"head\.npz: .*nothing in a kind of features"):
        read_heads(head)


@pytest.mark.parametrize(
    "change",
    [
        {"Target": 3},
        {"TaskType": "x"},
        {"TaskType": "classification"},
        {"Classes": 3},
        {"Classes": [1, 2]},
        {"Settings": 1},
        {"Settings": {"a": 1}},
        {"Heads": None},
        {"Heads": []},
        {"Heads": {}},
        {"Heads": {"fc": {"Features": 3}}},
        {"Heads": {"fc": {"Features": ["fc"], "Confounds": [1]}}},
        3,
        [],
    ],
)
def test_what_heads_say_of_themselves(head, change):
    about = json.loads(bytes(dict(np.load(head))["about"]))
    document = about | change if isinstance(change, dict) else change
    rewritten(head, about=np.frombuffer(json.dumps(document).encode(), np.uint8))
    with pytest.raises(BadDataError, match=r"head\.npz"):
        read_heads(head)


def windows(path, **changes):
    arrays = {
        "embedding": np.zeros((2, 450, 3), np.float32),
        "masked": np.zeros((450, 3), np.float32),
        "onset": np.zeros(2),
        "censored_share": np.zeros(2),
    }
    np.savez_compressed(path, **(arrays | changes))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": np.zeros((2, 449, 3), np.float32)},
        {"embedding": np.zeros((2, 450, 3), np.int8)},
        {"masked": np.zeros((450, 4), np.float32)},
        {"onset": np.zeros(3)},
        {"censored_share": np.array("x")},
    ],
)
def test_windows_that_do_not_fit(tmp_path, change):
    assert read_windows(windows(tmp_path / "good.npz"))["embedding"].shape == (2, 450, 3)
    with pytest.raises(BadDataError, match="not those of windows"):
        read_windows(windows(tmp_path / "x.npz", **change))


@pytest.mark.parametrize("shape", [b"(99999999999,)", b"(100000, 100000)"])
def test_arrays_that_say_that_they_are_larger(tmp_path, shape):
    path = windows(tmp_path / "x.npz")
    lying = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(lying, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            start = content.find(b"'shape': ") + 9
            end = content.find(b")", start) + 1
            new.writestr(name, content[:start] + shape + content[end:])
    path.write_bytes(lying.getvalue())
    with pytest.raises(BadDataError, match="is smaller than it says"):
        read_windows(path)


def test_arrays_that_inflate(tmp_path):
    path = windows(tmp_path / "x.npz", more=np.zeros(10**6))
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match="more than 1000000"):
        untrusted.read_arrays(path, most=10**6)


def test_a_damaged_archive(tmp_path):
    path = windows(tmp_path / "x.npz")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=r"x\.npz: cannot be read"):
        read_windows(path)


# --- transforms, streamlines, features -----------------------------------------------------------


@pytest.fixture
def transform(tmp_path):
    whole = sitk.CompositeTransform(3)
    whole.AddTransform(sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0)))
    path = tmp_path / "x_xfm.h5"
    sitk.WriteTransform(whole, str(path))
    assert isinstance(read_template_transform(path)[0], Affine)
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TransformType", [b"Euler3DTransform_double_2_2"]),
        ("TransformType", [b"BSplineTransform_double_3_3"]),
        ("TransformType", [b"DisplacementFieldTransform_double_3_3"]),
        ("TransformType", [b"SortOf_double_3_3"]),
        ("TransformType", 3.0),
        ("TransformParameters", np.ones(2)),
        ("TransformParameters", np.full(6, np.nan)),
        ("TransformParameters", "text"),
        ("TransformFixedParameters", np.ones(1)),
    ],
)
def test_transforms_that_are_none(transform, name, value):
    with h5py.File(transform, "r+") as file:
        del file[f"TransformGroup/1/{name}"]
        file[f"TransformGroup/1/{name}"] = value
    with pytest.raises(BadDataError, match=r"x_xfm\.h5: cannot be read as a composite"):
        read_template_transform(transform)


def test_a_transform_without_a_way_back(tmp_path):
    flat = sitk.AffineTransform(3)
    flat.SetMatrix((1, 0, 0, 0, 1, 0, 0, 0, 1e-9))
    whole = sitk.CompositeTransform(3)
    whole.AddTransform(flat)
    sitk.WriteTransform(whole, str(tmp_path / "x.h5"))
    with pytest.raises(BadDataError, match="scales volumes"):
        read_template_transform(tmp_path / "x.h5")


@pytest.mark.parametrize("offset", ["-5", "9" * 30, "999"])
def test_streamlines_that_do_not_begin_in_the_file(tmp_path, offset):
    path = tmp_path / "x.tck"
    text = f"mrtrix tracks\ndatatype: Float32LE\ncount: 1\nfile: . {offset}\nEND\n"
    path.write_text(text)
    with pytest.raises(BadDataError, match="do not begin in the file"):
        read_tck_header(path)


@pytest.mark.parametrize(
    "change", [{"row": "0"}, {"row": 0.5}, {"seen": None}, {"states": [["a", 1]]}, {"digests": [1]}]
)
def test_an_index_of_features_that_is_none(tmp_path, change):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layout"] = LAYOUT
        writer = Writer(file, "fc", "1", 4)
        writer.append(("sub-1",), np.arange(5, dtype="f4"), Entry(((1, 2),), ("x",), 5))
        writer.finish()
        assert len(read_index(file, "fc", "1")) == 1
        document = json.loads(file["fc/index"][()].tobytes())
        document = {key: entry | change for key, entry in document.items()}
        del file["fc/index"]
        file["fc/index"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
        with pytest.raises(DamagedError):
            read_index(file, "fc", "1")
    assert issubclass(DamagedError, BsymError)
