"""Features that are kept: what is parsed again, what survives, what becomes of units."""

import os
import resource
import shutil
import time
import traceback
from dataclasses import replace

import h5py
import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from written_outputs import correlations, write_run, write_scan

from bsym_bids.errors import BadDataError, BsymError, CannotCreateOutputError, OutputIOError
from bsym_bids.outputs.tables import Table
from bsym_bids.prediction import feature_file, store
from bsym_bids.prediction.features import FeatureKind, feature_kinds, files_of
from bsym_bids.prediction.inventory import BOLD, DWI, take_inventory
from bsym_bids.prediction.records import Unit
from bsym_bids.prediction.store import FeatureStore

LONG_AGO = time.time_ns() - 3_600 * 10**9


class Place:
    """A dataset of tiny tables, and features that are read from them."""

    def __init__(self, folder):
        self.out = folder / "out"
        self.file = folder / "work" / "features.h5"
        self.log = folder / "parsed.txt"  # of all processes
        self.clock = LONG_AGO
        self.out.mkdir()
        self.kind = FeatureKind("toy", "toy", BOLD, files_of("connectivity"), self.read)

    def read(self, paths):
        with self.log.open("a") as log:
            log.write(f"{paths[0].name}\n")
        try:
            return np.array([float(line) for line in paths[0].read_text().split()[1:]])
        except ValueError as error:
            raise BadDataError(f"{paths[0]}: {error}") from error

    def write(self, sub, values, **options):
        """Write a run, long ago but after others; return the file that its features are of."""
        names = write_run(self.out, sub, Table({"x": list(values)}), **options)
        path = names.path("connectivity")
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))
        return path

    def load(self, kind=None, **options):
        records = take_inventory(self.out).records
        return self.store().load(kind or self.kind, records, **options)

    def units(self, *units):
        return self.store().unit_matrix(self.kind, units, take_inventory(self.out))

    def store(self):
        return FeatureStore(self.file, self.out)

    @property
    def parsed(self):
        """How many files were parsed since it was asked last."""
        n_lines = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        self.log.unlink(missing_ok=True)
        return n_lines


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def hashed(monkeypatch):
    """The files whose content was looked at."""
    found = []
    digest = store.digest_of
    monkeypatch.setattr(store, "digest_of", lambda path: found.append(path) or digest(path))
    return found


def in_a_process(work):
    """Do something in a process of its own; return its exit code, -1 for an exception."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(255)
        os._exit(0)
    return child


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- what is parsed -------------------------------------------------------------------------------


def test_features_are_those_of_their_kind(tmp_path):
    out = tmp_path / "out"
    for sub in ("01", "02"):
        write_run(out, sub, correlations(int(sub), missing=[3]))
        write_scan(out, sub, np.abs(correlations(int(sub))))
    records = take_inventory(out).records
    kinds = [feature_kinds()[key] for key in ("fc", "fc_tangent", "sc")]
    told = []
    kept = FeatureStore(tmp_path / "features.h5", out)
    kept.update(kinds, records, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 6) for number in range(1, 7)]
    for kind in kinds:
        values = kept.load(kind, records)
        assert values.dtype == np.float32
        for record, row in zip(records, values, strict=True):
            if record.modality == kind.modality:
                with threadpool_limits(1):
                    expected = kind.read(kind.sources(record)).astype(np.float32)
                np.testing.assert_array_equal(row, expected)
            else:
                assert np.isnan(row).all()


def test_several_workers_make_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FEW", 0)
    out = tmp_path / "out"
    for sub in ("01", "02", "03"):
        write_scan(out, sub, np.abs(correlations(int(sub))))
    names = write_scan(out, "02", np.abs(correlations(2)))
    names.path("count").write_text("")
    records, kind = take_inventory(out).records, feature_kinds()["sc"]
    one, several = (FeatureStore(tmp_path / f"{n}.h5", out) for n in (1, 2))
    values = several.load(kind, records, n_workers=2)
    np.testing.assert_array_equal(one.load(kind, records), values)
    assert np.isnan(values).all(axis=1).tolist() == [False, True, False]
    assert several.problem(kind, records[1]) == one.problem(kind, records[1]) != ""


def test_what_is_kept_is_not_parsed_or_even_read(place, hashed):
    for sub in ("01", "02"):
        place.write(sub, [int(sub), 2.5])
    first = place.load()
    assert place.parsed == 2
    hashed.clear()
    np.testing.assert_array_equal(place.load(), first)
    np.testing.assert_array_equal(first, [[1, 2.5], [2, 2.5]])
    assert place.parsed == 0 and not hashed


def test_another_content_of_the_same_size_is_parsed(place):
    path = place.write("01", [1, 2])
    place.write("02", [3, 4])
    place.load()
    path.write_text(path.read_text().replace("2", "7"))
    assert place.parsed == 2
    np.testing.assert_array_equal(place.load(), [[1, 7], [3, 4]])
    assert place.parsed == 1


def test_a_change_right_after_reading_is_seen_though_times_are_equal(place):
    path = place.write("01", [1, 2])
    os.utime(path)
    before = path.stat()
    place.load()
    path.write_text(path.read_text().replace("2", "7"))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(place.load(), [[1, 7]])


def test_the_same_content_under_another_time_is_not_parsed(place, hashed):
    path = place.write("01", [1, 2])
    place.load()
    assert place.parsed == 1
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    hashed.clear()
    np.testing.assert_array_equal(place.load(), [[1, 2]])
    assert hashed == [path]
    place.load()
    assert hashed == [path] and place.parsed == 0  # its new time is known


def test_a_dataset_that_was_moved_is_not_parsed(place):
    path = place.write("01", [1, 2])
    other = replace(place.kind, key="other")
    for kind in (place.kind, other):
        place.load(kind)
    place.out = place.out.rename(place.out.with_name("moved"))
    np.testing.assert_array_equal(place.load(), [[1, 2]])
    assert place.parsed == 2
    # Another dataset may have files of the same names, sizes and times.
    path = place.out / path.relative_to(place.out.with_name("out"))
    path.write_text(path.read_text().replace("2", "7"))
    os.utime(path, ns=(place.clock, place.clock))
    np.testing.assert_array_equal(place.load(other), [[1, 7]])
    assert place.parsed == 1


def test_another_version_of_the_code_parses_anew(place):
    place.write("01", [1, 2])
    place.load()
    twice = FeatureKind(
        "toy", "toy", BOLD, files_of("connectivity"), lambda p: 2 * place.read(p), version="2"
    )
    np.testing.assert_array_equal(place.load(twice), [[2, 4]])
    np.testing.assert_array_equal(place.load(twice), [[2, 4]])
    assert place.parsed == 2


def test_people_come_and_go(place):
    place.write("01", [1, 2])
    gone = place.write("02", [3, 4])
    place.load()
    other = replace(place.kind, key="other")
    place.load(other)
    assert place.parsed == 4
    shutil.rmtree(gone.parents[1])
    place.write("00", [5, 6])
    np.testing.assert_array_equal(place.load(), [[5, 6], [1, 2]])
    assert place.parsed == 1
    with h5py.File(place.file) as file:
        assert {name: len(group["values"]) for name, group in file.items()} == {
            "toy": 2,
            "other": 1,
        }
    # Who is not asked for now is kept.
    some = take_inventory(place.out).records[:1]
    place.write("00", [7, 8])
    np.testing.assert_array_equal(place.store().load(place.kind, some), [[7, 8]])
    np.testing.assert_array_equal(place.load(), [[7, 8], [1, 2]])
    assert place.parsed == 1


def test_features_of_another_number_take_the_place_of_old_ones(place):
    for sub in ("01", "02"):
        place.write(sub, [1, 2])
    place.load()
    for sub in ("01", "02"):
        place.write(sub, [1, 2, 3])
    some = take_inventory(place.out).records[:1]
    assert place.store().load(place.kind, some).shape == (1, 3)
    np.testing.assert_array_equal(place.load(), [[1, 2, 3]] * 2)


# --- what cannot be used --------------------------------------------------------------------------


def test_what_became_of_each_run_is_told(place):
    bad = place.write("01", ["no number"])
    place.write("02", [3, 4])

    def refuse(paths):
        place.read(paths)
        raise BadDataError(f"{paths[0]}: of no use here")

    def say_twice(paths):
        try:
            return place.read(paths)
        except BadDataError as error:
            raise BadDataError(f"{paths[0]}: {error}") from error

    store, records = place.store(), take_inventory(place.out).records
    again = replace(place.kind, key="again", read=say_twice)
    never = replace(place.kind, key="never", read=refuse)
    store.update([place.kind, again, never], records)
    first, second = store.uses([place.kind, again], records).values()
    # The same problem of a file is told of once.
    assert not first.is_used and len(first.problems) == 1 and bad.name in first.problems[0]
    assert second.is_used and not second.problems
    _, second = store.uses([place.kind, never], records).values()
    assert second.is_used and "of no use here" in second.problems[0]
    _, second = store.uses([never], records).values()
    assert not second.is_used
    assert not any(use.is_used for use in store.uses([], records).values())


def test_files_that_cannot_be_used(place, caplog):
    bad = place.write("01", [1, 2])
    place.write("02", [3, 4])
    place.write("03", [3, 4, 5])
    place.write("04", [np.inf, 1])
    bad.write_text("x\nno number\n")
    (place.out / "sub-05").mkdir()
    matrix = place.units(*(Unit(f"{number:02d}") for number in range(1, 6)))
    np.testing.assert_array_equal(matrix.present, [False, True, False, False, False])
    np.testing.assert_array_equal(matrix.values[1], [3, 4])
    assert np.isnan(matrix.values[~matrix.present]).all()
    assert [len(records) for records in matrix.sources] == [0, 1, 0, 0, 0]
    assert len(matrix.problems) == 3
    assert bad.name in matrix.problems[0] and bad.name in caplog.text
    assert "3 values where others give 2" in matrix.problems[1]
    # They are not parsed again as long as they are as they were.
    assert place.parsed == 4
    assert place.units(Unit("01")).problems == matrix.problems[:1]
    assert place.parsed == 0
    place.write("01", [5, 6])
    np.testing.assert_array_equal(place.units(Unit("01")).values, [[5, 6]])
    assert place.units(Unit("01")).problems == ()


def test_a_reason_that_may_pass_is_not_kept(place):
    place.write("01", [1, 2])

    def fail(paths):
        raise BsymError("no weights")

    kept = place.store()
    record = take_inventory(place.out).records[:1]
    failing = replace(place.kind, read=fail)
    assert kept.load(failing, record).shape == (1, 0)
    assert kept.problem(failing, record[0]) == "no weights"
    np.testing.assert_array_equal(place.load(), [[1, 2]])


def test_a_file_that_vanishes(place):
    path = place.write("01", [1, 2])
    records = take_inventory(place.out).records
    path.unlink()
    kept = place.store()
    assert kept.load(place.kind, records).shape == (1, 0)
    assert path.name in kept.problem(place.kind, records[0])


def test_nothing_to_keep(place):
    write_run(place.out, "01")
    assert place.load().shape == (1, 0)
    matrix = place.units(Unit("01"), Unit("02"))
    assert matrix.values.shape == (2, 0) and not matrix.present.any()
    assert not place.file.exists()


# --- units ----------------------------------------------------------------------------------------


def test_a_unit_is_the_mean_over_runs_then_sessions(place):
    nan = np.nan
    place.write("01", [1, 2, nan, nan], ses="a", run="1")
    place.write("01", [3, nan, nan, nan], ses="a", run="2")
    place.write("01", [8, 8, 8, nan], ses="b")
    place.write("02", [4, 4, 4, 4], task="movie")
    for path in place.out.rglob("*_relmat.tsv"):
        path.write_text(path.read_text().replace("n/a", "nan"))
    a, b, movie = Unit("01", session="a"), Unit("01", session="b"), Unit("02", state="task-movie")
    matrix = place.units(Unit("02"), Unit("01"), a, b, movie, Unit("01", state="task-movie"))
    expected = [
        [4, 4, 4, 4],
        [5, 5, 8, nan],
        [2, 2, nan, nan],
        [8, 8, 8, nan],
        [4, 4, 4, 4],
        [nan] * 4,
    ]
    np.testing.assert_array_equal(matrix.values, np.array(expected, dtype=np.float32))
    assert matrix.present.tolist() == [True] * 5 + [False]
    assert [[r.entities.get("run") for r in records] for records in matrix.sources][2] == ["1", "2"]
    assert [len(records) for records in matrix.sources] == [1, 3, 2, 1, 1, 0]


def test_correlations_are_averaged_as_fishers_z(tmp_path):
    out = tmp_path / "out"
    one, two = correlations(1), correlations(2)
    write_run(out, "01", one, run="1")
    write_run(out, "01", two, run="2")
    kept = FeatureStore(tmp_path / "f.h5", out)
    matrix = kept.unit_matrix(feature_kinds()["fc"], [Unit("01")], take_inventory(out))
    above = np.triu_indices(len(one), 1)
    expected = (np.arctanh(one[above]) + np.arctanh(two[above])) / 2
    np.testing.assert_allclose(matrix.values[0], expected, rtol=1e-4, atol=1e-6)


def test_scans_have_no_features_of_runs(place):
    place.write("01", [1, 2])
    write_scan(place.out, "01", Table({"x": [1.0]}))
    assert np.isnan(place.load()).all(axis=1).tolist() == [False, True]
    of_scans = FeatureKind("scans", "scans", DWI, files_of("count"), place.read)
    np.testing.assert_array_equal(place.load(of_scans), [[np.nan], [1]])


# --- the file -------------------------------------------------------------------------------------


def test_whoever_is_killed_leaves_the_old_file(place):
    place.write("01", [1, 2])
    place.load()
    before = place.file.read_bytes()
    for sub in ("02", "03"):
        place.write(sub, [3, 4])

    def die(paths):
        if "sub-03" in paths[0].name:
            os._exit(9)
        return place.read(paths)

    assert code_of(in_a_process(lambda: place.load(replace(place.kind, read=die)))) == 9
    assert place.file.read_bytes() == before
    assert [path.suffix for path in place.file.parent.glob(".*.part")] == [".part"]
    assert place.parsed == 2
    np.testing.assert_array_equal(place.load(), [[1, 2], [3, 4], [3, 4]])
    assert place.parsed == 2
    assert not list(place.file.parent.glob(".*.part"))


def test_whoever_is_interrupted_leaves_nothing_behind(place):
    place.write("01", [1, 2])

    def interrupt(paths):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.load(replace(place.kind, read=interrupt))
    assert not [path for path in place.file.parent.iterdir() if path.suffix != ".lock"]


def _garbage(path):
    path.write_bytes(b"not a file of features" * 100)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _another_layout(path):
    with h5py.File(path, "a") as file:
        file.attrs["layout"] = 99


def _no_index(path):
    with h5py.File(path, "a") as file:
        del file["toy"]["index"]


def _too_few_rows(path):
    with h5py.File(path, "a") as file:
        file["toy"]["values"].resize(1, axis=0)


def _flip(what):
    def damage(path):
        content = path.read_bytes()
        at = content.index(what)
        path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])

    return damage


VALUES = np.arange(50, dtype=np.float32) + 0.1


@pytest.mark.parametrize(
    "damage",
    [
        _garbage,
        _cut,
        _another_layout,
        _no_index,
        _too_few_rows,
        _flip(VALUES.tobytes()),
        _flip(b'"digests'.replace(b'"', b"")),
    ],
)
@pytest.mark.parametrize("grown", [False, True])
def test_a_damaged_file_is_made_anew(place, damage, grown, caplog):
    place.write("01", VALUES)
    place.write("02", VALUES + 1)
    first = place.load()
    damage(place.file)
    if grown:  # so that rows are copied before they are read
        place.write("03", VALUES)
        first = np.vstack([first, first[:1]])
    np.testing.assert_array_equal(place.load(), first)
    assert str(place.file) in caplog.text and "made anew" in caplog.text
    caplog.clear()
    assert place.parsed > 2
    np.testing.assert_array_equal(place.load(), first)
    assert place.parsed == 0 and not caplog.records


def test_no_place_to_write_to(place):
    place.write("01", [1, 2])
    place.file.parent.write_text("a file where the folder should be")
    with pytest.raises(CannotCreateOutputError, match="work"):
        place.load()


def test_a_full_disk(place):
    place.write("01", np.ones(50_000))

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises((CannotCreateOutputError, OutputIOError), match=r"features\.h5"):
            place.load()

    assert code_of(in_a_process(fill)) == 0
    assert not place.file.exists() and not list(place.file.parent.glob("*.part"))


def test_several_processes_parse_each_file_once(place):
    for number in range(6):
        place.write(f"{number:02d}", [number, 2])

    def slowly(paths):
        time.sleep(0.05)
        return place.read(paths)

    kind = replace(place.kind, read=slowly)
    children = [in_a_process(lambda: place.load(kind)) for _ in range(3)]
    assert [code_of(child) for child in children] == [0, 0, 0]
    assert place.parsed == 6
    np.testing.assert_array_equal(place.load()[:, 0], range(6))


def test_a_file_stays_readable_while_another_takes_its_place(place):
    place.write("01", [1, 2])
    place.load()
    with feature_file.open_file(place.file) as file:
        place.write("01", [3, 4])
        np.testing.assert_array_equal(place.load(), [[3, 4]])
        matrix = feature_file.matrix_of(file, "toy")
        np.testing.assert_array_equal(feature_file.read_rows(matrix, [0]), [[1, 2]])
