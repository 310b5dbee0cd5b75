"""Simulated people."""

import json

import numpy as np
import pytest
from scipy import signal

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity, group_streamline_counts
from bsym_bids.errors import CannotCreateOutputError, UsageError
from bsym_bids.outputs.reading import find_connectomes, find_runs, read_connectome, read_timeseries
from bsym_bids.simulation.bold import Spectrum, draw_run, series_with
from bsym_bids.simulation.dataset import simulate_dataset
from bsym_bids.simulation.people import draw_correlation, draw_streamline_counts

UPPER = np.triu_indices(450, 1)
DEFAULT = np.flatnonzero(np.array(atlas.networks()) == "Default")


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_persons_correlation_is_a_correlation_near_the_average():
    correlation = draw_correlation(50, rng())
    assert np.linalg.eigvalsh(correlation)[0] > 0
    np.testing.assert_allclose(np.diag(correlation), 1)
    r = np.corrcoef(correlation[UPPER], group_functional_connectivity()[UPPER])[0, 1]
    assert 0.4 < r < 0.9  # people differ, but not by everything


def test_people_differ_and_a_seed_is_a_person():
    first, again, other = (draw_correlation(50, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef(first[UPPER], other[UPPER])[0, 1] < 0.9


def test_the_default_network_loosens_with_age():
    def cohesion(age):
        block = draw_correlation(age, rng(3))[np.ix_(DEFAULT, DEFAULT)]
        return block[np.triu_indices(len(DEFAULT), 1)].mean()

    assert cohesion(20) > cohesion(50) > cohesion(80)


def test_series_have_the_correlation_and_the_spectrum():
    correlation = draw_correlation(40, rng())
    series = series_with(correlation, 20_000, 0.8, rng(1), Spectrum(1.0, 0.01, 0.2))
    found = np.corrcoef(series.T)
    assert np.abs(found - correlation)[UPPER].max() < 0.12
    frequency, power = signal.welch(series[:, 0], 1 / 0.8, nperseg=1000)
    outside = (frequency < 0.005) | (frequency > 0.21)
    assert power[outside].sum() < 0.01 * power.sum()
    inside = (frequency > 0.02) & (frequency < 0.19)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.25)


def test_runs_differ_in_time_base_and_filter():
    runs = [draw_run(np.eye(450), 200, rng(seed)) for seed in range(12)]
    assert {run.repetition_time for run in runs} == {0.72, 0.8, 2.0}
    for run in runs:
        assert run.timeseries.shape == (np.ceil(200 / run.repetition_time), 450)
        assert np.isfinite(run.timeseries).all()

    def upper_power(run):
        frequency, power = signal.periodogram(run.timeseries, 1 / run.repetition_time, axis=0)
        return power[frequency > 0.17].sum() / power.sum()

    shares = [upper_power(run) for run in runs]
    assert min(shares) < 0.01 and max(shares) > 0.1


def test_counts_are_whole_symmetric_and_near_the_average():
    counts = draw_streamline_counts(50, rng())
    np.testing.assert_array_equal(counts, counts.T)
    np.testing.assert_array_equal(counts, counts.round())
    assert (np.diag(counts) == 0).all() and (counts >= 0).all()
    average = group_streamline_counts()
    r = np.corrcoef(np.log10(1 + counts[UPPER]), np.log10(1 + average[UPPER]))[0, 1]
    assert 0.8 < r < 0.97
    assert ((counts > 0) & (average == 0)).any()


def test_fewer_streamlines_between_the_hemispheres_with_age():
    sides = np.array([roi.hemisphere for roi in atlas.rois()])
    between = sides[:, None] != sides

    def share(age):
        counts = draw_streamline_counts(age, rng(5))
        return counts[between].sum() / counts.sum()

    assert share(20) > 1.5 * share(80)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "people"
    labels = simulate_dataset(out, 2, seed=4, seconds=170)
    return out, labels


def test_a_dataset_reads_back_as_the_participant_levels(dataset):
    out, labels = dataset
    runs, connectomes = find_runs(out), find_connectomes(out)
    assert [run.participant for run in runs] == labels == ["sim0001", "sim0002"]
    assert [c.participant for c in connectomes] == labels
    series, censored = read_timeseries(runs[0])
    assert series.shape[1] == 450 and not censored.any()
    assert len(series) == np.ceil(170 / runs[0].repetition_time)
    counts = read_connectome(connectomes[0])
    np.testing.assert_array_equal(counts, counts.T)


def test_a_dataset_says_that_nobody_was_measured(dataset):
    out, _ = dataset
    for path in out.glob("sub-*/*/*.json"):
        sidecar = json.loads(path.read_text())
        assert sidecar["Simulated"] is True and "no person was measured" in sidecar["Description"]
    assert (out / "participants.tsv").read_text().splitlines()[0] == "participant_id\tage"


def test_a_person_depends_on_seed_and_number_alone(dataset, tmp_path):
    out, _ = dataset
    simulate_dataset(tmp_path / "second", 1, seed=4, first=2, seconds=170)
    for path in (tmp_path / "second").glob("sub-*/*/*.tsv"):
        twin = out / path.relative_to(tmp_path / "second")
        assert path.read_bytes() == twin.read_bytes()


def test_a_folder_in_use_is_refused(dataset):
    with pytest.raises(CannotCreateOutputError, match="not an empty folder"):
        simulate_dataset(dataset[0], 1)


@pytest.mark.parametrize("wrong", [{"n_participants": 0}, {"seed": -1}, {"seconds": 10}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError):
        simulate_dataset(tmp_path / "out", **({"n_participants": 1} | wrong))
