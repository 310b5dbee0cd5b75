"""Diffusion scans of a participant: raw or preprocessed, with gradients, mask and anatomy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from bsym_bids.errors import BadDataError, BsymError, InputMissingError
from bsym_bids.inputs.anatomy import Anatomies
from bsym_bids.inputs.datasets import files_of
from bsym_bids.inputs.files import (
    check_present,
    first_file,
    in_order,
    is_in_place,
    is_well_named,
    join,
    metadata,
)
from bsym_bids.inputs.grouping import raw_scans
from bsym_bids.inputs.records import Derivatives, DwiScan, Skipped
from bsym_bids.inputs.selection import Selection, fits, plain
from bsym_bids.inputs.series import Found, Series, preprocessed, series_of

#: Spaces of preprocessed series; QSIPrep changed the name with version 1, but not what it means.
SPACES = ("ACPC", "T1w")


def find_scans(
    label: str, raw: Derivatives, derivatives: Sequence[Derivatives], selection: Selection
) -> Found:
    """Find the diffusion scans of a participant, and decide about every series.

    A scan that QSIPrep has preprocessed is taken from its derivatives, and its raw series are not.
    The raw series of a session that differ in run and phase encoding only become one scan.

    Parameters
    ----------
    label : str
        Label of the participant.
    raw : Derivatives
        The dataset with raw series.
    derivatives : sequence of Derivatives
        Datasets with preprocessed series and anatomy, those that come first preferred.
    selection : Selection
        What the user wants. Tasks and runs do not concern diffusion.

    Returns
    -------
    Found
    """
    found = Found()
    datasets = dict.fromkeys([*derivatives, raw])
    found.series = [one for dataset in datasets for one in series_of(dataset, label)]
    usable = [one for one in found.series if _is_wanted(one, selection, found)]
    given = [one for one in usable if one.is_preprocessed and one.dataset in derivatives]
    own = [one for one in usable if one.is_raw and one.dataset == raw]
    found.skip(
        (one for one in usable if one not in given and one not in own),
        "neither a raw series of the dataset nor one that QSIPrep has preprocessed",
    )
    chosen = _choose_forms(given, found)
    remaining = _without_preprocessed(own, chosen, found)
    scans = _preprocessed_scans(chosen, found)
    scans += raw_scans(remaining, {one.session for one in chosen}, found)
    sessions = {one.session for one in (*chosen, *remaining)}
    _say_which_spaces([one for one in given if one.space not in SPACES], sessions, found)
    _add_anatomy(scans, Anatomies.of(label, raw, derivatives, selection), found)
    if remaining:
        found.skipped += _field_maps(label, raw)
    return found


def _is_wanted(series: Series, selection: Selection, found: Found) -> bool:
    """Tell whether a series is to be used; say why when it is not."""
    part = series.entities.get("part", "mag")
    # Names of derivatives have lost entities that filters may name.
    stated_only = not series.is_raw
    if not is_in_place(series.path, series.dataset.root, "dwi"):
        found.skip([series], "not in the folder that its name belongs in")
    elif not selection.takes_session(series.entities):
        found.skip([series], "not selected by session")
    elif not is_well_named(series.path):
        found.problems.append(
            BadDataError(f"{series.path}: its name is not one of BIDS", "rename it")
        )
    elif not fits(series.path, selection.dwi_filters, stated_only=stated_only):
        found.skip([series], "not selected by the dwi query of the filter file")
    elif part != "mag":
        found.skip([series], f"part-{part}: only magnitude images are used")
    else:
        return True
    return False


def _choose_forms(series: Sequence[Series], found: Found) -> list[Series]:
    """Return one form of each preprocessed scan; say why not the others."""
    scans: dict[tuple[tuple[str, str], ...], list[Series]] = defaultdict(list)
    for one in series:
        if one.space in SPACES:
            scans[tuple(one.scan_entities.items())].append(one)
    chosen = []
    for forms in scans.values():
        # Series are in the order of the datasets and of their names, and min takes the first.
        dataset = forms[0].dataset
        best = min((one for one in forms if one.dataset == dataset), key=_rank)
        chosen.append(best)
        others = [one for one in forms if one is not best]
        for one in others:
            same = one.dataset == dataset
            taken = best.path.name if same else f"derivatives {dataset.name}"
            how = "the scan is taken as" if same else "the same scan is taken from"
            found.skip([one], f"{how} {taken}")
    return chosen


def _rank(series: Series) -> tuple[int, bool]:
    return SPACES.index(str(series.space)), series.path.suffix != ".gz"


def _without_preprocessed(
    series: Sequence[Series], chosen: Sequence[Series], found: Found
) -> list[Series]:
    """Return the raw series that no preprocessed scan has been made of; skip the others."""
    remaining = []
    for one in series:
        made = next((other for other in chosen if _is_made_of(other, one)), None)
        if made is None:
            remaining.append(one)
        else:
            found.skip([one], f"the scan is taken as preprocessed: {made.path.name}")
    return remaining


def _is_made_of(preprocessed: Series, raw: Series) -> bool:
    """Tell whether a raw series went into a preprocessed one, by their names.

    QSIPrep keeps the entities that the series have in common which it puts together, all of one
    session.
    """
    return preprocessed.session == raw.session and all(
        plain(key, raw.entities.get(key)) == plain(key, value)
        for key, value in preprocessed.scan_entities.items()
    )


def _preprocessed_scans(chosen: Sequence[Series], found: Found) -> list[DwiScan]:
    scans = []
    for one in chosen:
        try:
            image = preprocessed(one)
        except BsymError as error:
            found.problems.append(error)
            continue
        form = {key: value for key, value in one.entities.items() if key != "desc"}
        names = [f"{join(form)}_desc-brain_mask.nii{gz}" for gz in (".gz", "")]
        mask = first_file(one.dataset.listing, one.path.parent, names)
        scans.append(DwiScan(one.scan_entities, (image,), one.dataset, one.space, mask))
    return scans


def _say_which_spaces(
    unusable: Sequence[Series], sessions: Collection[str | None], found: Found
) -> None:
    """Say that preprocessed series cannot be used: a problem in sessions without anything else."""
    for one in unusable:
        where = f"in space {one.space}" if one.space else "without a space in its name"
        reason = f"{where}, but QSIPrep's space-ACPC or space-T1w is needed"
        if one.session in sessions:
            found.skip([one], reason)
        else:
            found.problems.append(InputMissingError(f"{one.path}: {reason}"))


def _add_anatomy(scans: Sequence[DwiScan], anatomies: Anatomies, found: Found) -> None:
    """Add what there is of the anatomy, and see that all files are there."""
    if not scans:
        return
    for scan in sorted(scans, key=lambda scan: in_order(scan.images[0].image)):
        whole = replace(scan, anatomy=anatomies.choose(scan))
        try:
            check_present(whole.files)
            found.scans.append(whole)
        except BsymError as error:
            found.problems.append(error)
    found.skipped += anatomies.left_out()


def _field_maps(label: str, raw: Derivatives) -> list[Skipped]:
    """List the field maps that are meant for diffusion series: they are not used."""
    epis = files_of(raw, label, "fmap", "_epi.nii")
    return [
        Skipped(path, "a field map: distortions are measured by series of dwi/ alone")
        for path in sorted(epis)
        if _is_for_diffusion(path, raw)
    ]


def _is_for_diffusion(path: Path, raw: Derivatives) -> bool:
    try:
        found = metadata(path, raw, "IntendedFor", "epi.json")
    except BsymError:
        return False  # nothing depends on it
    return found is not None and "dwi/" in str(found[0])
