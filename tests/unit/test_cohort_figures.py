"""Figures of a cohort: they are there, say what they must, and leave no trace."""

import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure

from bsym_bids import atlas
from bsym_bids.cohort.contrast import Contrast, Differences, contrast_maps, embedding_shift
from bsym_bids.cohort.edges import networks_in_order
from bsym_bids.cohort.identification import halves, identify_with_and_without_mean
from bsym_bids.cohort.recovery import CohortRecovery
from bsym_bids.cohort.reliability import reliability, roi_networks, table
from bsym_bids.errors import BsymError
from bsym_bids.model.networks import FEATURES, Recovery
from bsym_bids.reports import cohort_figures as figures

NETWORKS, NAMES, R = atlas.networks(), atlas.roi_names(), atlas.N_ROIS
CONTRAST = Contrast("ses", "drug", "placebo")


@pytest.fixture
def drawn(monkeypatch):
    """All text of the figures that are saved, and the figures."""
    kept = []
    save = Figure.savefig

    def note(self, *arguments, **options):
        kept.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return kept


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def maps(effect=12.0, measure="connectivity", people=8, **options):
    rng = np.random.default_rng(1)
    order = networks_in_order(NETWORKS)
    rois = 1e-3 * rng.standard_normal((3, people, R))
    rois[2, :, 60] += 1e-3 * effect
    rois[2, :, 300] -= 1e-3 * effect
    rois[:, :, 7] = np.nan
    pairs = 1e-2 * rng.standard_normal((3, people, len(order), len(order)))
    pairs[2, :, 0, 6] += 1e-2 * effect
    found = Differences(measure, rois, pairs[:, :, 0], pairs)
    return contrast_maps(CONTRAST, found, NAMES, NETWORKS, **options)


def identifications():
    rng = np.random.default_rng(0)
    own = rng.standard_normal((8, 60))
    scans = np.vstack([own + rng.standard_normal((8, 60)) for _ in range(2)])
    return identify_with_and_without_mean(scans, [*range(8)] * 2, [halves(8)], n_permutations=9)


def test_identification_shows_chance_intervals_and_numbers(tmp_path, drawn):
    results = identifications()
    path = tmp_path / "identification.svg"
    figures.draw_identification({"functional connectivity": results, "structural": []}, path)
    assert path.stat().st_size > 1000
    (panel,) = drawn[0].axes
    bars = sorted(patch.get_width() for patch in panel.patches)
    assert bars == sorted(100 * result.rate for result in results)
    said = texts(drawn[0])
    assert "other half of the run: 8 people\namong 8 candidates" in said
    assert {"chance", "people identified (%)", "functional connectivity"} <= set(said)
    ends = [segment[0, 0] for line in panel.collections for segment in line.get_segments()]
    assert 12.5 in ends and any(100 * results[0].interval[0] == pytest.approx(x) for x in ends)


def test_reliability_shows_medians(tmp_path, drawn):
    features = np.random.default_rng(0).standard_normal((8, R))
    columns = table(reliability(features, [*range(4)] * 2), roi_networks(NETWORKS))
    figures.draw_reliability({"FC": columns, "SC": columns}, tmp_path / "reliability.png")
    (panel,) = drawn[0].axes
    marks = [line for line in panel.lines if line.get_label() in ("FC", "SC")]
    for line in marks:
        np.testing.assert_allclose(line.get_xdata(), columns["icc_median"])
    assert {"excellent", "default mode", "all"} <= set(texts(drawn[0])) and len(marks) == 2


def test_recovery_shows_means_spreads_and_chance(tmp_path, drawn):
    rng = np.random.default_rng(0)
    found = CohortRecovery(
        ("a", "b", "c"),
        (),
        {name: [Recovery(*rng.random(2)) for _ in range(3)] for name in FEATURES},
    )
    columns = found.table()
    figures.draw_recovery(columns, "some-model", tmp_path / "recovery.svg")
    (panel,) = drawn[0].axes
    marks = [line for line in panel.lines if line.get_marker() in ("o", "s")]
    for line, column in zip(marks, ("accuracy", "left_to_right"), strict=True):
        np.testing.assert_allclose(line.get_xdata(), 100 * np.array(columns[column]))
    said = texts(drawn[0])
    assert "some-model, 3 people: mean and standard deviation" in said
    assert {"largest network", *FEATURES.values()} <= set(said)
    folds = [recovery.folds for recovery in found.by_feature["embedding"]]
    assert columns["accuracy"][0] == pytest.approx(np.mean(folds))
    assert columns["accuracy_sd"][0] == pytest.approx(np.std(folds, ddof=1))


def test_recovery_of_one_person_has_no_spread():
    columns = CohortRecovery(("a",), (), {"code": [Recovery(0.5, 0.25)]}).table()
    assert np.isnan(columns["accuracy_sd"][0]) and columns["n_people"] == [1]
    assert columns["chance"][0] == pytest.approx(91 / 450)


def test_rois_are_marked_and_named(tmp_path, drawn):
    result = maps()["rois"]
    assert np.flatnonzero(result.significant).tolist() == [60, 300]
    figures.draw_roi_contrast(result, tmp_path / "rois.svg")
    said = "\n".join(texts(drawn[0]))
    for roi in (60, 300):
        assert NAMES[roi].removeprefix("7Networks_").replace("_", " ") in said
    assert "449 ROIs" in said and "ses-drug minus ses-placebo" in said and "Fisher's z" in said
    markers = {line.get_marker() for line in drawn[0].axes[0].lines}
    assert {"^", "v"} <= markers  # more and less differ by shape, not by colour alone


def test_nothing_significant_is_said(tmp_path, drawn):
    result = maps(0.0, "attention")["rois"]
    figures.draw_roi_contrast(result, tmp_path / "rois.svg")
    figures.draw_glass_brain(result, tmp_path / "brain.svg")
    assert any(text.endswith("\nnone") for text in texts(drawn[0]))
    assert any(text.startswith("none has p < 0.05") for text in texts(drawn[1]))


def test_without_p_values_nothing_is_said_of_significance(tmp_path, drawn):
    found = maps(people=13, n_permutations=0)
    figures.draw_roi_contrast(found["rois"], tmp_path / "rois.svg")
    figures.draw_glass_brain(found["rois"], tmp_path / "brain.svg")
    figures.draw_network_matrix(found["pairs"], tmp_path / "matrix.svg")
    for figure in drawn:
        said = texts(figure)
        assert any("no p-values" in text for text in said)
        assert not any("p <" in text or text.endswith("none") for text in said)


def test_names_stop_where_there_are_too_many(tmp_path, drawn):
    differences = np.random.default_rng(0).standard_normal((9, R, 4)) + 4
    result = embedding_shift(CONTRAST, differences, NAMES, NETWORKS)
    figures.draw_roi_contrast(result, tmp_path / "rois.png")
    assert any("and 435 more, see the table" in text for text in texts(drawn[0]))
    figures.draw_glass_brain(result, tmp_path / "brain.png")
    assert (tmp_path / "brain.png").stat().st_size > 10_000


def test_pairs_of_networks_are_written_and_framed(tmp_path, drawn):
    result = maps()["pairs"]
    figures.draw_network_matrix(result, tmp_path / "matrix.svg")
    panel = drawn[0].axes[0]
    form = "[+\N{MINUS SIGN}]?(\\.[0-9]+|0)"
    cells = [text for text in texts(drawn[0]) if re.fullmatch(form, text)]
    assert len(cells) >= 64
    corners = {
        (round(patch.get_x() + 0.46), round(patch.get_y() + 0.46)) for patch in panel.patches
    }
    assert corners == {(6, 0), (0, 6)}  # visual with default mode, both ways


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+.012"), (-1.5, "\N{MINUS SIGN}1.500"), (-1e-5, "0")]
)
def test_numbers_have_their_sign(value, text):
    assert figures._signed(value, 3) == text


def test_glass_brain_has_every_roi_in_its_place(tmp_path, drawn):
    result = maps()["rois"]
    figures.draw_glass_brain(result, tmp_path / "brain.svg")
    left, right, above, behind = (
        next(c for c in panel.collections if c.get_array() is not None and len(c.get_offsets()) > 1)
        for panel in drawn[0].axes[:4]
    )
    counts = [len(marks.get_offsets()) for marks in (left, right, above, behind)]
    assert counts == [225, 224, 449, 449] or counts == [224, 225, 449, 449]
    assert np.abs(above.get_offsets()[:, 0]).max() < 80  # mm to the left and right
    assert drawn[0].axes[0].xaxis_inverted() and not drawn[0].axes[1].xaxis_inverted()


def test_centres_are_in_their_hemisphere_and_where_they_should_be():
    centres = figures.roi_centres()
    side = np.array([roi.hemisphere == "R" for roi in atlas.rois()])
    assert centres.shape == (R, 3) and np.isfinite(centres).all()
    assert ((centres[:, 0] > 0) == side).all()
    of = np.array(NETWORKS)
    assert centres[of == "Vis", 1].mean() < -60 and centres[of == "Limbic", 2].mean() < -10
    image = nib.load(atlas.volume_path(atlas.SPACES[0], 2))
    labels = np.asarray(image.dataobj)
    for roi in (0, 40, 77, 203, 449):
        voxels = np.argwhere(labels == roi + 1)
        expected = (image.affine @ [*voxels.mean(axis=0), 1])[:3]
        np.testing.assert_allclose(centres[roi], expected, atol=1e-6)


def test_the_same_figure_is_the_same_file(tmp_path):
    result = maps()["pairs"]
    for name in ("a.svg", "b.svg"):
        figures.draw_network_matrix(result, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    with pytest.raises(BsymError, match="matrix"):
        figures.draw_network_matrix(maps()["pairs"], tmp_path / "absent" / "matrix.svg")


def test_home_stays_empty(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "from pathlib import Path\n"
        "from bsym_bids.reports import cohort_figures as figures\n"
        "table = dict(network=['all'], icc_median=[0.5], icc_q25=[0.4], icc_q75=[0.6])\n"
        f"figures.draw_reliability({{'FC': table}}, Path({str(tmp_path / 'a.svg')!r}))\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG", "MPL"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.svg").is_file() and not list(home.iterdir()) and not done.stderr
