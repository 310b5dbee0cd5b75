"""Cohort scaling as a user asks for it: beside what the participant level has written."""

import hashlib
import json
import shutil

import pytest
from conftest import run_command


def digests(folder):
    """Return the content of every file by name, but of logs and the list of source datasets."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts and path.name != "dataset_description.json"
    }


@pytest.fixture(scope="module")
def scaled(dataset, finished, small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("scaled") / "out"
    shutil.copytree(finished[0], out)
    before = digests(out)
    done = run_command(dataset, out, "group", "--scaling", "cohort", *small_model)
    return out, before, done


def test_every_run_is_embedded_anew_beside_what_was_there(scaled):
    out, before, done = scaled
    assert done.code == 0, done.err
    after = digests(out)
    assert {name: after.get(name) for name in before} == before
    new = after.keys() - before.keys()
    tables = {name for name in new if name.endswith("cohort_embedding.tsv")}
    assert len(tables) == 2 and "desc-cohortscaling_qc.tsv" in new
    for name in tables:
        settings = json.loads((out / name).with_suffix(".json").read_text())["EmbeddingSettings"]
        assert settings["Scaling"] == "cohort"
        robust = name.replace("cohort_", "_")
        assert after[name] != after[robust]


def test_the_model_of_the_outputs_is_taken_and_nothing_is_done_twice(scaled, dataset, small_model):
    out, _, _ = scaled
    before = digests(out)
    folder = small_model[small_model.index("--model-dir") + 1]
    done = run_command(dataset, out, "group", "--scaling", "cohort", "--model-dir", folder)
    assert done.code == 0, done.err
    assert digests(out) == before
    assert "unchanged" in done.out + done.err
