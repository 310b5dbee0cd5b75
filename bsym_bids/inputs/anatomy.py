"""What there is of a participant's anatomy, and what of it goes with a diffusion scan."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bsym_bids.inputs.datasets import files_of, is_qsiprep
from bsym_bids.inputs.files import entities_of, in_order, is_in_place, is_well_named
from bsym_bids.inputs.records import Anatomy, Derivatives, DwiScan, Skipped
from bsym_bids.inputs.selection import Selection, fits

#: The template whose atlas is carried into the participant's space.
TEMPLATE = "MNI152NLin2009cAsym"
_TISSUES = ("GM", "WM", "CSF")
#: How transforms name the space of a T1-weighted image. QSIPrep's ``anat`` is before its alignment.
_TARGETS = {"ACPC": ("ACPC",), None: ("T1w", "anat")}
_IMAGES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class T1w:
    """A T1-weighted image.

    Attributes
    ----------
    path : Path
        The file.
    dataset : Derivatives
        The dataset it is in.
    source : str
        ``fmriprep``, ``qsiprep`` or ``raw``.
    """

    path: Path
    dataset: Derivatives
    source: str

    @cached_property
    def entities(self) -> dict[str, str]:
        """All entities of its name in order."""
        return entities_of(self.path)


@dataclass
class Anatomies:
    """The T1-weighted images of a participant.

    Attributes
    ----------
    images : list of T1w
        Those that may be used.
    refused : list of Skipped
        Those that may not.
    used : dict of T1w to Anatomy
        Those that were chosen so far.
    """

    images: list[T1w]
    refused: list[Skipped] = field(default_factory=list)
    used: dict[T1w, Anatomy] = field(default_factory=dict)

    @classmethod
    def of(
        cls, label: str, raw: Derivatives, derivatives: Sequence[Derivatives], selection: Selection
    ) -> Anatomies:
        """Look for T1-weighted images in all datasets."""
        found = cls([])
        for dataset in derivatives:
            for path in _t1w_files(dataset, label):
                if is_preprocessed(path) and fits(path, selection.t1w_filters, stated_only=True):
                    source = "qsiprep" if _is_of_qsiprep(path, dataset) else "fmriprep"
                    found.images.append(T1w(path, dataset, source))
        for path in _t1w_files(raw, label):
            if not entities_of(path).keys() & {"desc", "space", "res"}:
                found._take_raw(T1w(path, raw, "raw"), selection)
        return found

    def _take_raw(self, image: T1w, selection: Selection) -> None:
        reason = ""
        if not is_well_named(image.path):
            reason = "its name is not one of BIDS"
        elif not fits(image.path, selection.t1w_filters):
            reason = "not selected by the t1w query of the filter file"
        elif image.entities.get("part", "mag") != "mag":
            reason = "only magnitude images are used"
        if reason:
            self.refused.append(Skipped(image.path, reason))
        else:
            self.images.append(image)

    def choose(self, scan: DwiScan) -> Anatomy | None:
        """Return the anatomy for a scan, or None when there is no T1-weighted image.

        Derivatives come before raw images. A preprocessed scan takes the anatomy of its own
        dataset, with which it is aligned; a raw one that of fMRIPrep before that of QSIPrep. Then
        the same session comes before none and before others, and names in order.
        """
        ranked = [(rank, image) for image in self.images if (rank := self._rank(image, scan))]
        if not ranked:
            return None
        image = min(ranked, key=lambda pair: pair[0])[1]
        if image not in self.used:
            self.used[image] = _complete(image)
        return self.used[image]

    def _rank(self, image: T1w, scan: DwiScan) -> tuple[object, ...] | None:
        """Return what sorts images by how well they suit a scan; None for what must not be used."""
        session, wanted = image.entities.get("ses"), scan.entities.get("ses")
        nearness = 0 if session == wanted else 1 if session is None else 2
        source = ("fmriprep", "qsiprep", "raw").index(image.source)
        if scan.is_preprocessed and image.dataset == scan.dataset:
            if image.source != "qsiprep" or (nearness == 2 and self._has_several(image)):
                return None  # not what the scan was aligned with
            source = -1
        same_space = image.entities.get("space") == ("ACPC" if scan.space == "ACPC" else None)
        return source, not same_space, nearness, in_order(image.path)

    def _has_several(self, image: T1w) -> bool:
        return sum(other.dataset == image.dataset for other in self.images) > 1

    def left_out(self) -> list[Skipped]:
        """Say why images of the kinds in use are not used, and transforms of other templates."""
        if not self.used:
            return self.refused
        names = " and ".join(sorted(image.path.name for image in self.used))
        raw_is_used = any(image.source == "raw" for image in self.used)
        others = [
            Skipped(image.path, f"the anatomy is taken from {names}")
            for image in self.images
            if image not in self.used and (image.source != "raw" or raw_is_used)
        ]
        transforms = [
            Skipped(path, f"a transform of another template than {TEMPLATE}")
            for image, anatomy in self.used.items()
            if anatomy.template_to_t1w is None
            for path in _transforms(image, "*")
        ]
        return [*(self.refused if raw_is_used else ()), *others, *transforms]


def is_preprocessed(path: Path) -> bool:
    """Tell whether a T1-weighted image is what fMRIPrep or QSIPrep made in the person's space."""
    entities = entities_of(path)
    return entities.get("desc") == "preproc" and entities.get("space") in _TARGETS


def _is_of_qsiprep(path: Path, dataset: Derivatives) -> bool:
    return entities_of(path).get("space") == "ACPC" or is_qsiprep(dataset)


def _t1w_files(dataset: Derivatives, label: str) -> list[Path]:
    """Return the T1-weighted images of a participant that are where they belong, in order."""
    return sorted(
        (
            path
            for path in files_of(dataset, label, "anat", "_T1w.nii")
            if path.name.endswith(_IMAGES) and is_in_place(path, dataset.root, "anat")
        ),
        key=in_order,
    )


def _complete(image: T1w) -> Anatomy:
    """Return an image with what has been derived from it."""
    if image.source == "raw":
        return Anatomy("raw", image.path, image.dataset)
    tissues = {tissue: _beside(image, f"label-{tissue}_probseg") for tissue in _TISSUES}
    found = {tissue: path for tissue, path in tissues.items() if path is not None}
    return Anatomy(
        source=image.source,
        t1w=image.path,
        dataset=image.dataset,
        mask=_beside(image, "desc-brain_mask"),
        probseg=found if len(found) == len(_TISSUES) else {},
        # QSIPrep's has other numbers, which changed with its versions: 1 CSF, 2 GM, 3 WM at last.
        dseg=_beside(image, "dseg") if image.source == "fmriprep" else None,
        # QSIPrep has the one without parcels of the cortex.
        aparcaseg=_beside(image, "desc-aparcaseg_dseg") or _beside(image, "desc-aseg_dseg"),
        template_to_t1w=next(_transforms(image, TEMPLATE), None),
    )


def _beside(image: T1w, tail: str) -> Path | None:
    """Return an image on the same grid by the end of its name."""
    own = {key: value for key, value in image.entities.items() if key != "desc"}
    return next((path for kind in _IMAGES for path in _named(image, own, f"{tail}{kind}")), None)


def _transforms(image: T1w, template: str) -> Iterator[Path]:
    """Yield the transforms of a template (``*`` for any) into the space of an image."""
    # The target is the space.
    own = {key: value for key, value in image.entities.items() if key not in ("desc", "space")}
    for target in _TARGETS[image.entities.get("space")]:
        yield from _named(image, own, f"from-{template}_to-{target}_mode-image_xfm.h5")


def _named(image: T1w, own: Mapping[str, str], tail: str) -> list[Path]:
    """Return the files beside an image that are of it by their names, the most specific first.

    What was made of several images together has fewer entities than each of them.
    """
    folder, stated = image.path.parent, entities_of(Path(tail))
    files = image.dataset.listing.look(folder)
    names = fnmatch.filter(files.files, f"*_{tail}") if "*" in tail else files.ending(f"_{tail}")
    found = []
    for path in (folder / name for name in names if name.startswith("sub-")):
        rest = {key: value for key, value in entities_of(path).items() if key not in stated}
        if rest.items() <= own.items() and rest.get("space") == own.get("space"):
            found.append((-len(rest), path.name, path))
    return [path for *_, path in sorted(found)]
