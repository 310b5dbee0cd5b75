"""Draw the atlas onto the cortex, once for all: bsym_bids/data/brain/views.npz.

    pip download --no-deps brainspace==0.3.0 && unzip -d brainspace brainspace-*.whl
    python scripts/make_brain_views.py brainspace/brainspace/datasets/surfaces

Each view is an image of ROI indices, so that a map of any values is a look-up. Surfaces are those
of Conte69 (Van Essen et al. 2012, doi:10.1093/cercor/bhr291) as BrainSpace has them (Vos de Wael et
al. 2020, doi:10.1038/s42003-020-0794-7), smoothed until sulci open; ROIs are those of the packaged
dlabel on the same vertices, and of the packaged volume for subcortical slices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, diags

from bsym_bids import atlas

OUT = Path(__file__).parents[1] / "bsym_bids" / "data" / "brain" / "views.npz"
MM_PER_PIXEL = 0.5
SMOOTHINGS = 150
N_SUBCORTICAL = 50
SLICES = 5
OUTSIDE = -1


def main() -> None:
    """Write the views."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("surfaces", type=Path, help="folder with conte69_32k_lh.gii and _rh.gii")
    folder = parser.parse_args().surfaces
    views = {}
    for side, name, structure in (
        ("left", "lh", "CIFTI_STRUCTURE_CORTEX_LEFT"),
        ("right", "rh", "CIFTI_STRUCTURE_CORTEX_RIGHT"),
    ):
        surface = nib.load(folder / f"conte69_32k_{name}.gii")
        points, faces = (array.data for array in surface.darrays)
        labels = labels_on(structure, len(points))
        points = opened(points.astype(float), faces)
        for aspect in ("lateral", "medial"):
            from_left = (side == "left") == (aspect == "lateral")
            views[f"{side}_{aspect}"] = view(points, faces, labels, from_left)
    views |= subcortical_slices()
    np.savez_compressed(OUT, **views)
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB, {', '.join(views)}")
    seen = np.unique(np.concatenate([v.ravel() for v in views.values()]))
    print("ROIs in no view:", sorted(set(range(1, atlas.N_ROIS + 1)) - set(seen.tolist())))


def labels_on(structure: str, n_vertices: int) -> NDArray[np.int16]:
    """Return the ROI of each vertex, 0 for none, of the packaged dlabel."""
    image = nib.load(atlas.dlabel_path())
    values = np.asarray(image.dataobj).ravel()
    labels = np.zeros(n_vertices, np.int16)
    for name, part, model in image.header.get_axis(1).iter_structures():
        if name == structure:
            labels[model.vertex] = values[part]
    return labels


def opened(points: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the surface after smoothing, at its old size."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ones = np.ones(len(ends))
    near = coo_matrix((ones, ends.T), shape=(len(points), len(points)))
    near = ((near + near.T) > 0).astype(float)
    mean = diags(1 / near.sum(axis=1).A1) @ near
    smooth = points
    for _ in range(SMOOTHINGS):
        smooth = 0.5 * smooth + 0.5 * (mean @ smooth)
    centre = smooth.mean(axis=0)
    return (smooth - centre) * np.ptp(points, axis=0) / np.ptp(smooth, axis=0)


def view(
    points: NDArray[np.float64],
    faces: NDArray[np.int32],
    labels: NDArray[np.int16],
    from_left: bool,
) -> NDArray[np.int16]:
    """Return the ROI at each pixel, seen along x; front to the left when seen from the left."""
    n = 14
    a, b = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    inside = a + b <= n
    weights = np.stack([a[inside], b[inside], n - a[inside] - b[inside]], axis=1) / n
    corners = points[faces]
    nearest = weights.argmax(axis=1)
    depth = np.concatenate([corners[:, :, 0] @ w for w in weights]) * (1 if from_left else -1)
    across = np.concatenate([corners[:, :, 1] @ w for w in weights]) * (-1 if from_left else 1)
    up = np.concatenate([corners[:, :, 2] @ w for w in weights])
    found = np.concatenate([labels[faces[:, corner]] for corner in nearest])
    column = np.rint((across - across.min()) / MM_PER_PIXEL).astype(int) + 1
    row = np.rint((up.max() - up) / MM_PER_PIXEL).astype(int) + 1
    image = np.full((row.max() + 2, column.max() + 2), OUTSIDE, np.int16)
    order = np.argsort(-depth)  # the nearest are written last
    image[row[order], column[order]] = found[order]
    return image


def subcortical_slices() -> dict[str, NDArray[np.int16]]:
    """Return axial slices that show as much of all subcortical ROIs as so few can, front up."""
    image = nib.load(atlas.volume_path("MNI152NLin2009cAsym", 1))
    values = np.rint(np.asarray(image.dataobj)).astype(np.int16)
    values[values > N_SUBCORTICAL] = 0
    places = np.argwhere(values)
    low, high = places.min(axis=0) - 3, places.max(axis=0) + 4
    chosen: list[int] = []
    sizes = np.array(
        [np.bincount(plane.ravel(), minlength=N_SUBCORTICAL + 1)[1:] for plane in values.T]
    )
    seen = np.zeros(N_SUBCORTICAL)
    for _ in range(SLICES):
        gain = (np.minimum(np.maximum(sizes, seen), 60) - np.minimum(seen, 60)).sum(axis=1)
        chosen.append(int(gain.argmax()))
        seen = np.maximum(seen, sizes[chosen[-1]])
    slices = {}
    for index in sorted(chosen):
        plane = values[low[0] : high[0], low[1] : high[1], index].T[::-1]
        z = round((image.affine @ [0, 0, index, 1])[2])
        plane = np.where(plane > 0, plane, OUTSIDE)
        slices[f"axial_{z}"] = np.kron(plane, np.ones((2, 2), np.int16)).astype(np.int16)
    return slices


if __name__ == "__main__":
    main()
