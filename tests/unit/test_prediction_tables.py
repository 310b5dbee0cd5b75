"""What the tables of predictions say of the data behind each row."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_prediction_page import make_result

from bsym_bids.outputs.predictions import Applied, write_applied, write_predictions
from bsym_bids.prediction.bias import BiasCorrected
from bsym_bids.prediction.inventory import BOLD, DWI, Inventory, Record
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target, Unit
from bsym_bids.prediction.store import Use

N = 20
ABOUT = {"Head": "age.npz", "Headline": "bs_concatenated"}


def table(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False)


@pytest.fixture
def outputs(tmp_path):
    """A run and a scan each; the first person has a second run, and neither of theirs is used."""

    def record(modality, label, run="1", domain=""):
        entities = {"sub": label, "run": run}
        sidecar = {"embedding": {"ModelDomain": {"Verdict": domain}}}
        return Record(modality, entities, f"sub-{label}_run-{run}", {}, sidecar)

    labels = [f"{number:04d}" for number in range(N)]
    records = [record(m, label) for label in labels for m in (BOLD, DWI)]
    records.append(record(BOLD, "0000", "2", domain="doubtful"))
    damaged = Use(False, (f"{tmp_path}/sub-0000/f.tsv: cannot\tbe read",))
    uses = {(r.modality, r.label): Use(True) for r in records}
    uses |= {(BOLD, "sub-0000_run-1"): damaged, (BOLD, "sub-0000_run-2"): damaged}
    uses[BOLD, "sub-0001_run-1"] = Use(True, (f"{tmp_path}/sub-0001/e.tsv: is empty",))
    return Inventory(tmp_path, tuple(records)), uses


def test_only_runs_that_features_come_from_are_counted(outputs):
    result = make_result(
        n=N, permutations=0, repeats=1, bootstrap=0, lacking=("random_functional",)
    )
    result.confounds.values[2, 0] = np.nan
    path, *_ = write_predictions(result, *outputs, "age")
    found = table(path)
    assert list(found["n_runs"][:3]) == [0, 1, 1] and set(found["n_scans"]) == {1}
    # What is not used tells nothing of the model, either.
    bad, other, third, *_ = found["warnings"]
    assert set(bad.split("; ")) == {"not used: sub-0000/f.tsv: cannot be read"}
    assert other == "not used: sub-0001/e.tsv: is empty"
    assert third == "mean FD unknown: mean in training"
    assert set(found["warnings"][3:]) == {"n/a"}


def test_a_correction_that_cannot_be_made_says_why(outputs):
    result = make_result(
        n=N, permutations=0, repeats=1, bootstrap=0, lacking=("random_functional",)
    )
    values = np.linspace(20, 40, N)
    for correction, said in (
        (BiasCorrected(values, 0.5, 3.0), {"Slope": 0.5, "Intercept": 3.0}),
        (
            BiasCorrected(values * np.nan, np.nan, np.nan, "fewer than 10 units"),
            {"Slope": None, "Intercept": None, "Reason": "fewer than 10 units"},
        ),
    ):
        own = replace(result, corrected=dict.fromkeys(result.evaluation.predictions, correction))
        path, *_ = write_predictions(own, *outputs, "age")
        assert json.loads(path.with_suffix(".json").read_text())["BiasCorrection"] == said
        assert (table(path)["bias_corrected"] == "n/a").all() == ("Reason" in said)


def applied(target, predicted, **more):
    units = tuple(Unit(f"{number:04d}") for number in range(N))
    age = np.where(np.arange(N) == 3, np.nan, 30.0)
    shares = {key: np.array([0.8, 0.2]) for key in predicted}
    return Applied(target, units, predicted, shares, {"age": age}, {**ABOUT, **more})


def test_applied_predictions_say_what_the_others_do(outputs):
    target = Target("age", REGRESSION, np.full(N, np.nan), units="years")
    by_fc, by_both = np.linspace(20, 40, N), np.linspace(30, 35, N)
    by_both[1] = np.nan
    predicted = {"fc": by_fc, "bs_concatenated": by_both}
    path = write_applied(applied(target, predicted), *outputs)
    found = table(path)
    assert list(found)[:2] == ["participant_id", "predicted"]
    assert list(found)[-4:] == ["candidates", "n_runs", "n_scans", "warnings"]
    np.testing.assert_allclose(found["predicted"][2:].astype(float), by_both[2:], rtol=1e-6)
    assert list(found["candidates"][:2]) == ["fc|bs_concatenated", "fc"]
    assert found["predicted"][1] == "n/a" and list(found["n_runs"][:2]) == [0, 1]
    assert found["warnings"][3] == "age unknown: mean in training"
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert set(found) <= set(sidecar) and sidecar["predicted"]["Units"] == "years"


def test_applied_classes_are_chosen_as_where_they_were_learned(outputs, caplog):
    target = Target("sex", CLASSIFICATION, np.full(N, np.nan), ("F", "M"))
    odds = np.linspace(0.5, 0.9, N)
    values = np.column_stack([odds, 1 - odds])
    found = table(write_applied(applied(target, {"fc": values}), *outputs))
    np.testing.assert_array_equal(found["predicted"], np.where(odds < 0.8, "M", "F"))
    np.testing.assert_allclose(found["probability_M"], 1 - odds, rtol=1e-5)
    assert "bs_concatenated are not here: the column predicted is by fc" in caplog.text
