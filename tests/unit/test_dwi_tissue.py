"""Tissues: they add up, MRtrix3 takes them, and a head that is known is segmented as it is."""

import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsym_bids.dwi.template import template_labels, template_mask, template_t1w
from bsym_bids.dwi.tissue import (
    CORTICAL,
    CSF,
    NEAR,
    PATHOLOGICAL,
    SUBCORTICAL,
    WHITE,
    five_tissues,
    freesurfer_tissue,
    segment,
    template_priors,
    three_from_dseg,
    tissue_volumes,
    tissues_from_freesurfer,
)
from bsym_bids.dwi.transforms import Volume, resample, save_volume
from bsym_bids.simulation.diffusion_anatomy import (
    draw_head,
    grid_of_head,
    t1w_image,
    tissues_on_grid,
)

SHAPE = (7, 6, 5)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="module")
def head():
    """A simulated head of 3 mm: the person, the true tissues, and the image without its bias."""
    rng = np.random.default_rng(4)
    person = draw_head(rng, 0.87, 2.0)
    shape, affine = grid_of_head(person, 3.0, 12)
    true = tissues_on_grid(person, shape, affine)
    image, bias = t1w_image(true, 3.0, rng)
    return person, true, (image / bias).astype(np.float32), affine


def warped_priors(person, shape, affine):
    priors = template_priors()
    kinds = (Volume(priors.data[..., kind], priors.affine) for kind in range(3))
    return np.stack([resample(k, shape, affine, [person]).data for k in kinds], axis=-1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_shares_add_up_to_one_in_the_brain_and_to_nothing_outside(seed):
    rng = np.random.default_rng(seed)
    shares = rng.uniform(-0.2, 1, (*SHAPE, 3)).astype(np.float32)
    shares[rng.random(SHAPE) < 0.2] = rng.choice([0, np.nan])
    mask = rng.random(SHAPE) < 0.7
    labels = Volume(rng.integers(0, 450, SHAPE).astype(np.int16), np.eye(4))
    found = five_tissues(shares, labels, mask)
    assert (found >= 0).all()
    assert np.allclose(found.sum(axis=-1), mask, atol=1e-5)
    assert not found[..., PATHOLOGICAL].any()
    nucleus = mask & (labels.data > 0) & (labels.data <= 50)
    assert not found[nucleus][:, [CORTICAL, WHITE]].any()


def test_what_nothing_is_known_of_in_the_brain_is_fluid():
    mask = np.ones(SHAPE, dtype=bool)
    empty = Volume(np.zeros(SHAPE, dtype=np.int16), np.eye(4))
    assert (five_tissues(np.zeros((*SHAPE, 3), np.float32), empty, mask)[..., CSF] == 1).all()


def test_grey_matter_beside_a_nucleus_is_part_of_it_unless_cortex_is_nearer():
    shares = np.zeros((30, 1, 1, 3), np.float32)
    shares[..., 0] = 1
    labels = np.zeros((30, 1, 1), np.int16)
    labels[5], labels[11], labels[20] = 3, 60, 50
    mask = np.ones((30, 1, 1), bool)
    found = five_tissues(shares, Volume(labels, np.eye(4)), mask)[:, 0, 0]
    subcortical = np.flatnonzero(found[:, SUBCORTICAL]).tolist()
    assert NEAR == 4.0
    assert subcortical == [1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24]


def test_a_nucleus_keeps_its_fluid():
    shares = np.array([0.2, 0.5, 0.3], np.float32) * np.ones((1, 1, 1, 1), np.float32)
    labels = Volume(np.full((1, 1, 1), 7, np.int16), np.eye(4))
    found = five_tissues(shares, labels, np.ones((1, 1, 1), bool))[0, 0, 0]
    assert found.tolist() == pytest.approx([0, 0.7, 0, 0.3, 0])


def test_a_segmentation_of_three_is_numbered_as_in_bids():
    found = three_from_dseg(np.array([0, 1, 2, 3, 4]).reshape(5, 1, 1))[:, 0, 0]
    assert found.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


class TestFreeSurfer:
    """Numbers as in FreeSurferColorLUT.txt."""

    @pytest.mark.parametrize(
        ("number", "tissue"),
        [
            (1001, CORTICAL),  # ctx-lh-bankssts
            (2035, CORTICAL),  # ctx-rh-insula
            (11101, CORTICAL),  # ctx_lh_G_and_S_frontomargin
            (12175, CORTICAL),  # ctx_rh_S_temporal_transverse
            (3, CORTICAL),  # Left-Cerebral-Cortex, which the aseg alone has
            (42, CORTICAL),
            (8, CORTICAL),  # Left-Cerebellum-Cortex
            (47, CORTICAL),
            (10, SUBCORTICAL),  # Left-Thalamus
            (49, SUBCORTICAL),
            (11, SUBCORTICAL),  # Left-Caudate
            (12, SUBCORTICAL),  # Left-Putamen
            (13, SUBCORTICAL),  # Left-Pallidum
            (17, SUBCORTICAL),  # Left-Hippocampus
            (53, SUBCORTICAL),
            (54, SUBCORTICAL),  # Right-Amygdala
            (58, SUBCORTICAL),  # Right-Accumbens-area
            (2, WHITE),
            (41, WHITE),
            (16, WHITE),  # Brain-Stem
            (251, WHITE),  # CC_Posterior
            (77, WHITE),  # WM-hypointensities
            (4, CSF),  # Left-Lateral-Ventricle
            (14, CSF),  # 3rd-Ventricle
            (24, CSF),
            (31, CSF),  # Left-choroid-plexus
            (25, PATHOLOGICAL),  # Left-Lesion
        ],
    )
    def test_numbers(self, number, tissue):
        assert freesurfer_tissue()[number] == tissue

    def test_a_segmentation(self):
        numbers = np.array([0, 0, 2, 1001, 10, 4, 25, 9999, -1]).reshape(9, 1, 1)
        mask = np.array([0, 1, 1, 0, 1, 1, 1, 1, 1], bool).reshape(9, 1, 1)
        found = tissues_from_freesurfer(numbers, mask)[:, 0, 0]
        assert found.sum(axis=1).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1]
        kinds = [CSF, WHITE, CORTICAL, SUBCORTICAL, CSF, PATHOLOGICAL, CSF, CSF]
        assert found[1:].argmax(axis=1).tolist() == kinds


def test_priors_of_the_template_are_shares_and_know_its_tissues():
    priors = template_priors().data
    mask = template_mask().data
    assert priors.min() >= 0
    assert priors.sum(axis=-1).max() <= 1 + 1e-4
    bright = mask & (template_t1w().data > 0.9)
    dark = mask & (template_t1w().data < 0.3)
    assert priors[bright][:, 1].mean() > 0.6
    assert priors[dark][:, 2].mean() > 0.6


def test_a_known_head_is_segmented_as_it_is(head):
    person, true, image, affine = head
    mask = true.brain
    found = segment(image, mask, warped_priors(person, mask.shape, affine))
    assert np.allclose(found.sum(axis=-1), mask, atol=1e-4)
    kinds = found.argmax(axis=-1)
    wanted = np.argmax([true.grey, true.white, true.csf], axis=0)
    overlaps = [dice(mask & (kinds == k), mask & (wanted == k)) for k in range(3)]
    assert overlaps[0] > 0.88
    assert overlaps[1] > 0.90
    assert overlaps[2] > 0.70


def test_volumes_are_in_ml():
    tissues = np.zeros((10, 10, 10, 5), np.float32)
    tissues[..., WHITE] = 0.5
    assert tissue_volumes(tissues, 8.0) == {
        "CorticalGrey": 0.0,
        "SubcorticalGrey": 0.0,
        "White": 4.0,
        "CSF": 0.0,
        "Pathological": 0.0,
    }


@pytest.mark.mrtrix3
class TestMRtrix3:
    def check(self, tissues, affine, folder):
        path = save_volume(Volume(tissues, affine), folder / "5tt.nii")
        command = ["5ttcheck", path]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr

    def test_it_takes_five_tissues(self, head, tmp_path):
        person, true, _, affine = head
        shape = true.brain.shape
        labels = resample(template_labels(), shape, affine, [person], order=0)
        shares = np.stack([true.grey, true.white, true.csf], axis=-1)
        self.check(five_tissues(shares, labels, true.brain), affine, tmp_path)

    def test_it_takes_those_of_freesurfer(self, head, tmp_path):
        _, true, _, affine = head
        numbers = np.where(true.white >= 0.5, 2, np.where(true.grey >= 0.5, 1001, 24))
        numbers[~true.brain] = 0
        numbers[(true.labels > 0) & (true.labels <= 50)] = 10
        self.check(tissues_from_freesurfer(numbers, true.brain), affine, tmp_path)

    def test_it_refuses_what_does_not_add_up(self, head, tmp_path):
        _, true, _, affine = head
        wrong = np.repeat(true.brain[..., None], 5, axis=-1).astype(np.float32)
        with pytest.raises(AssertionError):
            self.check(wrong, affine, tmp_path)
