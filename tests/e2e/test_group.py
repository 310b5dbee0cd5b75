"""The group level as a user runs it, on a simulated cohort whose truth is known."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import call_here, run_command

from bsym_bids.simulation.cohort import simulate_recipe
from bsym_bids.simulation.cohort_files import Layout, write_cohort
from tests.dataset_checks import (
    assert_columns_are_described,
    assert_sources_resolve,
    assert_strictly_valid,
)

FEW = ("--repeats", 1, "--permutations", 19, "--bootstrap", 50, "--folds", 3)


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """24 people with both modalities, whose FC and SC know their age; two have no label."""
    folder = tmp_path_factory.mktemp("cohort")
    simulated = simulate_recipe("both", 24, seed=3, share=0.5, proper=True)
    layout = Layout(unlabelled=simulated.participants[:2], decimals=3)
    write_cohort(simulated, folder / "bids", folder / "out", layout)
    return folder, simulated


@pytest.fixture(scope="module")
def predicted(cohort):
    folder, _ = cohort
    head = folder / "age.npz"
    done = run_command(
        folder / "bids", folder / "out", "group", "--predict", "age", *FEW, "--save-head", head
    )
    assert done.code == 0, done.err
    return folder, done, head


def test_everyone_is_predicted_and_everything_is_said(cohort, predicted):
    _, simulated = cohort
    folder, done, _ = predicted
    found = table(folder / "out" / "desc-age_predictions.tsv")
    assert list(found["participant_id"]) == [f"sub-{label}" for label in simulated.participants]
    assert found["label"].isna().sum() == 2
    assert found["predicted"].notna().all()
    assert found["fold"].isna().sum() == 2
    known = found["label"].notna()
    np.testing.assert_allclose(
        found["residual"][known], (found["label"] - found["predicted"])[known], atol=1e-4
    )
    scores = table(folder / "out" / "desc-agescores_predictions.tsv").set_index("candidate")
    expected = {"mean", "confounds", "fc", "fc_tangent", "sc", "fc_sc", "bs_functional_mean"}
    expected |= {"bs_functional", "bs_structural", "bs_concatenated", "bs_gate", "fc_bs"}
    expected |= {"random_functional", "random_structural", "random_concatenated"}
    assert set(scores.index) == expected
    assert scores["mae"]["fc_sc"] < scores["mae"]["mean"]
    assert (scores["mae_low"] <= scores["mae"]).all() and (
        scores["mae"] <= scores["mae_high"]
    ).all()
    truth = np.abs(found["label"] - found["predicted"])[known].mean()
    assert scores["mae"]["bs_concatenated"] == pytest.approx(truth, rel=1e-4)
    sidecar = json.loads((folder / "out" / "desc-age_predictions.json").read_text())
    assert sidecar["Verdict"] in done.out
    assert {c["Code"] for c in sidecar["Warnings"]} >= {"few_participants"}
    assert sidecar["PredictionSettings"]["Labelled"] == 22
    raw, *made = sidecar["Sources"]
    assert raw == "bids:raw:participants.tsv"
    assert len(made) > 24 and all(uri.startswith("bids::sub-") for uri in made)
    assert all((folder / "out" / uri.removeprefix("bids::")).is_file() for uri in made)
    for name in ("age", "agescores", "agecomparisons"):
        path = folder / "out" / f"desc-{name}_predictions.tsv"
        described = json.loads(path.with_suffix(".json").read_text())
        assert set(table(path).columns) <= set(described)
    page = (folder / "out" / "desc-age_predictions.html").read_text()
    assert "://" not in page.replace("http://www.w3.org", "")


def test_a_head_predicts_other_people_as_it_would_have_here(predicted, tmp_path):
    """The two without a label were predicted by the fit that the head keeps."""
    folder, _, head = predicted
    bids = shutil.copytree(folder / "bids", tmp_path / "bids")
    out = shutil.copytree(folder / "out", tmp_path / "out")
    done = run_command(bids, out, "group", "--apply-head", head)
    assert done.code == 0, done.err
    applied = table(out / "desc-ageapplied_predictions.tsv")
    before = table(out / "desc-age_predictions.tsv")
    for key in ("fc", "fc_sc", "bs_concatenated", "fc_tangent"):
        np.testing.assert_allclose(
            applied[f"predicted_by_{key}"][:2], before[f"predicted_by_{key}"][:2], atol=1e-2
        )
    np.testing.assert_allclose(applied["predicted"][:2], before["predicted"][:2], atol=1e-2)
    for name in ("n_runs", "n_scans"):
        np.testing.assert_array_equal(applied[name], before[name])
    described = json.loads((out / "desc-ageapplied_predictions.json").read_text())
    assert set(applied) <= set(described)


def test_the_same_call_gives_the_same_bytes(predicted):
    folder, _, _ = predicted
    names = ("age", "agescores", "agecomparisons")
    paths = [folder / "out" / f"desc-{name}_predictions.tsv" for name in names]
    before = [path.read_bytes() for path in paths]
    done = run_command(
        folder / "bids", folder / "out", "group", "--predict", "age", *FEW, "--nprocs", 1
    )
    assert done.code == 0, done.err
    assert [path.read_bytes() for path in paths] == before


@pytest.fixture(scope="module")
def mapped(cohort):
    folder, simulated = cohort
    few = ("--participant-label", *simulated.participants[:3])
    done = run_command(folder / "bids", folder / "out", "group", "--permutations", 19, *few)
    assert done.code == 0, done.err
    return folder


def test_maps_without_labels(mapped):
    folder = mapped
    found = table(folder / "out" / "desc-identification_stat.tsv")
    assert set(found["comparison"]) == {"half"}
    assert (folder / "out" / "desc-fcmean_relmat.tsv").is_file()
    recovered = table(folder / "out" / "desc-networkrecovery_stat.tsv").set_index("what")
    assert set(recovered["n_people"]) == {3}
    assert recovered["accuracy"]["embedding"] > recovered["accuracy"]["shuffled"]
    for name in ("identification", "networkrecovery"):
        assert (folder / "out" / f"desc-{name}_figure.svg").is_file()


def test_all_outputs_are_valid_described_and_traceable(predicted, mapped, tmp_path):
    folder, _, head = predicted
    out = shutil.copytree(folder / "out", tmp_path / "out")
    done = run_command(folder / "bids", out, "group", "--apply-head", head)
    assert done.code == 0, done.err
    assert (out / "desc-ageapplied_predictions.tsv").is_file()
    assert_strictly_valid(out, tmp_path)
    assert_columns_are_described(out)
    assert_sources_resolve(out, "desc-*.json")  # the simulation writes some products only


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--predict", "agee"], 64, "age"),
        (["--predict", "rating", "--group-by", "famly"], 64, "family"),
        (["--predict", "age", "--features", "eeg"], 64, "there are: fc"),
        (["--predict", "age", "--folds", "2"], 64, "at least 3"),
        (["--predict", "age", "--folds", "30"], 65, "cannot be dealt out to 30 folds"),
        (["--state", "ses-a", "ses-b"], 64, "there are: task-rest"),
        (["--contrast", "ses-a-ses-b"], 64, "ses-"),
        (["--apply-head", "absent.npz"], 66, "no such file of predictors"),
        (["--predict", "age", "--participant-label", "sim0003", "sim0004"], 65, "at least 10"),
        (["--predict", "age", "--harmonize", "combat", "--site", "scanner"], 64, "--site"),
        (["--predict", "agee", "--dry-run"], 64, "age"),
    ],
)
def test_what_cannot_be_done_is_explained(cohort, arguments, code, said):
    folder, _ = cohort
    description = folder / "out" / "dataset_description.json"
    before = description.read_bytes()
    done = call_here(folder / "bids", folder / "out", "group", *arguments)
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert description.read_bytes() == before


def test_a_dry_run_says_of_whom_what_would_be_predicted(cohort):
    folder, _ = cohort
    done = call_here(
        folder / "bids", folder / "out", "group", "--predict", "age", "sex", "--dry-run"
    )
    assert done.code == 0, done.err
    assert "predict age: regression, 22 of 24 labelled, 24 groups; from fc, " in done.out
    assert "predict sex: classification (F, M), " in done.out


def test_the_participant_level_takes_no_requests_of_the_group_level(cohort):
    folder, _ = cohort
    done = call_here(folder / "bids", folder / "out", "participant", "--predict", "age")
    assert done.code == 64
    assert "--predict is of the group level" in done.err


def test_without_outputs_there_is_a_hint(cohort, tmp_path):
    folder, _ = cohort
    done = call_here(folder / "bids", tmp_path / "none", "group", "--predict", "age")
    assert done.code == 66
    assert "process the participants first" in done.err


def test_mixed_models_are_refused_and_named(cohort, tmp_path):
    folder, _ = cohort
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out, ignore=shutil.ignore_patterns("work", "logs"))
    for path in out.glob("sub-sim0005/func/*_desc-functionalsimilarity_relmat.json"):
        document = json.loads(path.read_text())
        document["EmbeddingSettings"]["ModelFingerprint"] = "another"
        document["Model"]["Fingerprint"] = "another"
        path.write_text(json.dumps(document))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    done = call_here(folder / "bids", out, "group", "--predict", "age", *FEW)
    assert done.code == 65
    assert "Model.Fingerprint" in done.err and "sub-sim0005" in done.err
    after = {path: path.stat().st_mtime_ns for path in before if path.is_file()}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda text: text.replace("\t", ","), 65, "commas"),
        (lambda text: text.replace("participant_id", "subject"), 65, "participant_id"),
        (lambda text: text + text.splitlines()[3].replace("\t", "\t1", 1) + "\n", 65, "contradict"),
    ],
    ids=["commas", "no participant_id", "contradicting rows"],
)
def test_broken_tables_are_explained(cohort, tmp_path, change, code, said):
    folder, _ = cohort
    bids = tmp_path / "bids"
    shutil.copytree(folder / "bids", bids)
    path = bids / "participants.tsv"
    path.write_text(change(path.read_text()))
    done = call_here(bids, folder / "out", "group", "--predict", "age", *FEW)
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_ages_with_units_in_them_are_named(cohort, tmp_path):
    folder, _ = cohort
    bids = tmp_path / "bids"
    shutil.copytree(folder / "bids", bids)
    frame = pd.read_csv(bids / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    frame.loc[5, "age"] = "27y"
    frame.to_csv(bids / "participants.tsv", sep="\t", index=False)
    done = call_here(bids, folder / "out", "group", "--predict", "age", *FEW)
    assert done.code == 65
    assert "27y" in done.err


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """Twelve people in two sessions that differ in the default network."""
    folder = tmp_path_factory.mktemp("states")
    simulated = simulate_recipe("none", 12, seed=4, kinds=("fc", "bs_functional"))
    layout = Layout(sessions=("drug", "placebo"), state_effect=0.8, run_spread=0.05, decimals=3)
    write_cohort(simulated, folder / "bids", folder / "out", layout)
    return folder


def test_a_contrast_finds_what_differs(two_states):
    done = run_command(
        two_states / "bids",
        two_states / "out",
        "group",
        "--contrast",
        "ses-drug-ses-placebo",
        "--permutations",
        500,
    )
    assert done.code == 0, done.err
    found = table(two_states / "out" / "desc-sesdrugsesplaceboconnectivitynetworks_stat.tsv")
    row = found.set_index("name").loc["Default"]
    assert row["p_corrected"] < 0.05
    assert row["difference"] < 0  # the last state has more
    figures = list((two_states / "out").glob("desc-sesdrugsesplacebo*_figure.svg"))
    assert len(figures) >= 3


def test_states_are_told_apart_with_all_data_of_a_person_in_one_fold(two_states):
    done = run_command(
        two_states / "bids",
        two_states / "out",
        "group",
        "--state",
        "ses-drug",
        "ses-placebo",
        *FEW,
        "--confounds",
        "none",
        "--features",
        "fc",
    )
    assert done.code == 0, done.err
    (path,) = (two_states / "out").glob("desc-statesesdrugsesplacebo_predictions.tsv")
    found = table(path)
    assert len(found) == 24
    assert (found.groupby("participant_id")["fold"].nunique() == 1).all()
    scores = table(path.with_name("desc-statesesdrugsesplaceboscores_predictions.tsv"))
    assert scores.set_index("candidate")["auc"]["fc"] > 0.9


def test_people_are_identified_across_sessions(two_states):
    done = run_command(two_states / "bids", two_states / "out", "group", "--permutations", 99)
    assert done.code == 0, done.err
    found = table(two_states / "out" / "desc-identification_stat.tsv")
    fc = found[found["features"] == "fc"]
    assert (fc["identified"] > fc["chance"] + 0.3).all()
    reliable = table(two_states / "out" / "desc-reliability_stat.tsv")
    assert set(reliable["features"]) >= {"fc", "bs_functional"}


def test_a_read_only_home_and_no_network_do_not_matter(two_states, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    os.chmod(home, 0o555)
    done = run_command(
        two_states / "bids", two_states / "out", "group", "--dry-run", env={"HOME": str(home)}
    )
    assert done.code == 0, done.err
    assert "12 participant(s)" in done.out
    assert not list(home.iterdir())
