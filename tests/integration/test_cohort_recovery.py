"""Network recovery of people whose outputs are there."""

import numpy as np
import pytest

from bsym_bids import atlas
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.cohort import recovery
from bsym_bids.cohort.recovery import recover_networks
from bsym_bids.model.embed import inference
from bsym_bids.model.networks import FEATURES, recovery_of_run
from bsym_bids.model.weights import load_model, resolve_release
from bsym_bids.outputs.reading import find_runs, read_series
from bsym_bids.simulation.cohort import simulate_recipe
from bsym_bids.simulation.cohort_files import write_cohort


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a run of each of three people, the second one damaged."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(simulate_recipe("fc", 3, seed=1), folder / "bids", folder / "out")
    found = find_runs(folder / "out")
    found[1].path.write_text("damaged")
    return found


@pytest.fixture(scope="module")
def release():
    return resolve_release("bsym-sim-v1")


def test_each_person_counts_as_by_the_model_itself(runs, release, caplog):
    found = recover_networks(runs, release, seed=0)
    assert found.participants == (runs[0].participant, runs[2].participant)
    assert f"{runs[1].label}: not in the network recovery" in caplog.text
    windows = windows_for_model(read_series(runs[0]), 0.8, "robust", 100)
    sides = [roi.hemisphere for roi in atlas.rois()]
    with inference(1):
        expected = recovery_of_run(
            load_model(release), windows.data, windows.missing, atlas.networks(), sides, 0
        )
    for name in FEATURES:
        assert found.by_feature[name][0] == expected[name]


def test_people_are_drawn_with_the_seed(runs, monkeypatch):
    monkeypatch.setattr(recovery, "MOST_PEOPLE", 2)
    drawn = [recovery._first_runs(runs, seed) for seed in range(8)]
    assert all(len(chosen) == 2 for chosen in drawn)
    assert len({tuple(run.participant for run in chosen) for chosen in drawn}) > 1
    again = recovery._first_runs(list(reversed(runs)), 0)
    np.testing.assert_array_equal([r.label for r in again], [r.label for r in drawn[0]])


def test_without_any_usable_run_there_is_none(runs, release):
    assert recover_networks(runs[1:2], release, seed=0) is None
