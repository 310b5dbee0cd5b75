"""Transforms: points go where ITK sends them, and images are interpolated as others do it."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from bsym_bids.dwi import transforms
from bsym_bids.dwi.transforms import (
    Affine,
    Displacement,
    Volume,
    bounds,
    coarsened,
    isotropic_box,
    load_volume,
    matrix_from_itk,
    read_template_transform,
    resample,
    save_volume,
    through,
    to_itk,
)
from bsym_bids.errors import BadDataError, InputMissingError

LPS = np.diag([-1.0, -1.0, 1.0])
TURN = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix()


def an_affine(zooms=(2.0, 3.0, 2.5), turn=TURN, origin=(-20.0, 10.0, 5.0)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array(zooms), origin
    return affine


def itk_affine(seed=0):
    rng = np.random.default_rng(seed)
    transform = sitk.AffineTransform(3)
    transform.SetCenter(tuple(rng.uniform(-20, 20, 3)))
    transform.SetMatrix(tuple((np.eye(3) + 0.1 * rng.standard_normal((3, 3))).ravel()))
    transform.SetTranslation(tuple(rng.uniform(-10, 10, 3)))
    return transform


def itk_rigid():
    return sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.2, 0.3, (4.0, -5.0, 6.0))


def itk_field(seed=0, turn=TURN):
    """A field on a small slanted grid around the origin."""
    vectors = np.random.default_rng(seed).uniform(-5, 5, (9, 8, 7, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((5.0, 6.0, 7.0))
    image.SetOrigin((-18.0, -20.0, -25.0))
    image.SetDirection(turn.ravel().tolist())
    return sitk.DisplacementFieldTransform(image)


def composite(*parts):
    """Parts in the order in which ANTs puts them: the last one is applied first."""
    whole = sitk.CompositeTransform(3)
    for part in parts:
        whole.AddTransform(part)
    return whole


def some_points(count=4000, reach=60.0):
    return np.random.default_rng(1).uniform(-reach, reach, (count, 3))


def by_itk(transform, points):
    return np.array([transform.TransformPoint(tuple(LPS @ p)) for p in points]) @ LPS


@pytest.mark.parametrize(
    "parts",
    [
        lambda: (itk_field(), itk_affine()),
        lambda: (itk_affine(), itk_field()),
        lambda: (itk_field(1), itk_affine(), itk_field(2)),
        lambda: (itk_field(), itk_rigid()),
        lambda: (itk_affine(),),
        lambda: (itk_affine(1), itk_affine(2)),
    ],
    ids=["ANTs", "reversed", "two fields", "rigid", "one", "two"],
)
def test_a_composite_sends_points_where_itk_sends_them(tmp_path, parts):
    whole = composite(*parts())
    path = tmp_path / "from-A_to-B_mode-image_xfm.h5"
    sitk.WriteTransform(whole, str(path))
    points = some_points()
    expected = by_itk(whole, points)
    assert np.linalg.norm(expected - points, axis=1).max() > 5
    found = through(read_template_transform(path), points)
    assert np.abs(found - expected).max() < 1e-3


def test_at_the_edge_of_a_field_the_outermost_values_hold_for_half_a_voxel():
    field = np.full((3, 3, 3, 3), 2.0, dtype=np.float32)
    displacement = Displacement(field, np.diag([10.0, 10.0, 10.0, 1.0]))
    x = np.array([-5.1, -4.9, 0.0, 20.0, 24.9, 25.1])
    moved = displacement(np.column_stack([x, np.full(6, 10.0), np.full(6, 10.0)]))
    assert (moved[:, 0] - x).tolist() == pytest.approx([0, 2, 2, 2, 2, 0])


def test_a_displacement_leaves_its_argument_alone():
    points = some_points(10)
    kept = points.copy()
    Displacement(np.ones((40, 40, 40, 3), np.float32), an_affine())(points)
    assert (points == kept).all()


@given(st.integers(0, 10_000))
def test_affine_maps_compose_as_matrices_do(seed):
    rng = np.random.default_rng(seed)
    one, two = (np.vstack([rng.standard_normal((3, 4)), [0, 0, 0, 1]]) for _ in range(2))
    points = rng.standard_normal((5, 3))
    together = Affine(two @ one)(points)
    assert np.allclose(through([Affine(one), Affine(two)], points), together)


def test_a_linear_transform_of_itk_becomes_the_same_matrix():
    transform = itk_rigid()
    points = some_points(20)
    assert np.allclose(Affine(matrix_from_itk(transform))(points), by_itk(transform, points))


def test_the_jacobian_of_a_linear_field_is_its_determinant_and_negative_where_it_folds():
    affine = an_affine()
    inside = np.stack(np.indices((6, 7, 8)), -1).reshape(-1, 3) @ affine[:3, :3].T
    stretch = np.array([[0.1, 0.2, 0], [0, -0.3, 0.1], [0.05, 0, 0.2]])
    field = (inside @ stretch.T).reshape(6, 7, 8, 3)
    jacobian = Displacement(field.astype(np.float32), affine).jacobian()
    assert np.allclose(jacobian, np.linalg.det(np.eye(3) + stretch), atol=1e-4)
    folded = (inside * [-2.0, 0, 0]).reshape(6, 7, 8, 3)
    assert (Displacement(folded.astype(np.float32), affine).jacobian() < 0).all()


class TestReading:
    def test_an_absent_file(self, tmp_path):
        with pytest.raises(InputMissingError, match=r"gone\.h5: no such file"):
            read_template_transform(tmp_path / "gone.h5")

    def test_a_link_that_leads_nowhere(self, tmp_path):
        (tmp_path / "x.h5").symlink_to(tmp_path / "annex")
        with pytest.raises(InputMissingError) as caught:
            read_template_transform(tmp_path / "x.h5")
        assert "datalad get x.h5" in caught.value.hint

    def test_a_link_to_a_file_without_extension(self, tmp_path):
        sitk.WriteTransform(composite(itk_affine()), str(tmp_path / "a.h5"))
        (tmp_path / "a.h5").rename(tmp_path / "MD5E-s1--abc")
        (tmp_path / "x.h5").symlink_to(tmp_path / "MD5E-s1--abc")
        assert len(read_template_transform(tmp_path / "x.h5")) == 1

    @pytest.mark.parametrize("content", [b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(99)])
    def test_what_is_no_transform(self, tmp_path, content):
        path = tmp_path / "x.h5"
        path.write_bytes(content)
        with pytest.raises(BadDataError, match=r"x\.h5: cannot be read as a composite"):
            read_template_transform(path)

    def test_half_a_file(self, tmp_path):
        path = tmp_path / "x.h5"
        sitk.WriteTransform(composite(itk_field(), itk_affine()), str(path))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(BadDataError, match=r"x\.h5: cannot be read as a composite"):
            read_template_transform(path)

    def test_numbers_that_are_none(self, tmp_path):
        field = itk_field()
        image = field.GetDisplacementField()
        image[3, 3, 3] = (np.nan, 0.0, 0.0)
        path = tmp_path / "x.h5"
        sitk.WriteTransform(composite(sitk.DisplacementFieldTransform(image)), str(path))
        with pytest.raises(BadDataError, match="not finite"):
            read_template_transform(path)

    def test_two_dimensions(self, tmp_path):
        path = tmp_path / "x.h5"
        flat = sitk.CompositeTransform(2)
        flat.AddTransform(sitk.Euler2DTransform())
        sitk.WriteTransform(flat, str(path))
        with pytest.raises(BadDataError, match=r"x\.h5"):
            read_template_transform(path)

    def test_a_kind_that_is_not_supported(self, tmp_path):
        path = tmp_path / "x.h5"
        spline = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), (2, 2, 2))
        sitk.WriteTransform(composite(spline), str(path))
        with pytest.raises(BadDataError, match=r"x\.h5"):
            read_template_transform(path)


class TestResampling:
    source = Volume(
        np.random.default_rng(2).integers(1, 1000, (14, 12, 10)).astype(np.int16), an_affine()
    )
    wanted = (13, 15, 11), an_affine((2.2, 2.1, 2.7), TURN.T, (-22.0, 12.0, 2.0))

    @pytest.mark.parametrize("order", [0, 1])
    def test_as_nibabel_does_it(self, order):
        image = nib.Nifti1Image(self.source.data.astype(np.float64), self.source.affine)
        expected = resample_from_to(image, self.wanted, order=order).get_fdata()
        found = resample(self.source, *self.wanted, order=order)
        assert (expected > 0).sum() > 50
        # Nibabel ends at the centres of the outermost voxels, we at their edges.
        inner = expected > 0
        assert np.abs(found.data[inner] - expected[inner]).max() < 1e-2

    @pytest.mark.parametrize(
        ("order", "kind"), [(0, sitk.sitkNearestNeighbor), (1, sitk.sitkLinear)]
    )
    def test_as_itk_does_it_through_a_chain(self, tmp_path, order, kind):
        whole = composite(itk_field(), itk_affine())
        sitk.WriteTransform(whole, str(tmp_path / "x.h5"))
        chain = read_template_transform(tmp_path / "x.h5")
        reference = to_itk(np.zeros(self.wanted[0], np.float32), self.wanted[1])
        itk = sitk.Resample(
            to_itk(self.source.data, self.source.affine), reference, whole, kind, 0.0
        )
        expected = sitk.GetArrayFromImage(itk).T
        found = resample(self.source, *self.wanted, chain, order=order).data
        assert (expected > 0).sum() > 50
        # Where a point falls on the border of two voxels, rounding decides.
        assert (np.abs(found - expected) < 0.5).mean() > 0.999

    def test_nearest_neighbours_keep_the_type_and_invent_nothing(self):
        found = resample(self.source, *self.wanted, order=0)
        assert found.data.dtype == np.int16
        assert set(np.unique(found.data)) <= {0, *np.unique(self.source.data)}

    @pytest.mark.parametrize("order", [0, 1])
    def test_onto_itself_nothing_changes(self, order):
        found = resample(self.source, self.source.data.shape, self.source.affine, order=order)
        assert np.allclose(found.data, self.source.data, atol=1e-2)

    def test_the_size_of_slabs_changes_nothing(self, monkeypatch):
        whole = resample(self.source, *self.wanted).data
        monkeypatch.setattr(transforms, "_SLAB_POINTS", 200)
        assert (resample(self.source, *self.wanted).data == whole).all()

    def test_coarser_images_keep_what_is_constant_and_do_not_alias(self):
        rng = np.random.default_rng(3)
        fine = Volume(100 + rng.standard_normal((40, 40, 40)).astype(np.float32), np.eye(4))
        grid = (8, 8, 8), np.array([[4, 0, 0, 6], [0, 4, 0, 6], [0, 0, 4, 6], [0, 0, 0, 1.0]])
        found = coarsened(fine, *grid, 4.0).data
        assert found.mean() == pytest.approx(100, abs=0.2)
        assert found.std() < 0.3


class TestBoxes:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10_000))
    def test_a_box_holds_the_region_with_its_margin(self, seed):
        rng = np.random.default_rng(seed)
        inside = np.zeros((9, 8, 7), dtype=bool)
        inside[tuple(rng.integers(0, n, 5) for n in inside.shape)] = True
        turn = Rotation.random(random_state=seed).as_matrix()
        volume = Volume(inside, an_affine(rng.uniform(1, 4, 3), turn))
        shape, affine = isotropic_box(volume, inside, 2.0, 6.0)
        world = Affine(volume.affine)(np.argwhere(inside).astype(float))
        index = Affine(np.linalg.inv(affine))(world)
        assert (index >= 3 - 1e-9).all()
        assert (index <= np.array(shape) - 1 - 3 + 1e-9).all()
        assert np.allclose(affine[:3, :3], 2 * np.eye(3))

    def test_bounds(self):
        inside = np.zeros((5, 6, 7), dtype=bool)
        inside[1, 2, 3] = inside[3, 2, 6] = True
        low, high = bounds(inside)
        assert low.tolist() == [1, 2, 3]
        assert high.tolist() == [3, 2, 6]


class TestFiles:
    def test_what_is_written_is_read_again_with_both_codes(self, tmp_path):
        volume = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), an_affine())
        path = save_volume(volume, tmp_path / "a.nii")
        again = load_volume(tmp_path / "a.nii")
        assert (again.data == volume.data).all()
        assert np.allclose(again.affine, volume.affine, atol=1e-5)
        header = nib.load(path).header
        assert np.allclose(header.get_qform(), header.get_sform(), atol=1e-4)
        assert header["sform_code"] == header["qform_code"] == 2

    def test_a_fourth_axis_of_one_is_dropped(self, tmp_path):
        nib.save(nib.Nifti1Image(np.ones((2, 3, 4, 1), np.uint8), np.eye(4)), tmp_path / "a.nii")
        assert load_volume(tmp_path / "a.nii").data.shape == (2, 3, 4)

    @pytest.mark.parametrize(
        ("data", "affine", "match"),
        [
            (np.ones((2, 3, 4, 5), np.uint8), np.eye(4), "one volume of three dimensions"),
            (np.ones((2, 3), np.uint8), np.eye(4), "one volume of three dimensions"),
            (np.ones((2, 3, 4), np.complex64), np.eye(4), "complex"),
            (np.ones((2, 3, 4), np.uint8), np.diag([1, 1, 0, 1.0]), "no inverse"),
        ],
    )
    def test_what_is_no_volume(self, tmp_path, data, affine, match):
        image = nib.Nifti1Image(data, np.eye(4))
        image.header.set_qform(np.eye(4), code=0)
        image.header.set_sform(affine, code=2)
        image.to_filename(tmp_path / "a.nii")
        raw = bytearray((tmp_path / "a.nii").read_bytes())
        raw[280:328] = affine[:3].astype("<f4").tobytes()  # nibabel mends it when it writes
        (tmp_path / "a.nii").write_bytes(raw)
        with pytest.raises(BadDataError, match=match) as caught:
            load_volume(tmp_path / "a.nii")
        assert "a.nii" in str(caught.value)
        assert caught.value.hint

    def test_a_truncated_file(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        data = np.random.default_rng(0).standard_normal((20, 20, 20))
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(BadDataError, match=r"a\.nii\.gz: cannot be read"):
            load_volume(path)
