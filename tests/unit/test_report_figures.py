"""Figures of participants' reports: what they show, of whole, partial and absent data."""

import re
from base64 import b64decode
from io import BytesIO
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy.ndimage import label

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.reports import brain_map, networks, run_figures, slices
from bsym_bids.reports.parts import Figures, plural
from bsym_bids.reports.run_section import incoming_attention
from bsym_bids.reports.scan_section import degree
from bsym_bids.reports.style import inline_svg

N = atlas.N_ROIS
RNG = np.random.default_rng(0)


def svg_of(draw, size=(6, 4)):
    return inline_svg(draw, size, name="x", label="a & b")


def images_in(svg):
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", svg)
    return [Picture.open(BytesIO(b64decode(one))) for one in found]


# --- the brain -----------------------------------------------------------------------------------


def test_every_roi_is_seen_in_some_view():
    seen = np.unique(np.concatenate([view.ravel() for view in brain_map.views().values()]))
    assert set(range(1, N + 1)) <= set(seen.tolist()) <= set(range(-1, N + 1))


def test_views_show_the_hemisphere_they_name():
    sides = {roi.index: roi.hemisphere for roi in atlas.rois()}
    for name, view in brain_map.views().items():
        if name.startswith(("left", "right")):
            found = {sides[index] for index in np.unique(view).tolist() if index > 0}
            assert found == {"L" if name.startswith("left") else "R"}
    for name, view in brain_map.views().items():
        if name.startswith("axial"):
            columns = np.arange(view.shape[1])
            middle = {
                side: np.mean([columns[(view == i).any(axis=0)].mean() for i in here])
                for side in "LR"
                if (here := [i for i in np.unique(view).tolist() if i > 0 and sides[i] == side])
            }
            assert middle["L"] < middle["R"], name


def test_front_of_the_brain_is_where_titles_say():
    """Visual cortex is at the back: right of what is seen from the left, and so on."""
    names = atlas.networks()
    for name, back_is_right in (("left_lateral", True), ("right_lateral", False)):
        view = brain_map.views()[name]
        visual = np.isin(view, [i + 1 for i in range(N) if names[i] == "Vis"])
        centre = np.argwhere(visual)[:, 1].mean() / view.shape[1]
        assert (centre > 0.7) if back_is_right else (centre < 0.3)


def test_colours_are_those_of_the_values():
    from matplotlib import colormaps

    values = np.linspace(0, 1, N)
    values[7] = np.nan
    scale = brain_map.Scale(0, 1, "viridis", "x")
    table = brain_map.colour_table(values, scale, colormaps["viridis"])
    assert table.shape == (N + 2, 4)
    np.testing.assert_allclose(table[N], colormaps["viridis"](1.0), atol=1e-6)
    np.testing.assert_allclose(table[1], colormaps["viridis"](0.0), atol=1e-6)
    assert table[-1, 3] == 0  # outside
    assert len({tuple(row) for row in table[:, :3].round(6).tolist()}) <= 67
    assert not np.allclose(table[8, :3], table[7, :3], atol=0.05)


@pytest.mark.parametrize("values", [np.full(N, np.nan), np.zeros(N), RNG.normal(size=N)])
def test_brain_is_drawn_of_any_values(values):
    scale = brain_map.Scale.from_zero(values, "share of $voxels$ & <b>")
    svg = svg_of(lambda figure: brain_map.draw_brain(figure, values, scale), brain_map.SIZE)
    assert "share of $voxels$ &amp; &lt;b&gt;" in svg
    assert ("grey: n/a" in svg) == bool(np.isnan(values).any())
    assert len(svg) < 150_000


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_on_the_scale_and_differ_as_they_are_written(low, width):
    scale = brain_map.Scale(low, low + width, "viridis", "x")
    if scale.high == scale.low or width < 1e-6 * abs(low):
        return
    written = scale.tick_labels
    assert len(set(written)) == len(written) >= 1
    assert all(low - 1e-6 * width <= tick <= low + 1.000001 * width for tick in scale.ticks)


# --- slices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn", [np.diag([2, 2, 2]), np.diag([-3, 2, 1]), 2 * np.eye(3)[[2, 0, 1]]]
)
def test_points_in_mm_have_the_value_that_lies_there(turn):
    """However voxels lie, a sampled plane shows x, y and z of the world."""
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = -turn @ np.full(3, 15)
    voxels = np.stack(np.meshgrid(*[np.arange(31)] * 3, indexing="ij"), axis=-1)
    world = (voxels @ turn.T + affine[:3, 3]).astype(np.float32)
    points = np.stack(
        [np.full((3, 4), 1.5), np.full((3, 4), -2.0), np.tile(np.arange(4.0), (3, 1))]
    )
    for axis in range(3):
        found = slices.sampled(slices.Image(world[..., axis], affine), points, order=1)
        np.testing.assert_allclose(found, points[axis], atol=1e-3)
    colours = slices.sampled(slices.Image(world, affine), points, order=1)
    np.testing.assert_allclose(np.moveaxis(colours, -1, 0), points, atol=1e-3)
    far = slices.sampled(slices.Image(world[..., 0], affine), points + 1000, order=1)
    assert not far.any()


def test_slices_show_image_and_borders():
    from matplotlib.colors import to_rgb

    values = np.zeros((40, 40, 40), np.float32)
    values[10:30, 10:30, 10:30] = 100
    affine = np.diag([2.0, 2, 2, 1])
    image = slices.Image(values, affine)
    border = slices.Border(slices.Image((values > 0).astype(np.uint8), affine), "#E69F00")
    svg = svg_of(
        lambda figure: slices.draw_slices(figure, image, around=image, borders=[border]),
        slices.SIZE,
    )
    (picture,) = images_in(svg)
    assert svg.count("mm</text>") == 21
    orange = (np.array(to_rgb("#E69F00")) * 255).round()
    pixels = np.asarray(picture.convert("RGBA"))
    pieces, count = label(pixels[..., 3] > 0)
    assert count == 21
    for number in range(1, 22):
        shown = {tuple(colour) for colour in pixels[pieces == number][:, :3].tolist()}
        assert any(np.abs(np.array(colour) - orange).max() <= 2 for colour in shown)
        assert (0, 0, 0) in shown and (255, 255, 255) in shown


@pytest.mark.parametrize(
    "values", [np.zeros((5, 6, 7)), np.full((5, 6, 7), np.nan), np.ones((5, 6, 7))]
)
def test_slices_of_odd_images_are_drawn(values):
    image = slices.Image(values, np.eye(4))
    svg = svg_of(lambda figure: slices.draw_slices(figure, image, around=image), slices.SIZE)
    assert svg.count("<image") == 1 and svg.count("mm</text>") == 21


def test_damaged_image_is_explained(tmp_path):
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(RNG.normal(size=(20, 20, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BadDataError, match=r"x\.nii\.gz"):
        slices.read_image(path)
    path.write_bytes(b"no image")
    with pytest.raises(BadDataError, match=r"x\.nii\.gz"):
        slices.read_image(path)


# --- series and matrices -------------------------------------------------------------------------


def motion_of(n, censored=()):
    mask = np.zeros(n, bool)
    mask[list(censored)] = True
    return run_figures.Motion(np.abs(RNG.normal(size=n)), 0.5 if len(censored) else 0.0, mask)


@pytest.mark.parametrize("n", [1, 2, 60, 1300])
def test_carpet_of_any_length(n):
    raw = RNG.normal(size=(n, N)) + 100
    raw[:, :5] = np.nan
    cleaned = raw - 100
    if n > 50:
        cleaned[20:25] = np.nan
    motion = motion_of(n, range(20, 25) if n > 50 else ())
    svg = svg_of(
        lambda figure: run_figures.draw_carpet(figure, raw, cleaned, motion, 2.0),
        run_figures.CARPET_SIZE,
    )
    for text in ("FD (mm)", "DVARS", "time (min)", *networks.NAMES):
        assert text in svg
    assert len(svg) < 900_000


def test_carpet_without_displacement_says_so():
    raw = RNG.normal(size=(30, N))
    motion = run_figures.Motion(np.full(30, np.nan), 0.0, np.zeros(30, bool))
    svg = svg_of(lambda figure: run_figures.draw_carpet(figure, raw, raw, motion, 1.0))
    assert "not known" in svg


def test_dvars_is_that_of_power():
    series = RNG.normal(size=(40, N))
    expected = [np.sqrt(np.mean((b - a) ** 2)) for a, b in pairwise(series)]
    found = run_figures.relative_dvars(series)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected / np.median(expected))
    series[10] = np.nan  # censored
    found = run_figures.relative_dvars(series)
    assert np.isnan(found[[0, 10, 11]]).all() and np.isfinite(found[12:]).all()
    assert np.isnan(run_figures.relative_dvars(np.full((5, N), np.nan))).all()


def test_order_keeps_networks_together_and_left_first():
    order = networks.order()
    assert sorted(order.tolist()) == list(range(N))
    rois = [atlas.rois()[index] for index in order]
    assert list(dict.fromkeys(roi.network for roi in rois)) == list(networks.NAMES)
    for name, size in networks.sizes().items():
        sides = [roi.hemisphere for roi in rois if roi.network == name]
        assert len(sides) == size and sides == sorted(sides)


def test_network_means_leave_the_diagonal_out():
    matrix = np.full((N, N), 0.2)
    inside = networks.members("Vis")
    matrix[np.ix_(inside, inside)] = 0.6
    np.fill_diagonal(matrix, 100)
    matrix[:, 60] = matrix[60] = np.nan
    means = run_figures.network_means(matrix)
    assert means[0, 0] == pytest.approx(0.6)
    assert means[0, 1:] == pytest.approx(0.2)
    subcortex = networks.members("Subcortex")
    matrix[np.ix_(subcortex, subcortex)] = np.nan
    assert np.isnan(run_figures.network_means(matrix)[-1, -1])


@pytest.mark.parametrize("matrix", [np.full((N, N), np.nan), np.eye(N), RNG.normal(size=(N, N))])
def test_matrices_of_any_values_are_drawn(matrix):
    svg = svg_of(
        lambda figure: run_figures.draw_matrix(
            figure, matrix, limits=(-1, 1), colours="RdBu_r", label="r"
        ),
        run_figures.MATRIX_SIZE,
    )
    assert images_in(svg)[0].size == (N, N)


def test_images_fill_their_axes():
    """What is drawn over an image lies where it belongs, at any scale."""

    def draw(figure):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.eye(777), aspect="auto", interpolation="none")
        axes.set_axis_off()

    svg = svg_of(draw, (5.43, 3.21))
    (tag,) = re.findall(r"<image[^>]*>", svg)
    scale = re.search(r'transform="matrix\(([\d.]+) 0 0 ([\d.]+)|scale\(([\d.]+)[ ,]+([\d.]+)', tag)
    factors = [float(found) for found in scale.groups() if found]
    width, height = (
        float(re.search(rf' {side}="([\d.]+)"', tag)[1]) for side in ("width", "height")
    )
    assert width * factors[0] == pytest.approx(5.43 * 72, abs=0.2), tag[-300:]
    assert height * factors[1] == pytest.approx(3.21 * 72, abs=0.2), tag[-300:]


@pytest.mark.parametrize("coarseness", [1, 2, 3])
def test_coarser_images_are_smaller_and_show_the_same(coarseness):
    matrix = np.corrcoef(RNG.normal(size=(N, 100)))

    def draw(figure):
        run_figures.draw_matrix(figure, matrix, limits=(-1, 1), colours="RdBu_r", label="r")

    full = images_in(svg_of(draw))[0].convert("RGB")
    svg = inline_svg(draw, (6, 4), name="x", label="a", coarseness=coarseness)
    image = images_in(svg)[0].convert("RGB")
    np.testing.assert_array_equal(image, np.asarray(full)[::coarseness, ::coarseness])


def test_ink_on_images_is_the_same_in_light_and_dark():
    """What stands on a fixed ground must not follow the reader's colours."""
    matrix = RNG.normal(size=(N, N))
    svg = svg_of(lambda figure: run_figures.draw_network_means(figure, matrix, "r"), (5, 4))
    cells = re.findall(r"<text[^>]*>[\d\u2212.]+</text>", svg)
    inks = {ink for cell in cells for ink in re.findall(r"fill: ([^;\"]+)", cell)}
    assert {"#010101", "#fefefe"} & inks
    image = slices.Image(np.ones((9, 9, 9)), np.eye(4))
    svg = svg_of(lambda figure: slices.draw_slices(figure, image, around=image), slices.SIZE)
    letters = re.findall(r"<text[^>]*>L</text>", svg)
    assert len(letters) == 2 and all("#fefefe" in letter for letter in letters)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_strongest_pairs_are_the_largest_off_the_diagonal(seed, count):
    matrix = np.random.default_rng(seed).uniform(size=(12, 12))
    matrix[3] = matrix[:, 3] = np.nan
    pairs = run_figures.strongest_pairs(matrix, count)
    values = [matrix[row, column] for row, column, _ in pairs]
    assert [value for *_, value in pairs] == values == sorted(values, reverse=True)
    others = matrix[~np.eye(12, dtype=bool) & np.isfinite(matrix)]
    assert values == sorted(others, reverse=True)[:count]
    assert all(row != column for row, column, _ in pairs)


def test_incoming_attention_is_relative_to_an_even_share():
    matrix = np.full((N, N), 0.001)
    np.fill_diagonal(matrix, 0.5)
    incoming, own = incoming_attention(matrix)
    np.testing.assert_allclose(incoming, 1)
    assert own == pytest.approx(0.5 / (0.5 + 0.001 * (N - 1)))
    matrix[:, 4] += 0.001 * (np.arange(N) != 4)
    matrix[9] = matrix[:, 9] = np.nan
    incoming, _ = incoming_attention(matrix)
    assert np.nanargmax(incoming) == 4 and incoming[4] == pytest.approx(2, rel=0.01)
    assert np.isnan(incoming[9]) and np.nanmean(incoming) == pytest.approx(1)
    empty, own = incoming_attention(np.full((N, N), np.nan))
    assert np.isnan(empty).all() and np.isnan(own)


@pytest.mark.parametrize("matrix", [np.full((N, N), np.nan), np.eye(N), RNG.uniform(size=(N, N))])
def test_chords_are_drawn_of_any_attention(matrix):
    svg = svg_of(lambda figure: run_figures.draw_chords(figure, matrix, 10))
    for name in networks.NAMES:
        assert name in svg


def test_degree_counts_others_only():
    counts = np.zeros((N, N))
    counts[0, 1] = counts[1, 0] = 5
    counts[0, 2] = counts[2, 0] = 1
    np.fill_diagonal(counts, 9)
    counts[7] = counts[:, 7] = np.nan
    found = degree(counts)
    assert found[:4].tolist() == [2, 1, 1, 0]
    assert np.isnan(found[7])


def test_values_by_network_are_drawn_where_there_are_some():
    values = RNG.normal(size=N)
    values[networks.members("Limbic")] = np.nan
    kinds = {"model": values, "control": np.full(N, np.nan)}
    svg = svg_of(lambda figure: run_figures.draw_by_network(figure, kinds, "R2"))
    assert "Limbic" in svg and "R2" in svg


# --- parts ---------------------------------------------------------------------------------------


def test_images_in_figures_are_the_same_with_a_palette():
    table = RNG.uniform(size=(30, 4))
    table[:, 3] = 1
    picture = table[RNG.integers(30, size=(40, 50))]

    def draw(figure):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture, interpolation="none")
        axes.set_axis_off()

    (image,) = images_in(svg_of(draw))
    assert image.mode == "P"
    found = np.asarray(image.convert("RGBA")) / 255
    np.testing.assert_allclose(found, picture[::1], atol=1 / 255)


def test_figures_are_the_same_each_time():
    values = RNG.uniform(size=N)
    scale = brain_map.Scale.from_zero(values, "x")
    once, again = (svg_of(lambda f: brain_map.draw_brain(f, values, scale)) for _ in range(2))
    assert once == again


def test_a_figure_that_cannot_be_made_says_why():
    def draw(figure):
        raise BadDataError("x.tsv: is damaged")

    chart = Figures("a").chart(draw, (3, 3), "Coverage", "How to read it")
    assert not chart.svg
    assert "Coverage" in chart.caption and "x.tsv: is damaged" in chart.caption


def test_labels_of_figures_are_escaped_and_named_apart():
    figures = Figures("a")
    draw = lambda figure: figure.subplots().plot([1, 2])  # noqa: E731
    one, two = (figures.chart(draw, (3, 3), 'a "quote" <b>', "c") for _ in range(2))
    assert 'aria-label="a &quot;quote&quot; &lt;b&gt;"' in one.svg
    ids = [re.findall(r' id="([^"]*)"', chart.svg) for chart in (one, two)]
    assert not set(ids[0]) & set(ids[1])


@pytest.mark.parametrize(("count", "said"), [(0, "0 runs"), (1, "1 run"), (1200, "1,200 runs")])
def test_nouns_follow_their_numbers(count, said):
    assert plural(count, "run") == said
