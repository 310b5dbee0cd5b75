"""Maps of the group level: what a file or a request spoils is that alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from written_outputs import N, correlations, write_run, write_scan

from bsym_bids.cohort import maps
from bsym_bids.cohort.maps import map_cohort, map_contrast
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, OutputIOError, UsageError
from bsym_bids.outputs import maps as written
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.prediction.inventory import take_inventory
from bsym_bids.prediction.store import FeatureStore
from bsym_bids.workflows import group

RANDOM = {"n_permutations": 9, "seed": 0}
SESSIONS = ("a", "b")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Draw nothing: figures have tests of their own."""
    monkeypatch.setattr(written, "_draw", lambda out, label, draw: out / f"{label}.svg")


def embedding(seed):
    return np.random.default_rng(seed).standard_normal((N, 4))


def write_people(out, people, **missing):
    """Write two sessions of people with connectivity and a mean embedding."""
    for number, person in enumerate(people):
        for place, session in enumerate(SESSIONS):
            seed = 2 * number + place
            fc = correlations(seed, missing.get(f"{person}{session}", ()))
            write_run(out, person, fc, ses=session, embedding=embedding(seed))


def settings(path):
    return json.loads(sidecar_of(path).read_text())["GroupSettings"]


def path_of(out, label):
    (path,) = out.glob(f"desc-{label}_stat.tsv")
    return path


def cohort(out, tmp_path, **options):
    inventory = take_inventory(out)
    store = FeatureStore(tmp_path / "features.h5", out)
    return map_cohort(inventory, store, n_workers=1, **RANDOM, **options)


def test_what_cannot_be_read_leaves_out_its_person_alone(tmp_path, caplog):
    write_people(tmp_path, ("01", "02", "03", "04"))
    write_run(tmp_path, "05", correlations(9), ses="a", embedding=embedding(9))  # one state
    inventory = take_inventory(tmp_path)
    bold = inventory.of_modality("bold")
    matrix, table = bold[2].files["connectivity"], bold[4].files["embedding"]
    for path in (matrix, table):
        path.write_text(path.read_text()[:2000])
    paths = map_contrast("ses-a-ses-b", inventory, **RANDOM)
    assert all(path.is_file() for path in paths if path.suffix == ".tsv")
    for measure, file, person in (("connectivity", matrix, "02"), ("embedding", table, "03")):
        own = settings(path_of(tmp_path, f"sesasesb{measure}rois"))
        assert own["Pairs"] == 3 and own["LeftOut"] == [f"sub-{person}", "sub-05"]
        used = [run.files[measure] for run in bold if run.participant not in (person, "05")]
        assert sources(path_of(tmp_path, f"sesasesb{measure}rois")) == set(used)
        assert f"{measure}: left out, sub-{person}: {file}" in caplog.text


def sources(path):
    """The files that a map says it was made of."""
    uris = json.loads(sidecar_of(path).read_text())["Sources"]
    assert len(set(uris)) == len(uris)
    return {path.parent / uri.removeprefix("bids::") for uri in uris}


def test_each_map_records_its_own_pairs(tmp_path, caplog):
    write_people(tmp_path, ("01", "02", "03"))
    for session in SESSIONS:  # nobody else has a similarity
        for person in ("02", "03"):
            similarity = correlations(7)
            write_run(tmp_path, person, ses=session, similarity=similarity)
    (path,) = tmp_path.glob("sub-03/ses-b/func/*_desc-functional_embedding.tsv")
    path.unlink()
    map_contrast("ses-a-ses-b", take_inventory(tmp_path), **RANDOM)
    found = {
        measure: settings(path_of(tmp_path, f"sesasesb{measure}rois"))
        for measure in ("connectivity", "similarity", "embedding")
    }
    assert {key: own["Pairs"] for key, own in found.items()} == {
        "connectivity": 3,
        "similarity": 2,
        "embedding": 2,
    }
    assert [own["LeftOut"] for own in found.values()] == [[], [], ["sub-03"]]
    nobody = [text for text in caplog.messages if "nobody" in text]
    assert len(nobody) == 1 and "ses-a-ses-b, attention: nobody" in nobody[0]
    assert not list(tmp_path.glob("*attention*"))
    few = [text for text in caplog.messages if "p cannot" in text]
    assert len(few) == 3 and all("ses-a-ses-b, " in text for text in few)


def test_a_scan_of_few_rois_ends_no_map(tmp_path, caplog):
    out = tmp_path / "out"
    write_people(out, ("01", "02", "03"), **{"02b": range(2, N), "03a": range(40)})
    paths = cohort(out, tmp_path)
    table = path_of(out, "identification").read_text()
    assert "fc\tsession" in table and "bs_functional_mean\tsession" in table
    assert path_of(out, "reliability") in paths
    for name in ("identification", "reliability"):
        assert {path.name.split("_")[0] for path in sources(path_of(out, name))} == {
            f"sub-{person}" for person in ("01", "02", "03")
        }
        assert all(path.is_file() for path in sources(path_of(out, name)))
    assert "functional connectivity: left out" in caplog.text
    left_out = settings(path_of(out, "identification"))["LeftOut"]
    assert set(left_out) == {"fc", "fc_tangent"}
    (label,) = left_out["fc"]
    assert label.startswith("sub-02_ses-b_task-rest")
    (mean,) = out.glob("desc-fcmean_relmat.tsv")
    assert settings(mean)["LeftOut"] == [label]


def test_a_run_of_few_rois_leaves_the_halves_of_the_others(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for person in ("01", "02", "03", "04"):
        write_run(out, person, correlations(int(person)))

    def halves_of(record):
        both = np.random.default_rng(int(record.participant)).standard_normal((2, 60))
        if record.participant == "03":
            both[1, 2:] = np.nan
        return {"connectivity": both, "embedding": both}

    monkeypatch.setattr(maps, "_halves_of", halves_of)
    cohort(out, tmp_path, features=["fc"])
    header, *rows = path_of(out, "identification").read_text().splitlines()
    found = [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]
    assert [(row["features"], row["comparison"]) for row in found] == 2 * [("fc", "half")]
    assert {(row["n_people"], row["n_features"]) for row in found} == {("3", "60")}


def test_kinds_of_features_do_not_stop_each_other(tmp_path, caplog):
    out = tmp_path / "out"
    # No scan lacks most of it, but no pair of ROIs is there in all.
    parts = np.array_split(np.arange(N), 4)
    missing = dict(zip(("01a", "01b", "02a", "02b"), parts, strict=True))
    write_people(out, ("01", "02"), **missing)
    paths = cohort(out, tmp_path)
    assert "identification by functional connectivity: not there: 0 of 101025" in caplog.text
    rows = path_of(out, "identification").read_text().splitlines()[1:]
    assert {row.split("\t")[0] for row in rows} == {"bs_functional_mean"}
    assert "fc\tall" in path_of(out, "reliability").read_text()
    assert any("fcmean" in path.name for path in paths)


def test_a_full_disk_stops_all_of_it(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_people(out, ("01", "02"))

    load = FeatureStore.load

    def full(self, kind, *given):
        if kind.key == "bs_functional_mean":  # others were written by then
            raise OutputIOError("features.h5: no space left")
        return load(self, kind, *given)

    monkeypatch.setattr(FeatureStore, "load", full)
    with pytest.raises(OutputIOError):
        cohort(out, tmp_path)


def test_what_ends_every_map_is_an_error(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_people(out, ("01", "02"))

    def broken(*_):
        raise BadDataError("broken")

    monkeypatch.setattr(FeatureStore, "load", broken)
    monkeypatch.setattr(maps, "_identify_halves", lambda *_: None)
    with pytest.raises(BadDataError, match="broken"):
        cohort(out, tmp_path, features=["fc"])


def test_only_the_features_that_are_asked_for(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(maps, "_recover", None)  # is of embeddings
    write_people(out, ("01", "02"))
    for person in ("01", "02"):
        counts = np.random.default_rng(int(person)).poisson(3, (N, N)).astype(float)
        write_scan(out, person, counts + counts.T)
    paths = cohort(out, tmp_path, features=["fc"])
    rows = path_of(out, "identification").read_text().splitlines()[1:]
    assert {row.split("\t")[0] for row in rows} == {"fc"}
    assert not any("scmean" in path.name for path in paths)
    with pytest.raises(UsageError, match="--features eeg") as caught:
        cohort(out, tmp_path, features=["fc", "eeg"])
    assert "there are: fc, " in caught.value.hint


class FakeStudy:
    """Notes what it is asked; columns that start with a b are bad."""

    asked: list[str]

    def __init__(self):
        self.asked = []

    def predict(self, column):
        self.asked.append(column)
        if column.startswith("b"):
            raise BadDataError(f"{column} is bad", hint=f"mend {column}")
        return [f"{column} predicted"]


@pytest.fixture
def config(tmp_path):
    return RunConfig(
        tmp_path,
        tmp_path / "out",
        "group",
        contrast=("ses-a-ses-b", "ses-a-ses-c"),
        predict=("bad", "age", "bold"),
    )


def contrast_of(text, inventory, **_):
    if text.endswith("b"):
        raise BadDataError("nobody has both", hint="see --dry-run")
    return [f"{text} mapped"]


def test_no_request_stops_another(config, monkeypatch, capsys, caplog):
    study = FakeStudy()
    monkeypatch.setattr("bsym_bids.prediction.study.Study.of", lambda *_: study)
    monkeypatch.setattr(maps, "map_contrast", contrast_of)
    with pytest.raises(BadDataError, match="bold is bad"):
        group._answer(config, SimpleNamespace(output_dir=config.output_dir))
    assert study.asked == ["bad", "age", "bold"]
    assert capsys.readouterr().out.splitlines() == ["ses-a-ses-c mapped", "age predicted"]
    assert caplog.messages == [
        "nobody has both\n  hint: see --dry-run",
        "bad is bad\n  hint: mend bad",
    ]


def test_contrasts_are_mapped_though_no_prediction_can_be_made(config, monkeypatch, capsys):
    def refuse(*_):
        raise UsageError("--features eeg: there are none")

    monkeypatch.setattr("bsym_bids.prediction.study.Study.of", refuse)
    monkeypatch.setattr(maps, "map_contrast", lambda text, *_, **__: [f"{text} mapped"])
    with pytest.raises(UsageError, match="eeg"):
        group._answer(config, SimpleNamespace(output_dir=config.output_dir))
    assert capsys.readouterr().out.splitlines() == ["ses-a-ses-b mapped", "ses-a-ses-c mapped"]


def test_maps_are_of_the_features_of_the_call(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(maps, "map_cohort", lambda *_, **options: given.update(options) or [])
    config = RunConfig(tmp_path, tmp_path / "out", "group", features=("fc",))
    group._answer(config, SimpleNamespace(output_dir=config.output_dir))
    assert given["features"] == ("fc",)
