import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bsym_bids.errors import CannotCreateOutputError, OutputIOError
from bsym_bids.outputs.descriptions import about_table, column_names, columns_of
from bsym_bids.outputs.names import RunNames, products, sidecar_of
from bsym_bids.outputs.publish import (
    OutputFile,
    file_identity,
    fingerprint,
    is_complete,
    publish,
)
from bsym_bids.outputs.tables import Arrays, Json, Matrix, Table


def names(tmp_path, method="mean", **entities):
    entities = {"sub": "01", "task": "rest", **entities}
    return RunNames(tmp_path, entities, "MNI152NLin6Asym", resolution="2", method=method)


def test_names_follow_the_house_plan(tmp_path):
    found = names(tmp_path).path("timeseries").relative_to(tmp_path).as_posix()
    assert found == (
        "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_atlas-Schaefer2018Tian2020_scale-450"
        "_res-2_stat-mean_timeseries.tsv"
    )
    with_session = RunNames(tmp_path, {"sub": "01", "ses": "a", "task": "x"}, "fsLR", density="91k")
    assert with_session.path("embedding").relative_to(tmp_path).as_posix() == (
        "sub-01/ses-a/func/sub-01_ses-a_task-x_space-fsLR_atlas-Schaefer2018Tian2020_scale-450"
        "_den-91k_desc-functional_embedding.tsv"
    )


def test_no_two_products_share_a_name_or_a_sidecar(tmp_path):
    paths = [names(tmp_path).path(key) for key in products()]
    assert len(set(paths)) == len({sidecar_of(path) for path in paths}) == len(products())


def test_files_that_differ_in_any_entity_get_different_names(tmp_path):
    variants = [
        {},
        *({key: "x"} for key in ("acq", "ce", "rec", "dir", "run", "echo", "part", "ses")),
    ]
    stems = {(names(tmp_path, **v).folder, names(tmp_path, **v).stem) for v in variants}
    assert len(stems) == len(variants)


def test_columns_are_described_as_bids_has_them():
    found = columns_of("run_quality")
    assert list(found) == list(column_names("run_quality"))
    assert found["repetition_time"] == {
        "Description": "Repetition time of the source",
        "Units": "s",
    }
    assert found["duration"]["Description"] == "n_volumes times repetition_time"
    assert found["fd_max"]["Description"].endswith("; n/a when there is no displacement")
    check = columns_of("scan_quality", ["gradient_check"])["gradient_check"]
    assert {"none", "off", "not checked"} < set(check["Levels"]) and "Units" not in check


def test_columns_of_a_label_follow_the_data():
    words = {"class": {"a": "a", "a_by": "a_by"}, "candidate": {"fc": "FC", "sc": "SC"}}
    names = ["probability_a_by_by_fc", "predicted_by_sc", "probability_a", "predicted"]
    found = columns_of("predictions", names, words, "years")
    assert list(found) == names
    assert found[names[0]]["Description"].startswith("Probability of a_by by FC;")
    assert found["predicted_by_sc"]["Description"].startswith("Prediction by SC;")
    assert found["predicted_by_sc"]["Units"] == "years"
    assert found["probability_a"]["Description"].startswith("Probability of a by the candidate")
    assert "Units" not in columns_of("predictions", ["predicted"])["predicted"]


@pytest.mark.parametrize("name", ["dim00", "dimension", "predicted_by_fc", "7Networks_LH_Vis_1"])
def test_a_column_that_nothing_is_said_of_is_an_error(name):
    assert list(columns_of("embedding", ["name", "dim000", "dim1000"])) == [
        "name",
        "dim000",
        "dim1000",
    ]
    for key in ("embedding", "predictions", "timeseries"):
        with pytest.raises(KeyError, match=f"{key}: nothing is said of the column {name}"):
            columns_of(key, [name])


def test_cells_have_their_units():
    assert about_table("meanlength")["Units"] == "mm" and "Node" in about_table("meanlength")
    assert about_table("denoised") == {"Units": "arbitrary"}
    assert "Units" not in about_table("count") and about_table("labels") == {}


def test_table_reads_back(tmp_path):
    table = Table(
        {"name": ["a", "b", ""], "x": np.array([1.5, np.nan, 1e-9]), "ok": [True, False, None]}
    )
    table.write(tmp_path / "t.tsv")
    frame = pd.read_csv(tmp_path / "t.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    assert frame["name"].tolist()[:2] == ["a", "b"]
    np.testing.assert_allclose(frame["x"], [1.5, np.nan, 1e-9])
    assert "n/a" in (tmp_path / "t.tsv").read_text()


def test_matrix_keeps_float32(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32) * 1e-3
    values[1, 2] = np.nan
    Matrix(values, ["x", "y", "z"], rows=list("abcd")).write(tmp_path / "m.tsv")
    frame = pd.read_csv(tmp_path / "m.tsv", sep="\t", na_values="n/a", index_col="Node")
    np.testing.assert_allclose(frame.to_numpy(), values, rtol=1e-6)
    assert frame.index.tolist() == list("abcd")


def test_arrays_need_no_pickle(tmp_path):
    Arrays({"embedding": np.ones((2, 3))}).write(tmp_path / "a.npz")
    assert np.load(tmp_path / "a.npz", allow_pickle=False)["embedding"].shape == (2, 3)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        Json({"x": float("nan")}).write(tmp_path / "x.json")


def output(path: Path, value: float = 1.0) -> OutputFile:
    return OutputFile(path, Matrix(np.full((1, 1), value), ["x"]), {"Description": "test"})


def test_published_group_is_complete_under_its_fingerprint_only(tmp_path):
    paths = [tmp_path / "s" / "a.tsv", tmp_path / "s" / "b.tsv"]
    publish([output(path) for path in paths], "one")
    assert is_complete(paths, "one")
    assert not is_complete(paths, "two")
    assert not is_complete([*paths, tmp_path / "c.tsv"], "one")
    assert not list(tmp_path.rglob("*.part"))


def test_publishing_removes_what_is_stale(tmp_path):
    old, new = tmp_path / "old.tsv", tmp_path / "new.tsv"
    publish([output(old)], "one")
    publish([output(new)], "two", stale=[old])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.json", "new.tsv"]


class FailingContent:
    def __init__(self, number):
        self.number = number

    def write(self, path):
        path.write_text("half")
        raise OSError(self.number, "made to fail")


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OutputIOError), (errno.EACCES, CannotCreateOutputError)]
)
def test_failed_write_leaves_the_old_group_whole(tmp_path, number, kind):
    good, bad = tmp_path / "a.tsv", tmp_path / "b.tsv"
    publish([output(good), output(bad)], "one")
    before = good.read_bytes()
    with pytest.raises(kind, match=r"b\.tsv"):
        publish([output(good, 2.0), OutputFile(bad, FailingContent(number), {})], "two")
    assert is_complete([good, bad], "one")
    assert good.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    old, new = tmp_path / "old.tsv", tmp_path / "new.tsv"
    for name in (".old.tsv.part", ".old.json.part", ".new.tsv.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".other.tsv.part").write_text("of another run")
    publish([output(new)], "one", stale=[old])
    assert sorted(p.name for p in tmp_path.glob(".*")) == [".other.tsv.part"]


@pytest.mark.parametrize("name", ["b.tsv", "b.json"])
def test_file_that_cannot_be_replaced_is_named(tmp_path, name):
    paths = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    publish([output(path) for path in paths], "one")
    (tmp_path / name).unlink()
    (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(CannotCreateOutputError, match=name.replace(".", r"\.")) as caught:
        publish([output(path, 2.0) for path in paths], "two")
    assert "permissions" in caught.value.hint
    assert not is_complete(paths, "one") and not is_complete(paths, "two")
    assert not list(tmp_path.glob(".*"))


def test_folder_in_the_place_of_a_file_counts_as_not_done(tmp_path):
    publish([output(tmp_path / "a.tsv")], "one")
    (tmp_path / "a.tsv").unlink()
    (tmp_path / "a.tsv").mkdir()
    assert not is_complete([tmp_path / "a.tsv"], "one")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"Fingerprint": null}', "{"])
def test_broken_sidecar_counts_as_not_done(tmp_path, text):
    publish([output(tmp_path / "a.tsv")], "one")
    (tmp_path / "a.json").write_text(text)
    assert not is_complete([tmp_path / "a.tsv"], "one")


def test_kill_between_renames_counts_as_not_done(tmp_path, monkeypatch):
    import os

    paths = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    publish([output(path) for path in paths], "one")
    calls = []
    rename = os.replace

    def dies(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("bsym_bids.outputs.publish.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        publish([output(path, 2.0) for path in paths], "two")
    assert not is_complete(paths, "one")
    assert not is_complete(paths, "two")


def test_fingerprint_depends_on_every_part(tmp_path):
    file = tmp_path / "f"
    file.write_text("one")
    first = fingerprint({"a": 1, "b": 2}, file_identity(file))
    assert first == fingerprint({"b": 2, "a": 1}, file_identity(file))
    assert first != fingerprint({"a": 1, "b": 3}, file_identity(file))
    file.write_text("other")
    assert first != fingerprint({"a": 1, "b": 2}, file_identity(file))
