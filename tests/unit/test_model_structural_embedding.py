"""A person's connectome at the model: what it gets, structural and fused embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_tiny import (
    ROIS,
    STEPS,
    WIDTH,
    one_thread,  # noqa: F401 (used by every test)
    tiny_model,
    tiny_states,
    tiny_windows,
)

from bsym_bids.atlas import N_ROIS, roi_volumes
from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony
from bsym_bids.model.embed import embed_windows
from bsym_bids.model.structural import DENSITY, EdgeConvention, structural_input
from bsym_bids.model.structural_embedding import (
    connectome_input,
    depth_factor,
    embed_connectome,
    expected_streamlines,
    fuse,
    group_input,
)
from bsym_bids.model.weights import resolve_release

PLAIN = EdgeConvention("count", "log10p1")
ABSENT = [3]


def counts_with_absent(seed=0, n_rois=ROIS, absent=ABSENT):
    """Return counts with something on the diagonal and n/a for absent ROIs."""
    counts = np.random.default_rng(seed).poisson(4.0, (n_rois, n_rois)).astype(float)
    counts = np.triu(counts) + np.triu(counts, 1).T
    counts[absent] = counts[:, absent] = np.nan
    return counts


def without_nan(counts):
    filled = np.nan_to_num(counts)
    np.fill_diagonal(filled, 0)
    return filled


# --- input ---------------------------------------------------------------------------------------


def test_absent_rois_have_no_edges_and_are_named():
    counts = counts_with_absent()
    given = connectome_input(counts, np.ones(ROIS), PLAIN)
    assert np.flatnonzero(given.missing).tolist() == ABSENT
    assert not given.sc[ABSENT].any()
    np.testing.assert_allclose(given.sc, np.log10(1 + without_nan(counts)), rtol=1e-6)
    assert given.n_streamlines == np.triu(without_nan(counts)).sum()
    assert given.depth_factor == 1


def test_volumes_of_the_person_are_divided_by():
    counts = counts_with_absent()
    volumes = np.arange(1.0, ROIS + 1)
    volumes[ABSENT] = 0  # as an absent ROI has it
    sc = connectome_input(counts, volumes, EdgeConvention(DENSITY, "log10")).sc
    i, j = 1, 7
    assert sc[i, j] == pytest.approx(np.log10(counts[i, j] * 2 / (volumes[i] + volumes[j])))


@given(st.floats(1, 1e8), st.floats(1, 1e7), st.floats(1, 100))
def test_depth_is_brought_into_the_range_and_never_further(total, low, ratio):
    factor = depth_factor(total, (low, low * ratio))
    depth = total * factor
    assert low * (1 - 1e-9) <= depth <= low * ratio * (1 + 1e-9)
    if low <= total <= low * ratio:
        assert factor == 1


def test_counts_are_brought_to_the_depth_of_the_model():
    counts = counts_with_absent()
    plain = connectome_input(counts, np.ones(ROIS), PLAIN)
    expected = (3 * plain.n_streamlines, 9 * plain.n_streamlines)
    deeper = connectome_input(counts, np.ones(ROIS), PLAIN, expected)
    assert deeper.depth_factor == pytest.approx(3)
    assert deeper.n_streamlines == plain.n_streamlines  # what was tracked, for the sidecar
    np.testing.assert_allclose(10**deeper.sc - 1, 3 * (10**plain.sc - 1), atol=1e-4)


def test_depth_is_known_where_the_card_says_it():
    assert expected_streamlines(resolve_release("bsym-sim-v1").card) == (500_000, 2_700_000)
    assert expected_streamlines(resolve_release("untrained").card) is None


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.full((ROIS, ROIS), np.nan), "12 of 12 ROIs are absent"),
        (counts_with_absent(absent=[1, 2, 3]), "3 of 12 ROIs are absent"),
        (np.eye(ROIS), "no streamline connects two different ROIs"),
    ],
)
def test_connectomes_that_say_nothing_are_refused(counts, message):
    with pytest.raises(BadDataError, match=message):
        connectome_input(counts, np.ones(ROIS), PLAIN)


@pytest.mark.parametrize("measure", ["count", DENSITY])
def test_group_average_is_under_the_same_convention(measure):
    convention = EdgeConvention(measure, "log10p1")
    group = group_input(convention)
    again = connectome_input(
        np.expm1(group * np.log(10)).astype(np.float64), roi_volumes(), PLAIN
    ).sc
    assert group.shape == (N_ROIS, N_ROIS)
    np.testing.assert_allclose(again, group, atol=1e-5)
    assert (measure == DENSITY) == (group.max() < 3)


# --- embeddings ----------------------------------------------------------------------------------


def test_embedding_is_that_of_the_branch_and_absent_rois_are_missing():
    model = tiny_model()
    counts = counts_with_absent()
    found = embed_connectome(model, connectome_input(counts, np.ones(ROIS), PLAIN), seed=0)
    sc = torch.from_numpy(structural_input(without_nan(counts), "log10p1"))
    embedding, weights = model.structural(sc[None])
    present = np.setdiff1d(np.arange(ROIS), ABSENT)
    np.testing.assert_allclose(found.embedding[present], embedding[0, present], rtol=1e-6)
    np.testing.assert_allclose(
        found.attention[np.ix_(present, present)],
        weights[0].mean(0).numpy()[np.ix_(present, present)],
        rtol=1e-6,
    )
    assert np.isnan(found.embedding[ABSENT]).all()
    assert np.isnan(found.attention[ABSENT]).all() and np.isnan(found.attention[:, ABSENT]).all()
    assert found.quality["n_edges"] == (np.triu(without_nan(counts)) > 0).sum()
    assert "group_rho" not in found.quality


def test_group_average_serves_as_baseline():
    given = connectome_input(counts_with_absent(), np.ones(ROIS), PLAIN)
    quality = embed_connectome(tiny_model(), given, seed=0, group=given.sc).quality
    assert quality["group_rho"] > 0.99


def test_embedding_needs_the_branch():
    model = BrainSymphony.from_state_dicts(gate=tiny_states()["gate"])
    with pytest.raises(BadDataError):
        embed_connectome(
            model, connectome_input(counts_with_absent(), np.ones(ROIS), PLAIN), seed=0
        )


def test_fused_is_the_network_run_on_both_modalities():
    model = tiny_model()
    windows = tiny_windows(2)
    given = connectome_input(counts_with_absent(absent=[]), np.ones(ROIS), PLAIN)
    functional = embed_windows(model, windows, np.zeros(ROIS, bool)).windows
    structural = embed_connectome(model, given, seed=0).embedding
    fused = fuse(model, functional, structural)
    expected = model(fmri=windows, sc=np.stack([given.sc, given.sc]))
    np.testing.assert_allclose(fused.windows, expected.fused_embedding, atol=1e-5)
    np.testing.assert_allclose(fused.gate, expected.gate, atol=1e-5)
    np.testing.assert_allclose(fused.mean, fused.windows.mean(0), rtol=1e-5)
    assert fused.gate.shape == (2, ROIS, WIDTH)


def test_fused_lacks_what_either_modality_lacks():
    model = tiny_model()
    functional = np.ones((2, ROIS, WIDTH), np.float32)
    functional[:, 5] = np.nan
    structural = np.ones((ROIS, WIDTH), np.float32)
    structural[ABSENT] = np.nan
    fused = fuse(model, functional, structural)
    lacking = np.isnan(fused.windows).any((0, 2))
    assert np.flatnonzero(lacking).tolist() == [*ABSENT, 5]
    assert (np.isnan(fused.gate) == np.isnan(fused.windows)).all()


def test_fused_needs_a_gate_and_embeddings_that_fit():
    states = tiny_states()
    del states["gate"]
    no_gate = BrainSymphony.from_state_dicts(structural=states["structural"], structural_heads=2)
    both = np.ones((1, ROIS, WIDTH), np.float32), np.ones((ROIS, WIDTH), np.float32)
    with pytest.raises(BadDataError, match="no gate"):
        fuse(no_gate, *both)
    with pytest.raises(BadDataError, match="cannot be fused"):
        fuse(tiny_model(), both[0][..., : STEPS // 5], both[1])
