"""Names of output files, built from the patterns in ``data/outputs.yaml``."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from bsym_bids import atlas

STATISTICS = {"mean": "mean", "pca": "pc1"}
#: Groups of products of a BOLD run, of a diffusion scan, and of both together.
RUN_GROUPS = ("timeseries", "embedding")
SCAN_GROUPS = ("connectome", "structural")
FUSION_GROUPS = ("fused",)
#: Products of the dataset as a whole, at its root.
DATASET = "dataset"
#: What cohort scaling adds to ``desc-`` of the group of products that it makes anew.
COHORT = "cohort"
COHORT_GROUP = "embedding"
#: Key of its statistics.
COHORT_SCALING = "cohort_scaling"
#: Key of the streamlines, and the formats they may be kept in.
TRACTOGRAM = "tractogram"
TRACTOGRAM_FORMATS = ("tck", "trx")
_LONGEST_LABEL = 80
_COHORT_DESCRIPTION = (
    "ROIs are scaled by the cohort's median and interquartile range, not by the run's own."
)


@dataclass(frozen=True)
class Column:
    """A column of a table, or those of a pattern.

    Attributes
    ----------
    name : str
        Its name; ``<...>`` and ``...`` stand for what depends on the data.
    description : str
        What it holds; names are in backticks.
    units, range : str
        Units as BIDS has them, and the text on units and range for people where it says more.
    missing, when : str
        When cells are n/a, and where the column is there; empty for never and everywhere.
    levels : mapping of str to str
        What the values of a text mean.
    """

    name: str
    description: str
    units: str = ""
    range: str = ""
    missing: str = ""
    when: str = ""
    levels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Array:
    """An array of an archive.

    Attributes
    ----------
    name, shape, description : str
        Its name, its shape and type, and what it holds.
    """

    name: str
    shape: str
    description: str


@dataclass(frozen=True)
class Product:
    """One kind of output file.

    Attributes
    ----------
    key : str
        Name of the product inside the program.
    group : str
        Products of a group are published together.
    suffix, extension, description : str
        BIDS suffix, file extension, and what the file holds.
    shape, short : str
        Rows and columns, and what the file holds in a few words.
    stat, desc : str
        Values of the entities ``stat-`` and ``desc-``; empty where the name has none.
    label : str
        What ``{label}`` in `desc` stands for, for people.
    optional : bool
        Whether a group counts as done without it.
    columns, arrays : tuple
        Of a table and of an archive, in their order.
    """

    key: str
    group: str
    suffix: str
    extension: str
    description: str
    shape: str
    short: str
    stat: str = ""
    desc: str = ""
    label: str = ""
    optional: bool = False
    columns: tuple[Column, ...] = field(default=(), repr=False, hash=False)
    arrays: tuple[Array, ...] = field(default=(), repr=False, hash=False)


@cache
def products() -> Mapping[str, Product]:
    """Return every product of a BOLD run by its key, in the order in which they are documented."""
    return _products_of_groups(RUN_GROUPS)


@cache
def scan_products() -> Mapping[str, Product]:
    """Return every product of a diffusion scan by its key."""
    return _products_of_groups(SCAN_GROUPS)


@cache
def fusion_products() -> Mapping[str, Product]:
    """Return every product of a BOLD run and a diffusion scan together by its key."""
    return _products_of_groups(FUSION_GROUPS)


@cache
def cohort_products() -> Mapping[str, Product]:
    """Return what a BOLD run has under cohort scaling, by the key of the product it stands beside.

    The names differ in ``desc-`` alone, which ends with ``cohort``.
    """
    return {
        product.key: replace(
            product,
            desc=product.desc + COHORT,
            description=f"{product.description} {_COHORT_DESCRIPTION}",
        )
        for product in products_of(COHORT_GROUP)
    }


@cache
def dataset_products() -> Mapping[str, Product]:
    """Return every product of the dataset as a whole by its key."""
    return _products_of_groups((DATASET,))


def _products_of_groups(groups: Sequence[str]) -> dict[str, Product]:
    return {key: product for key, product in _all_products().items() if product.group in groups}


@cache
def _all_products() -> Mapping[str, Product]:
    import yaml

    text = files("bsym_bids").joinpath("data/outputs.yaml").read_text("utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is there
    entries = yaml.load(text, loader)
    return {key: _product(key, entry) for key, entry in entries.items()}


def _product(key: str, entry: Mapping[str, Any]) -> Product:
    columns = tuple(Column(name, **said) for name, said in entry.get("columns", {}).items())
    arrays = tuple(Array(name, **said) for name, said in entry.get("arrays", {}).items())
    return Product(**{**entry, "key": key, "columns": columns, "arrays": arrays})


def product_of(key: str) -> Product:
    """Return a product of any group by its key."""
    return _all_products()[key]


@cache
def products_of(group: str) -> tuple[Product, ...]:
    """Return the products of one group."""
    return tuple(product for product in _all_products().values() if product.group == group)


class Names(ABC):
    """The output names of one source.

    Attributes
    ----------
    output_dir : Path
        Root of the output dataset.
    entities : mapping of str to str
        All source entities in BIDS order, short keys (``sub``, ``ses``, ...), without ``space``,
        ``res``, ``den`` and ``desc``.
    datatype : str
        Folder of the outputs: ``func`` or ``dwi``.
    """

    output_dir: Path
    entities: Mapping[str, str]
    datatype = ""

    @cached_property
    def folder(self) -> Path:
        """The folder of the outputs."""
        parts = [f"sub-{self.entities['sub']}"]
        if "ses" in self.entities:
            parts.append(f"ses-{self.entities['ses']}")
        return self.output_dir.joinpath(*parts, self.datatype)

    @property
    @abstractmethod
    def stem(self) -> str:
        """The part of the name that all outputs share."""

    @abstractmethod
    def path(self, key: str) -> Path:
        """Return where a product goes."""

    @abstractmethod
    def group_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files that one group is sure to have under the settings of this call."""

    @abstractmethod
    def possible_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files of one group under any settings, sidecars not included."""

    def uri(self, key: str) -> str:
        """Return the BIDS URI of a product within the output dataset."""
        return own_uri(self.output_dir, self.path(key))

    def _file(self, product: Product, stat: str, extension: str) -> Path:
        name = self.stem
        name += f"_stat-{stat}" if stat else ""
        name += f"_desc-{product.desc}" if product.desc else ""
        return self.folder / f"{name}_{product.suffix}{extension}"


@dataclass(frozen=True)
class RunNames(Names):
    """The output names of one BOLD run.

    Attributes
    ----------
    output_dir, entities
        As in `Names`.
    space : str
        Space of the source.
    resolution, density : str, optional
        ``res-`` and ``den-`` of the source.
    method : str
        How ROIs are summarised: ``mean`` or ``pca``.
    cohort_scaled : bool
        Whether what comes from the model is what it is under cohort scaling. Both kinds of names
        stand side by side; those of all other products are the same.
    """

    output_dir: Path
    entities: Mapping[str, str]
    space: str
    resolution: str | None = None
    density: str | None = None
    method: str = "mean"
    cohort_scaled: bool = False
    datatype = "func"

    @cached_property
    def stem(self) -> str:
        """The part of the name that all outputs of the run share."""
        parts = [f"{key}-{value}" for key, value in self.entities.items()]
        parts += [f"space-{self.space}", f"atlas-{atlas.LABEL}", f"scale-{atlas.SCALE}"]
        if self.resolution:
            parts.append(f"res-{self.resolution}")
        if self.density:
            parts.append(f"den-{self.density}")
        return "_".join(parts)

    def product(self, key: str) -> Product:
        """Return a product as these names have it."""
        found = _all_products()[key]
        return cohort_products().get(key, found) if self.cohort_scaled else found

    def path(self, key: str, method: str | None = None) -> Path:
        """Return where a product of this run goes."""
        product = self.product(key)
        stat = product.stat.format(statistic=STATISTICS[method or self.method])
        return self._file(product, stat, product.extension)

    def group_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files that one group is sure to have under the settings of this run."""
        return tuple(self.path(p.key) for p in products_of(group) if not p.optional)

    def possible_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files of one group under any settings, sidecars not included."""
        paths = {
            self.path(product.key, method)
            for product in products_of(group)
            for method in STATISTICS
        }
        return tuple(sorted(paths))


@dataclass(frozen=True)
class ScanNames(Names):
    """The output names of one diffusion scan.

    Attributes
    ----------
    output_dir, entities
        As in `Names`.
    space : str, optional
        ``space-`` of the source; raw series have none.
    tractogram : str, optional
        Format in which streamlines are kept, ``tck`` or ``trx``.
    fibre_capacity : bool
        Whether the engine gives fibre bundle capacities (SIFT2).
    """

    output_dir: Path
    entities: Mapping[str, str]
    space: str | None = None
    tractogram: str | None = None
    fibre_capacity: bool = True
    datatype = "dwi"

    @cached_property
    def stem(self) -> str:
        """The part of the name that all outputs of the scan share."""
        parts = [f"{key}-{value}" for key, value in self.entities.items()]
        parts += [f"space-{self.space}"] if self.space else []
        return "_".join([*parts, f"atlas-{atlas.LABEL}", f"scale-{atlas.SCALE}"])

    def path(self, key: str) -> Path:
        """Return where a product of this scan goes."""
        product = _all_products()[key]
        if key == TRACTOGRAM and self.tractogram:
            return self._file(product, "", f".{self.tractogram}")
        return self._file(product, "", product.extension)

    def group_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files that one group is sure to have under the settings of this scan."""
        left_out = {product.key for product in products_of(group) if product.optional}
        left_out |= set() if self.tractogram else {TRACTOGRAM}
        left_out |= set() if self.fibre_capacity else {"sift2"}
        return tuple(self.path(p.key) for p in products_of(group) if p.key not in left_out)

    def possible_paths(self, group: str) -> tuple[Path, ...]:
        """Return the data files of one group under any settings, sidecars not included."""
        paths = {self.path(product.key) for product in products_of(group)}
        if TRACTOGRAM in {product.key for product in products_of(group)}:
            product = _all_products()[TRACTOGRAM]
            paths |= {self._file(product, "", f".{kind}") for kind in TRACTOGRAM_FORMATS}
        return tuple(sorted(paths))


def own_uri(output_dir: Path, path: Path) -> str:
    """Return the BIDS URI of a file within the output dataset."""
    return f"bids::{path.relative_to(output_dir).as_posix()}"


def dataset_path(output_dir: Path, key: str, label: str = "") -> Path:
    """Return where a product of the dataset as a whole goes.

    Parameters
    ----------
    output_dir : Path
        Root of the dataset.
    key : str
        Key of the product.
    label : str
        What the file is about, for its name; characters that BIDS does not take are left out.
        Without effect on products that there is one of.
    """
    product = dataset_products()[key]
    desc = product.desc.format(label=file_label(label))
    return output_dir / f"desc-{desc}_{product.suffix}{product.extension}"


def file_label(label: str) -> str:
    """Return what stands for a label in names of files: its letters and digits, and not too many.

    A label of other scripts, or one that is longer than names of files can be, has a hash in place
    of what is lost: another one must not get its files.
    """
    plain = "".join(c for c in label if c.isascii() and c.isalnum())
    if (plain or not label) and len(plain) <= _LONGEST_LABEL:
        return plain
    return plain[:_LONGEST_LABEL] + hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()[:8]


def participant_page(output_dir: Path, label: str) -> Path:
    """Return where the page of a participant goes."""
    return output_dir / f"sub-{label}.html"


def study_page(output_dir: Path) -> Path:
    """Return where the page of all participants goes; its table and sidecar lie beside it."""
    return output_dir / "group_participants.html"


def sidecar_of(path: Path) -> Path:
    """Return the JSON sidecar of a data file."""
    extension = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return path.with_name(path.name.removesuffix(extension) + ".json")
