"""The group-average connectomes on the 450 ROIs."""

import numpy as np
import pytest

from bsym_bids import atlas
from bsym_bids.atlas.group import (
    WITHIN_STRUCTURE_CORRELATION,
    group_file,
    group_functional_connectivity,
    group_streamline_counts,
)

NAMES = list(atlas.roi_names())


@pytest.fixture(scope="module")
def source():
    with np.load(group_file()) as file:
        labels = [str(label) for label in file["labels"]]
        return labels, file["functional"].astype(float), file["structural"].astype(float)


def test_cortex_is_the_average_in_atlas_order(source):
    labels, functional, structural = source
    rows = [labels.index(name) for name in NAMES[50:]]
    assert rows == list(range(400))
    off = ~np.eye(400, dtype=bool)
    np.testing.assert_allclose(
        group_functional_connectivity()[50:, 50:][off], np.tanh(functional[:400, :400])[off]
    )
    counts = group_streamline_counts()[50:, 50:]
    edges = structural[:400, :400] > 0
    np.testing.assert_allclose(counts[edges], np.exp(structural[:400, :400][edges]), rtol=1e-6)
    assert (counts[~edges] == 0).all()


@pytest.mark.parametrize(
    ("roi", "structure"),
    [
        ("HIP-head-m-rh", "Rhippo"),
        ("THA-DP-lh", "Lthal"),
        ("aGP-rh", "Rpal"),
        ("lAMY-lh", "Lamyg"),
        ("NAc-core-lh", "Laccumb"),
        ("CAU-tail-rh", "Rcaud"),
        ("PUT-VA-lh", "Lput"),
    ],
)
def test_subcortical_rois_connect_as_their_structure_does(source, roi, structure):
    labels, functional, _ = source
    np.testing.assert_allclose(
        group_functional_connectivity()[NAMES.index(roi), 50:],
        np.tanh(functional[labels.index(structure), :400]),
        rtol=1e-6,
    )


def test_rois_of_one_structure_correlate_by_fiat():
    correlation = group_functional_connectivity()
    assert correlation[NAMES.index("aGP-rh"), NAMES.index("pGP-rh")] == WITHIN_STRUCTURE_CORRELATION
    assert correlation[NAMES.index("aGP-rh"), NAMES.index("pGP-lh")] != WITHIN_STRUCTURE_CORRELATION


def test_streamlines_of_a_structure_are_dealt_out(source):
    labels, _, structural = source
    parts = [NAMES.index(name) for name in NAMES if "THA" in name and name.endswith("rh")]
    row = structural[labels.index("Rthal"), :400]
    expected = np.where(row > 0, np.exp(row), 0)
    np.testing.assert_allclose(group_streamline_counts()[parts, 50:].sum(0), expected, rtol=1e-5)


def test_both_are_proper_matrices():
    correlation, counts = group_functional_connectivity(), group_streamline_counts()
    assert correlation.shape == counts.shape == (450, 450)
    assert np.linalg.eigvalsh(correlation)[0] > 0.05
    np.testing.assert_array_equal(np.diag(correlation), 1)
    np.testing.assert_array_equal(np.diag(counts), 0)
    np.testing.assert_allclose(correlation, correlation.T)
    np.testing.assert_allclose(counts, counts.T)


def test_callers_cannot_change_them():
    with pytest.raises(ValueError, match="read-only"):
        group_functional_connectivity()[0, 0] = 2
