"""Which raw diffusion series of a session belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bsym_bids.errors import BsymError
from bsym_bids.inputs.records import DwiImage, DwiScan
from bsym_bids.inputs.series import Found, Series, acquired, count_weighted

_SHARED = ("run", "dir")  # what series of one scan may differ in
_FEWEST = 6  # diffusion-weighted volumes of what is a scan, and no help for another


@dataclass(frozen=True)
class _Acquired:
    """A series with its gradients."""

    series: Series
    image: DwiImage
    weighted: int

    @property
    def is_few(self) -> bool:
        """Whether it has too few diffusion-weighted volumes for a scan."""
        return self.weighted < _FEWEST

    @property
    def direction(self) -> str | None:
        """``dir-`` of its name."""
        return self.series.entities.get("dir")

    def relation(self, other: _Acquired) -> str:
        """Return whether phase was encoded in the ``same`` or ``opposite`` way; empty if unclear.

        The sidecars decide. Where one says nothing, equal ``dir-`` are the same, but others mean
        nothing: the labels are free.
        """
        own, others = self.image.phase_encoding, other.image.phase_encoding
        if own and others:
            if own == others:
                return "same"
            return "opposite" if own.rstrip("-") == others.rstrip("-") else ""
        return "same" if self.direction is not None and self.direction == other.direction else ""


def raw_scans(
    series: Sequence[Series], preprocessed_sessions: Collection[str | None], found: Found
) -> list[DwiScan]:
    """Put raw series together that are one scan.

    Those of a session that differ in ``run`` and ``dir`` only are one scan. Without the phase
    encoding of all of them in the sidecars, only one ``dir-`` is used: nothing could undo that
    their distortions differ.

    Series with fewer than six diffusion-weighted volumes are no scan where the session has others:
    with phase encoded as in a series of their own scan they belong to it, encoded the opposite way
    they serve to measure its distortions, and else they are left out.

    Parameters
    ----------
    series : sequence of Series
        Raw series of one participant, in order.
    preprocessed_sessions : collection of str or None
        Sessions with scans that are preprocessed already.
    found : Found
        Takes problems and what is skipped.

    Returns
    -------
    list of DwiScan
    """
    sessions: dict[str | None, list[Series]] = defaultdict(list)
    for one in series:
        sessions[one.session].append(one)
    return [
        scan
        for session, own in sessions.items()
        for scan in _session(own, session in preprocessed_sessions, found)
    ]


def _session(series: Sequence[Series], has_others: bool, found: Found) -> list[DwiScan]:
    """Return the scans of one session, which may have others that are preprocessed."""
    groups = [_acquire(group, found) for group in _groups(series, found)]
    full = [group for group in groups if group and not all(one.is_few for one in group)]
    few = [one for group in groups if group not in full for one in group]
    if not full and not has_others and all(groups):
        return [_scan(group, []) for group in groups]
    scans, used = [], []
    for group in full:
        main, reverse = _divide(group, few, found)
        scans.append(_scan(main, reverse))
        used += [*main, *reverse]
    unused = [one for group in groups for one in group if one.is_few and one not in used]
    found.skip(
        (one.series for one in unused),
        f"fewer than {_FEWEST} diffusion-weighted volumes, and by the sidecars not of the phase "
        "encoding opposite to a series (PhaseEncodingDirection)",
    )
    return scans


def _groups(series: Sequence[Series], found: Found) -> list[list[Series]]:
    """Return the series that may be put together."""
    groups: dict[tuple[tuple[str, str], ...], dict[tuple[tuple[str, str], ...], Series]]
    groups = defaultdict(dict)
    # The compressed file comes first where there are both.
    for one in sorted(series, key=lambda one: one.path.suffix != ".gz"):
        key = tuple(item for item in one.scan_entities.items() if item[0] not in _SHARED)
        other = groups[key].setdefault(tuple(one.entities.items()), one)
        if other is not one:
            found.skip([one], f"the same series is taken as {other.path.name}")
    return [sorted(group.values(), key=series.index) for group in groups.values()]


def _acquire(series: Sequence[Series], found: Found) -> list[_Acquired]:
    """Return series with their gradients; none, and a problem, when one has none."""
    try:
        images = [(one, acquired(one)) for one in series]
        return [_Acquired(one, image, count_weighted(image.bval)) for one, image in images]
    except BsymError as error:
        found.problems.append(error)
        return []


def _divide(
    group: Sequence[_Acquired], helpers: Sequence[_Acquired], found: Found
) -> tuple[list[_Acquired], list[_Acquired]]:
    """Return the series of a scan, and those that only serve to measure its distortions.

    Helpers are series of the session that are no scan themselves.
    """
    full = _of_one_distortion([one for one in group if not one.is_few], found)
    main, reverse = [], []
    for one in (*group, *helpers):
        relations = {one.relation(other) for other in full} if one.is_few else set()
        if one in full or ("same" in relations and one in group):
            main.append(one)
        elif "opposite" in relations and "same" not in relations:
            reverse.append(one)
    return main, reverse


def _of_one_distortion(series: list[_Acquired], found: Found) -> list[_Acquired]:
    """Leave out series that are distorted in another way, where nothing could undo that."""
    if all(one.image.phase_encoding for one in series):
        return series
    weighted: dict[str | None, int] = defaultdict(int)
    for one in series:
        weighted[one.direction] += one.weighted
    best = max(weighted, key=lambda direction: weighted[direction])  # the first of equals
    others = [one for one in series if one.direction != best]
    found.skip(
        (one.series for one in others),
        f"not acquired as {'those without dir-' if best is None else f'dir-{best}'} by its name; "
        "to use both, their sidecars have to say the PhaseEncodingDirection",
    )
    return [one for one in series if one.direction == best]


def _scan(main: Sequence[_Acquired], reverse: Sequence[_Acquired]) -> DwiScan:
    first = main[0].series
    differing = {key for key in _SHARED if len({one.series.entities.get(key) for one in main}) > 1}
    entities = {key: value for key, value in first.scan_entities.items() if key not in differing}
    return DwiScan(
        entities=entities,
        images=tuple(one.image for one in main),
        dataset=first.dataset,
        reverse=tuple(one.image for one in reverse),
    )
