"""The weights that come with the program: whole, small, and as good as their card says."""

import numpy as np
import pytest

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity, group_streamline_counts
from bsym_bids.bold.windows import windows_for_model
from bsym_bids.model.cards import check_card, known_card_path, packaged_folder, read_card
from bsym_bids.model.domain import IN_DOMAIN, judge_reconstruction
from bsym_bids.model.reconstruction import OVERALL, reconstruction_quality
from bsym_bids.model.structural import edge_quality, structural_input
from bsym_bids.model.weights import load_model, resolve_release
from bsym_bids.outputs.reading import WrittenSeries
from bsym_bids.simulation.bold import draw_run
from bsym_bids.simulation.people import draw_correlation, draw_streamline_counts

NAME = "bsym-sim-v1"
#: A person who took no part in the training, whose seed was 1.
SEED = [99, 1]


@pytest.fixture(scope="module")
def release():
    return resolve_release(NAME)


@pytest.fixture(scope="module")
def model(release):
    return load_model(release)


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(SEED)
    run = draw_run(draw_correlation(60, rng), 170, rng)
    censored = np.zeros(len(run.timeseries), bool)
    return windows_for_model(WrittenSeries(run.timeseries, censored, run.repetition_time)).data


@pytest.fixture(scope="module")
def counts():
    return draw_streamline_counts(60, np.random.default_rng(SEED))


def test_the_card_is_complete():
    check_card(read_card(NAME), str(known_card_path(NAME)), in_full=True)


def test_the_files_are_small_and_are_those_of_the_card(release):
    files = sorted(packaged_folder(NAME).iterdir())
    assert sorted(release.files.values()) == files  # nothing beside them
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_every_branch_is_there(model):
    for branch in ("spatial", "temporal", "context", "perceiver", "structural", "gate"):
        assert getattr(model, branch) is not None, branch


def test_outputs_say_what_it_was_trained_on(release):
    assert "simulated people alone" in release.warning


def test_hidden_rois_come_back_nearly_as_well_as_the_card_says(model, windows):
    correlation = group_functional_connectivity()
    quality = reconstruction_quality(
        model, windows, np.zeros(450, bool), 0, correlation=correlation
    )
    found = quality.network_means([OVERALL] * 450)[OVERALL]
    known = read_card(NAME)["quality"]["reconstruction"]
    assert found["r2"] == pytest.approx(known["r2"], abs=0.15)  # people differ
    assert found["r2"] > found["permuted_r2"] + 0.2
    assert found["r2"] > found["linear_r2"] - 0.05
    assert judge_reconstruction(read_card(NAME), found).verdict == IN_DOMAIN


def test_hidden_edges_come_back(model, counts):
    quality = edge_quality(
        model,
        structural_input(counts, "log10p1")[None],
        0,
        group=structural_input(group_streamline_counts(), "log10p1"),
    )
    known = read_card(NAME)["quality"]["edges"]
    assert quality.network.all_pairs.rho[0] == pytest.approx(known["rho"], abs=0.05)
    assert quality.network.all_pairs.rho[0] > quality.permuted.all_pairs.rho[0] + 0.3


def test_both_modalities_give_a_fused_embedding_and_one_does_without(model, windows, counts):
    sc = structural_input(counts, "log10p1")[None]
    both = model(fmri=windows[:1], sc=sc)
    assert both.fused_embedding.shape == (1, 450, 128)
    assert ((both.gate > 0) & (both.gate < 1)).all()
    alone = model(fmri=windows[:1])
    assert alone.fused_embedding is None
    np.testing.assert_array_equal(alone.functional_embedding, both.functional_embedding)
    np.testing.assert_array_equal(model(sc=sc).structural_embedding, both.structural_embedding)


def test_the_contract_is_that_of_the_participant_level():
    contract = read_card(NAME)["contract"]
    assert contract["rois"] == atlas.N_ROIS and contract["window_frames"] == 200
    assert (contract["repetition_time"], contract["scaling"]) == (0.8, "robust")
