"""Where confounds come from: the quality tables of the outputs, and the phenotype tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.config import NO_CONFOUNDS
from bsym_bids.errors import BadDataError
from bsym_bids.outputs.reading import read_quality, read_roi_column
from bsym_bids.prediction.column_values import looks_numeric
from bsym_bids.prediction.inventory import BOLD, DWI, Inventory, Record
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.phenotypes import Phenotypes
from bsym_bids.prediction.records import Target, Unit
from bsym_bids.prediction.targets import categorical_column, numeric_column

LOGGER = logging.getLogger("bsym_bids")


@dataclass(frozen=True)
class MeasuredConfound:
    """A confound that the outputs tell.

    Attributes
    ----------
    name, description, units : str
        As sidecars say it.
    modality : str
        What records it is of.
    product : str
        The table it is in.
    read : callable
        Returns the number that a table holds.
    """

    name: str
    description: str
    units: str
    modality: str
    product: str
    read: Callable[[Path], float]


def _frames(path: Path) -> float:
    return read_quality(path, "n_volumes") - read_quality(path, "n_censored")


def _volume(path: Path) -> float:
    return float(np.nansum(read_roi_column(path, "volume")))


MEASURED = (
    MeasuredConfound(
        "fd_mean",
        "Mean framewise displacement, mean over runs",
        "mm",
        BOLD,
        "run_quality",
        lambda path: read_quality(path, "fd_mean"),
    ),
    MeasuredConfound(
        "n_frames",
        "Volumes that were not censored, mean over runs",
        "volumes",
        BOLD,
        "run_quality",
        _frames,
    ),
    MeasuredConfound(
        "roi_volume",
        "Volume of all ROIs in the space of the diffusion scan, mean over scans",
        "mm3",
        DWI,
        "rois",
        _volume,
    ),
)
#: Columns of the phenotype tables that are confounds by default, unless they are predicted.
_DEFAULT_COLUMNS = ("age", "sex")
#: A column that agrees more than this with the label is nearly the label under another name.
_SAME = 0.95
#: So few people may agree by chance.
_FEW = 10


def gather_confounds(
    names: Sequence[str] | None,
    target: Target,
    units: Sequence[Unit],
    inventory: Inventory,
    phenotypes: Phenotypes | None,
) -> Confounds:
    """Collect the confounds of every unit.

    Parameters
    ----------
    names : sequence of str, optional
        Names of `MEASURED` confounds, or columns of the phenotype tables; ``none`` for none. None
        is what is measured, age and sex, without the target itself, without what is nearly the same
        thing under another name (with a warning), and without what does not vary.
    target : Target
        Never a confound of itself.
    units : sequence of Unit
        N units.
    inventory : Inventory
        The outputs.
    phenotypes : Phenotypes, optional
        The tables.

    Returns
    -------
    Confounds
        A column of categories becomes an indicator of each but the first.

    Raises
    ------
    UsageError
        A name is neither measured nor a column.
    BadDataError
        No unit has a confound that was asked for, or it is the target.
    """
    measured = {confound.name: confound for confound in MEASURED}
    asked = names is not None
    if names is not None:
        wanted = [name for name in names if name != NO_CONFOUNDS]
    else:
        wanted = [*measured, *_DEFAULT_COLUMNS]
    columns: dict[str, NDArray[np.float64]] = {}
    for name in dict.fromkeys(wanted):
        if name in measured:
            found = {name: _measured(measured[name], units, inventory)}
        else:
            found = _of_tables(name, target, units, phenotypes, asked)
        columns |= _usable(found, target.labelled, asked)
    values = np.column_stack(list(columns.values())) if columns else np.empty((len(units), 0))
    return Confounds(tuple(columns), values)


def confounds_named(
    names: Sequence[str],
    units: Sequence[Unit],
    inventory: Inventory,
    phenotypes: Phenotypes | None,
) -> NDArray[np.float64]:
    """Return confounds by the names that `gather_confounds` gave them elsewhere.

    Parameters
    ----------
    names : sequence of str
        C names; ``sex=M`` is the indicator of a level.
    units, inventory, phenotypes
        As for `gather_confounds`.

    Returns
    -------
    ndarray, shape (N, C)
        NaN, with a warning, where nothing is known.
    """
    measured = {confound.name: confound for confound in MEASURED}
    values = np.full((len(units), len(names)), np.nan)
    for number, name in enumerate(names):
        if name in measured:
            values[:, number] = _measured(measured[name], units, inventory)
            continue
        column, _, level = name.partition("=")
        found = phenotypes.optional(column) if phenotypes is not None else None
        if found is None:
            LOGGER.warning("%s is not known here: it is taken to be as where it was fitted", name)
        elif not level:
            values[:, number] = numeric_column(found, units)
        else:
            codes, levels = categorical_column(found, units)
            own = levels.index(level) if level in levels else -1
            values[:, number] = np.where(np.isfinite(codes), codes == own, np.nan)
    return values


def _measured(
    confound: MeasuredConfound, units: Sequence[Unit], inventory: Inventory
) -> NDArray[np.float64]:
    known: dict[str, float] = {}

    def of(record: Record) -> float:
        if record.label not in known:
            known[record.label] = _read(confound, record)
        return known[record.label]

    values = np.full(len(units), np.nan)
    for number, unit in enumerate(units):
        own = [of(record) for record in inventory.of_unit(unit, confound.modality)]
        own = [value for value in own if np.isfinite(value)]
        values[number] = np.mean(own) if own else np.nan
    return values


def _read(confound: MeasuredConfound, record: Record) -> float:
    path = record.files.get(confound.product)
    if path is None:
        return np.nan
    try:
        return confound.read(path)
    except BadDataError as error:  # one bad table does not stop the others
        LOGGER.warning("%s is left out: %s", confound.name, error)
        return np.nan


def _of_tables(
    name: str, target: Target, units: Sequence[Unit], phenotypes: Phenotypes | None, asked: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the columns that a column of the tables becomes."""
    if phenotypes is None:
        return {}
    column = phenotypes.column(name) if asked else phenotypes.optional(name)
    if column is None:
        return {}
    # By what was found: `age` finds the column `Age`, and `participants:age` finds it, too.
    if column.name.casefold() == target.name.casefold():
        if asked:
            raise BadDataError(
                f"{name}: is what is to be predicted, and cannot be its own confound",
                hint="leave it out of --confounds",
            )
        return {}
    if looks_numeric(column):
        values = numeric_column(column, units)
        return {} if _is_label(name, target, values, False, asked) else {name: values}
    codes, levels = categorical_column(column, units)
    if _is_label(name, target, codes, True, asked):
        return {}
    known = np.isfinite(codes)
    return {
        f"{name}={level}": np.where(known, codes == index, np.nan)
        for index, level in enumerate(levels)
        if index
    }


def _is_label(
    name: str, target: Target, values: NDArray[np.float64], are_codes: bool, asked: bool
) -> bool:
    """Tell whether a column is left out as nearly the label; those asked for are warned of."""
    strength = _agreement(target, values, are_codes)
    if strength <= _SAME:
        return False
    numbers = target.is_regression and not are_codes
    how = f"{'correlation' if numbers else 'association'} {strength:.2f}"
    if asked:
        LOGGER.warning(
            "the confound %s is nearly what is to be predicted, %s (%s): what tells the one is "
            "taken away with the other",
            name,
            target.name,
            how,
        )
        return False
    LOGGER.warning(
        "the confound %s is left out: it is nearly what is to be predicted, %s (%s); to keep it, "
        "name it with --confounds",
        name,
        target.name,
        how,
    )
    return True


def _agreement(target: Target, values: NDArray[np.float64], are_codes: bool) -> float:
    """Return how strongly a column goes with the label, 0 to 1.

    That is the size of the correlation; of a category and a number the correlation ratio; of two
    categories Cramer's V.
    """
    known = target.labelled & np.isfinite(values)
    labels, own = target.values[known], values[known]
    if len(own) < _FEW or np.ptp(labels) == 0 or np.ptp(own) == 0:
        return 0.0
    if target.is_regression:
        if are_codes:
            return _correlation_ratio(labels, own)
        return float(abs(np.corrcoef(labels, own)[0, 1]))
    return _cramers_v(labels, own) if are_codes else _correlation_ratio(own, labels)


def _correlation_ratio(numbers: NDArray[np.float64], codes: NDArray[np.float64]) -> float:
    """Return the root of the share of the variance that lies between categories."""
    groups = np.unique(codes, return_inverse=True)[1]
    means = np.bincount(groups, numbers) / np.bincount(groups)
    return float(np.std(means[groups]) / np.std(numbers))


def _cramers_v(labels: NDArray[np.float64], levels: NDArray[np.float64]) -> float:
    """Return Cramer's V; 1 only where levels determine the classes, so never of fewer levels."""
    classes, own = (np.unique(codes, return_inverse=True)[1] for codes in (labels, levels))
    counts = np.zeros((classes.max() + 1, own.max() + 1))
    np.add.at(counts, (classes, own), 1)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0))
    return float(np.sqrt(((counts**2 / expected).sum() - 1) / (len(counts) - 1)))


def _usable(
    columns: dict[str, NDArray[np.float64]], labelled: NDArray[np.bool_], asked: bool
) -> dict[str, NDArray[np.float64]]:
    """Leave out what is not known of anyone with a label, or the same for all of them."""
    usable = {}
    for name, values in columns.items():
        known = values[labelled & np.isfinite(values)]
        if known.size and np.ptp(known) > 0:
            usable[name] = values
        elif asked and not known.size:
            raise BadDataError(
                f"{name}: is known of nobody with a label", hint="leave it out of --confounds"
            )
        elif known.size:
            LOGGER.warning("the confound %s is left out: it is the same for everyone", name)
    return usable
