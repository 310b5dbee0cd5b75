"""The table of ROIs: index, name, hemisphere, network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

LABEL = "Schaefer2018Tian2020"
SCALE = "450"
N_ROIS = 450


@dataclass(frozen=True)
class Roi:
    """One region of interest.

    Attributes
    ----------
    index : int
        1 to 450, the value in the atlas images.
    name : str
        Name in the atlas's label file.
    hemisphere : str
        ``L`` or ``R``.
    network : str
        One of the seven networks of Yeo et al. 2011, or ``Subcortex``.
    """

    index: int
    name: str
    hemisphere: str
    network: str


def folder() -> Path:
    """Return the folder of the packaged atlas files."""
    return Path(str(files("bsym_bids") / "data" / "atlas"))


def table_path() -> Path:
    """Return the table of ROIs, a TSV in the form of BIDS BEP038."""
    return folder() / f"atlas-{LABEL}_scale-{SCALE}_dseg.tsv"


def description_path() -> Path:
    """Return the description of the atlas, a JSON in the form of BIDS BEP038."""
    return folder() / f"atlas-{LABEL}_description.json"


@cache
def rois() -> tuple[Roi, ...]:
    """Return all ROIs in atlas order."""
    header, *lines = table_path().read_text("utf-8").splitlines()
    if header.split("\t")[:4] != ["index", "name", "hemisphere", "network"]:
        raise ValueError(f"{table_path()}: unexpected columns")
    return tuple(Roi(int(index), *rest[:3]) for index, *rest in (x.split("\t") for x in lines))


@cache
def roi_names() -> tuple[str, ...]:
    """Return the names of all ROIs in atlas order."""
    return tuple(roi.name for roi in rois())


@cache
def networks() -> tuple[str, ...]:
    """Return the network of each ROI in atlas order."""
    return tuple(roi.network for roi in rois())
