"""Registration: planted movements are found, whatever the contrast and the number of threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from bsym_bids.dwi import registration
from bsym_bids.dwi.alignment import align, cortical_fit, mirrored, weaknesses
from bsym_bids.dwi.contrast import t1w_like
from bsym_bids.dwi.registration import (
    coarse,
    coarse_template,
    information,
    register_brains,
    register_linear,
    register_nonlinear,
    starts_between,
)
from bsym_bids.dwi.template import template_mask, template_t1w
from bsym_bids.dwi.transforms import Affine, Volume, resample
from bsym_bids.errors import BadDataError


def rigid(angles, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def brain_points(brain):
    return Affine(brain.mask.affine)(np.argwhere(brain.mask.data)[::97].astype(float))


@pytest.fixture(scope="module", autouse=True)
def _coarser():
    """Half the resolution, so that it is fast; the whole is tested in integration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "STEP", 4.0)
        yield


@pytest.fixture(scope="module")
def template():
    return coarse_template()


@pytest.fixture(scope="module")
def series(template):
    """The template as a b0 shows it: contrast inverted, blurred, noisy, coarse, on its own grid."""
    rng = np.random.default_rng(0)
    image, mask = template.image, template.mask
    inverted = np.where(mask.data, 1.6 - image.data, 0)
    blurred = gaussian_filter(inverted, 0.6) + 0.03 * rng.standard_normal(mask.data.shape)
    return Volume(np.maximum(blurred, 0).astype(np.float32), image.affine), mask


def placed(series, matrix):
    """The series where a head that moved by a matrix has it."""
    image, mask = series
    affine = matrix @ image.affine
    return coarse(Volume(image.data, affine), Volume(mask.data, affine))


MOVES = {
    "turned": rigid([12, -9, 15], [8, -12, 5]),
    "far away": rigid([-5, 4, 3], [150, -200, 90]),
}


@pytest.fixture(scope="module")
def fits(template, series):
    return {
        name: align(placed(series, move), template, same_space=False)
        for name, move in MOVES.items()
    }


@pytest.mark.parametrize("name", MOVES)
def test_a_planted_movement_is_found(template, series, fits, name):
    points = brain_points(placed(series, MOVES[name]))
    truth = Affine(np.linalg.inv(MOVES[name]))(points)
    errors = np.linalg.norm(Affine(fits[name].matrix)(points) - truth, axis=1)
    assert errors.max() < 1.5
    turn = fits[name].matrix[:3, :3] @ MOVES[name][:3, :3]
    assert np.degrees(Rotation.from_matrix(turn).magnitude()) < 1.0
    assert fits[name].dice > 0.95
    assert not fits[name].is_mirrored


def test_a_mirror_image_is_told(template, series):
    found = align(placed(series, np.eye(4)), mirrored(template), same_space=False)
    assert found.is_mirrored
    assert found.mirror_information > 1.2 * found.best_information


def test_mirroring_twice_is_nothing_and_once_exchanges_the_sides(template):
    once = mirrored(template)
    twice = mirrored(once)
    assert (twice.image.data == template.image.data).all()
    assert np.allclose(twice.image.affine, template.image.affine)
    points = brain_points(template)
    there = resample(template.image, (1, 1, len(points)), np.eye(4), [lambda _: points]).data
    flipped = points * [-1, 1, 1]
    here = resample(once.image, (1, 1, len(points)), np.eye(4), [lambda _: flipped]).data
    assert np.allclose(there, here, atol=1e-4)


def test_what_is_said_to_be_aligned_is_not_moved_but_measured(template, series):
    found = align(placed(series, rigid([0, 0, 4], [0, 0, 6])), template, same_space=True)
    assert (found.matrix == np.eye(4)).all()
    assert 5 < found.offset < 10
    assert found.information < found.best_information
    assert weaknesses({"Offset": found.offset})


def test_more_information_where_images_lie_on_each_other(template):
    right = information(template.image, template.image, mask=template.around)
    moved = rigid([0, 0, 0], [6, 0, 0])
    assert right > 2 * information(template.image, template.image, moved, template.around)


def test_starts_lay_centre_on_centre():
    one, other = np.array([1.0, 2, 3]), np.array([-40.0, 7, 90])
    for start in starts_between(one, other, (-25, 0, 25)):
        assert np.allclose(Affine(start)(one[None])[0], other)


def test_images_that_do_not_meet(template):
    away = np.eye(4)
    away[0, 3] = 1000
    with pytest.raises(BadDataError, match="do not overlap") as caught:
        register_linear(template.image, template.image, [away], rigid=True, mask=template.around)
    assert caught.value.hint


def test_an_affine_map_finds_sizes(template):
    larger = np.diag([1.1, 0.95, 1.05, 1.0])
    brain = coarse(
        Volume(template.image.data, larger @ template.image.affine),
        Volume(template.mask.data, larger @ template.mask.affine),
    )
    fit = register_brains(template, brain, rigid=False)
    points = brain_points(template)
    apart = Affine(fit.matrix)(points) - Affine(larger)(points)
    assert np.linalg.norm(apart, axis=1).max() < 2.0


def blobs(seed=0, size=24):
    image = gaussian_filter(np.random.default_rng(seed).standard_normal((size,) * 3), 2)
    return Volume((100 + 500 * image).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))


def test_a_planted_warp_is_found():
    moving = blobs()
    bend = np.zeros((24, 24, 24, 3))
    bend[..., 0] = 3 * np.sin(np.linspace(0, np.pi, 24))[:, None, None]

    def warp(points):
        index = np.clip(np.rint(points / 2).astype(int), 0, 23)
        return points + bend[tuple(index.T)]

    static = resample(moving, (24, 24, 24), moving.affine, [warp])
    field = register_nonlinear(static, moving, (50, 30))
    inner = (slice(7, 17),) * 3
    assert np.abs(field.field[inner] - bend[inner]).mean() < 0.5
    assert np.abs(bend[inner]).mean() > 0.8
    assert field.jacobian().min() > 0


_HASH = """
import hashlib, sys
import numpy as np
sys.path.insert(0, {folder!r})
from test_dwi_registration import blobs
from bsym_bids.dwi.brain import bias_corrected
from bsym_bids.dwi.registration import register_linear, register_nonlinear
from bsym_bids.dwi.transforms import Affine, Volume
brain = Volume(np.abs(blobs(0, 40).data), blobs(0, 40).affine)
whole = Volume(np.ones(brain.data.shape, bool), brain.affine)
start = np.eye(4)
start[:3, 3] = 3, -2, 1
linear = register_linear(brain, brain, [start], rigid=False).matrix
flat = bias_corrected(brain, whole).data
field = register_nonlinear(blobs(0), blobs(1), (10, 5)).field
points = np.random.default_rng(0).standard_normal((524_291, 3))
moved = Affine(np.diag([0.9, 1.1, 1.05, 1]) + 0.01)(points)
print(hashlib.sha256(b''.join(map(bytes, (linear, flat, field, moved)))).hexdigest())
"""


def test_the_number_of_threads_changes_no_bit():
    code = _HASH.format(folder=os.path.dirname(__file__))
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ
            | dict.fromkeys(
                (
                    "OMP_NUM_THREADS",
                    "OPENBLAS_NUM_THREADS",
                    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
                ),
                threads,
            ),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3", "3")
    }
    assert len(found) == 1


def test_a_b0_gets_the_contrast_of_the_template():
    brain, mask = template_t1w(), template_mask()
    inside = mask.data[::3, ::3, ::3]
    t1w = brain.data[::3, ::3, ::3]
    b0 = 300 * np.exp(-2 * t1w)  # the reverse of T1w, and no line
    image = t1w_like(Volume(b0, brain.affine), Volume(inside, brain.affine)).data
    assert (image[~inside] == 0).all()
    assert np.corrcoef(image[inside], t1w[inside])[0, 1] > 0.99


def test_cortex_on_the_border_and_in_grey_matter():
    tissue = np.zeros((40, 3, 3, 5), np.float32)
    tissue[:20, ..., 2] = 1
    tissue[20:, ..., 0] = 1
    labels = np.zeros((40, 3, 3), np.int16)
    labels[20:22] = 100
    right = cortical_fit(Volume(labels, np.eye(4)), tissue)
    assert right == {"CorticalROIsOnInterface": 1.0, "CorticalROIsInGrey": 1.0}
    wrong = cortical_fit(Volume(np.roll(labels, -8, axis=0), np.eye(4)), tissue)
    assert wrong == {"CorticalROIsOnInterface": 0.0, "CorticalROIsInGrey": 0.0}
    absent = cortical_fit(Volume(np.zeros_like(labels), np.eye(4)), tissue)
    assert set(absent.values()) == {None}


def test_what_is_poor_is_said():
    good = {"MutualInformation": 0.9, "MaskDice": 0.97, "CorticalROIsInGrey": None, "Folded": 0.0}
    assert weaknesses(good) == []
    poor = weaknesses(good | {"MutualInformation": 0.05, "MaskDice": 0.5, "Folded": 0.2})
    assert len(poor) == 3
    assert any("0.05" in words for words in poor)
