"""Streamlines in .tck and .trx files."""

import re
import subprocess

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.streamlines import TckFile, Tractogram

from bsym_bids.dwi.tracks import (
    Streamlines,
    append_tck,
    create_tck,
    cut_tck,
    points_size,
    read_tck,
    read_tck_header,
    tck_to_trx,
    write_tck,
)
from bsym_bids.errors import BadDataError, InputMissingError

TYPES = {"Float32LE": "<f4", "Float32BE": ">f4", "Float64LE": "<f8", "Float64BE": ">f8"}
LENGTHS = (3, 1, 0, 7, 2, 0, 4)


def streamlines_of(lengths, seed=0):
    points = np.random.default_rng(seed).normal(size=(sum(lengths), 3), scale=50)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Streamlines(points.astype(np.float32), offsets)


def listed(streamlines):
    return np.split(streamlines.points, streamlines.offsets[1:])[: len(streamlines)]


def read_all(path, **options):
    return [line for piece in read_tck(path, **options) for line in listed(piece)]


def by_hand(path, streamlines, datatype="Float32LE", after=b""):
    """Write a file number by number, as the format's documentation has it."""
    head = f"mrtrix tracks\ndatatype: {datatype}\nroi: a\nroi: b\ncount: {len(streamlines)}\n"
    rows = []
    for line in listed(streamlines):
        rows += [*line, [np.nan] * 3]
    rows.append([np.inf] * 3)
    offset = 200
    text = (head + f"file: . {offset}\nEND\n").encode().ljust(offset, b"\0")
    path.write_bytes(text + np.array(rows, TYPES[datatype]).tobytes() + after)


@pytest.fixture
def some():
    return streamlines_of(LENGTHS)


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("datatype", TYPES)
def test_reads_every_type_of_numbers(tmp_path, some, datatype):
    by_hand(tmp_path / "a.tck", some, datatype, after=b"whatever")
    for piece_bytes in (1, 40, 100, 1 << 20):
        same(read_all(tmp_path / "a.tck", piece_bytes=piece_bytes), listed(some))
    header = read_tck_header(tmp_path / "a.tck")
    assert header.count == len(LENGTHS) and header.fields == {"roi": "b"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 300))
def test_what_is_written_is_read(tmp_path_factory, lengths, piece_bytes):
    path = tmp_path_factory.mktemp("tck") / "a.tck"
    written = streamlines_of(lengths)
    write_tck(path, written, {"step_size": "0.5"})
    same(read_all(path, piece_bytes=piece_bytes), listed(written))
    header = read_tck_header(path)
    assert header.fields == {"step_size": "0.5"} and header.count == len(lengths)
    size = points_size(sum(lengths), len(lengths)) + points_size(1, 0)
    assert path.stat().st_size == header.offset + size


def test_agrees_with_nibabel(tmp_path):
    ours = streamlines_of((3, 1, 7, 2))
    write_tck(tmp_path / "ours.tck", ours)
    same(list(nib.streamlines.load(tmp_path / "ours.tck").streamlines), listed(ours))
    tractogram = Tractogram(listed(ours), affine_to_rasmm=np.eye(4))
    TckFile(tractogram).save(tmp_path / "theirs.tck")
    same(read_all(tmp_path / "theirs.tck"), listed(ours))


@pytest.mark.mrtrix3
def test_agrees_with_mrtrix3(tmp_path, some):
    write_tck(tmp_path / "a.tck", some, {"step_size": "1"})
    create_tck(tmp_path / "twice.tck")
    for _ in range(2):
        append_tck(tmp_path / "twice.tck", tmp_path / "a.tck", len(LENGTHS))
    info = subprocess.run(
        ["tckinfo", "-count", "twice.tck"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"count\D+(\d+)", info) == ["0000000014", "14"]
    subprocess.run(["tckedit", "-quiet", "twice.tck", "theirs.tck"], cwd=tmp_path, check=True)
    not_empty = [line for line in listed(some) if len(line)]  # which tckedit leaves out
    same(read_all(tmp_path / "theirs.tck"), 2 * not_empty)
    lengths = tmp_path / "lengths.txt"
    subprocess.run(["tckstats", "-quiet", "a.tck", "-dump", lengths], cwd=tmp_path, check=True)
    expected = [np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in listed(some)]
    np.testing.assert_allclose(np.nan_to_num(np.loadtxt(lengths)), expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(TYPES)), st.integers(1, 120))
def test_a_truncated_file_is_refused(tmp_path_factory, cut, datatype, piece_bytes):
    path = tmp_path_factory.mktemp("tck") / "a.tck"
    by_hand(path, streamlines_of(LENGTHS), datatype)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(BadDataError, match=r"a\.tck"):
        read_all(path, piece_bytes=piece_bytes)


def test_refuses_what_is_no_tck_file(tmp_path, some):
    path = tmp_path / "a.tck"
    with pytest.raises(InputMissingError, match="no such file"):
        read_all(path)
    for content, reason in (
        (b"TRACK", "is not a .tck file"),
        (b"mrtrix tracks\ncount: 3\n", "the header has no end"),
        (b"mrtrix tracks\ndatatype: Int8\nfile: . 9\nEND\n", "Int8"),
        (b"mrtrix tracks\ndatatype: Float32LE\nEND\n", "file"),
        (b"mrtrix tracks\ndatatype: Float32LE\nfile: b.dat 0\nEND\n", r"b\.dat"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadDataError, match=reason):
            read_all(path)
    some.points[4, 1] = np.nan
    by_hand(path, some)
    with pytest.raises(BadDataError, match="not finite"):
        read_all(path)


def test_refuses_a_last_streamline_without_end(tmp_path, some):
    by_hand(tmp_path / "a.tck", some)
    whole = (tmp_path / "a.tck").read_bytes()
    (tmp_path / "a.tck").write_bytes(whole[:-24] + whole[-12:])  # without the last NaN
    with pytest.raises(BadDataError, match="last streamline is not complete"):
        read_all(tmp_path / "a.tck")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=4), st.sampled_from(sorted(TYPES))
)
def test_appending_is_writing_all_at_once(tmp_path_factory, lots, datatype):
    folder = tmp_path_factory.mktemp("tck")
    fields = {"step_size": "0.25"}
    create_tck(folder / "all.tck", fields)
    for lengths in lots:
        by_hand(folder / "a.tck", streamlines_of(lengths), datatype)
        append_tck(folder / "all.tck", folder / "a.tck", len(lengths))
    parts = [streamlines_of(lengths) for lengths in lots]
    points = np.concatenate([np.empty((0, 3), np.float32), *(part.points for part in parts)])
    lengths = [n for lot in lots for n in lot]
    write_tck(
        folder / "once.tck",
        Streamlines(points, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        fields,
    )
    assert (folder / "all.tck").read_bytes() == (folder / "once.tck").read_bytes()


def test_an_interrupted_append_can_be_undone_wherever_it_stopped(tmp_path, some):
    write_tck(tmp_path / "a.tck", some)
    path = tmp_path / "all.tck"
    create_tck(path)
    append_tck(path, tmp_path / "a.tck", len(some))
    once = path.read_bytes()
    append_tck(path, tmp_path / "a.tck", len(some))
    twice = path.read_bytes()
    size = points_size(len(some.points), len(some))
    for end in range(len(once) - 12, len(twice) + 1):
        path.write_bytes(twice[:end])
        cut_tck(path, len(some), size)
        assert path.read_bytes() == once
    with pytest.raises(BadDataError, match="has less than"):
        cut_tck(path, len(some), 2 * size)


def test_only_own_files_are_appended_to(tmp_path, some):
    by_hand(tmp_path / "a.tck", some)
    with pytest.raises(BadDataError, match="not begun by bsym-bids"):
        append_tck(tmp_path / "a.tck", tmp_path / "a.tck", len(some))


def test_trx_is_read_back_by_its_own_library(tmp_path, some):
    from trx.trx_file_memmap import load

    weights = np.arange(len(LENGTHS), dtype=np.float32) / 3
    affine = np.diag([2.0, 2, 2.5, 1])
    affine[:3, 3] = -60, -70, 10
    for name, lines in (("a", some), ("b", some), ("empty", streamlines_of(()))):
        write_tck(tmp_path / f"{name}.tck", lines)
        tck_to_trx(
            tmp_path / f"{name}.tck",
            tmp_path / f"{name}.trx",
            affine=affine,
            shape=(60, 70, 40),
            per_streamline={"sift2": weights[: len(lines)]},
        )
    found = load(str(tmp_path / "a.trx"))
    same(list(found.streamlines), listed(some))
    np.testing.assert_array_equal(found.header["VOXEL_TO_RASMM"], affine)
    np.testing.assert_array_equal(found.header["DIMENSIONS"], (60, 70, 40))
    np.testing.assert_array_equal(found.data_per_streamline["sift2"][:, 0], weights)
    assert found.streamlines._data.dtype == np.float32
    assert len(load(str(tmp_path / "empty.trx")).streamlines) == 0
    assert (tmp_path / "a.trx").read_bytes() == (tmp_path / "b.trx").read_bytes()
