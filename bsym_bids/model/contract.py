"""What a model was made for, against what it is used for.

The contract on a release's card says for which ROIs, windows, time base and scaling its network was
trained. What the network cannot take is an error; what it takes but was not made for is a
deviation, which the console and the sidecars state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.model.cards import card_place

if TYPE_CHECKING:
    from bsym_bids.model.brainsymphony import BrainSymphony
    from bsym_bids.model.structural import EdgeConvention
    from bsym_bids.model.weights import Release

#: Branches that a functional embedding takes.
FUNCTIONAL = ("spatial", "temporal", "context", "perceiver")
_ROUNDING = 1e-9
#: Where the weights fix a size: by attribute of the network, the branch and the key.
_FIXED_BY = {
    "rois": (
        ("perceiver", "latents"),
        ("temporal", "embedding_layer.weight"),
        ("structural", "input_proj.weight"),
    ),
    "steps": (("perceiver", "head.2.weight"), ("spatial", "embedding_layer.weight")),
}
_HINT = (
    "the participant level has the 450 ROIs of its atlas and windows of 200 frames: choose another "
    "model with --model"
)


def roi_names_sha256() -> str:
    """Return the SHA-256 of the atlas's ROI names in order, a line feed between them."""
    return hashlib.sha256("\n".join(atlas.roi_names()).encode()).hexdigest()


def check_contract(release: Release, window_frames: int) -> None:
    """Refuse a model whose card says that it was made for other ROIs or windows.

    Parameters
    ----------
    release : Release
        The model. What its card does not say is not checked here.
    window_frames : int
        Frames of the windows that it will get.

    Raises
    ------
    BadDataError
        The message names the card and the key.
    """
    contract = release.card.get("contract", {})
    used = {
        "rois": (atlas.N_ROIS, "the atlas has"),
        "roi_names_sha256": (roi_names_sha256(), "the ROI names of the atlas, in order, have"),
        "window_frames": (window_frames, "windows have"),
    }
    for key, (value, owner) in used.items():
        if contract.get(key, value) != value:
            where = card_place(release.name, release.folder)
            raise BadDataError(
                f"{where}: contract.{key} is {contract[key]}, but {owner} {value}", _HINT
            )


def contract_deviations(
    card: Mapping[str, Any], repetition_time: float, scaling: str
) -> list[str] | None:
    """Say in which ways windows differ from what a model was made for.

    Parameters
    ----------
    card : mapping
        The release's card.
    repetition_time : float
        Of the frames of the windows, in seconds.
    scaling : str
        How ROIs were scaled.

    Returns
    -------
    list of str or None
        A sentence for each deviation; None when the card has no contract to deviate from.
    """
    contract = card.get("contract")
    if contract is None:
        return None
    deviations = []
    wanted = contract.get("repetition_time", repetition_time)
    tolerance = contract.get("repetition_time_tolerance", 0)
    if abs(repetition_time - wanted) > wanted * (tolerance + _ROUNDING):
        deviations.append(
            f"the frames of the windows are {repetition_time:g} s apart, but the model was made "
            f"for {wanted:g} s, give or take {tolerance:.0%} (--model-tr {wanted:g} changes that)"
        )
    wanted = contract.get("scaling", scaling)
    if scaling != wanted:
        deviations.append(
            f"the scaling of ROIs is {scaling!r}, but the model was made for {wanted!r} "
            f"(--scaling {wanted} changes that)"
        )
    return deviations


def connectome_deviations(card: Mapping[str, Any], convention: EdgeConvention) -> list[str] | None:
    """Say in which ways connectomes differ from what a model was made for.

    Parameters
    ----------
    card : mapping
        The release's card.
    convention : EdgeConvention
        What is made of streamline counts.

    Returns
    -------
    list of str or None
        A sentence for each deviation; None when the card says nothing of connectomes.
    """
    from bsym_bids.model.structural import stated_convention

    stated = stated_convention(card)
    if stated is None:
        return None
    deviations = []
    if convention.measure != stated.measure:
        deviations.append(
            f"the edges are {convention.measure!r}, but the model was made for {stated.measure!r} "
            f"(--sc-measure {stated.measure} changes that)"
        )
    if convention.transform != stated.transform:
        deviations.append(
            f"their transform is {convention.transform!r}, but the model was made for "
            f"{stated.transform!r} (--sc-transform {stated.transform} changes that)"
        )
    return deviations


def check_card_fits(release: Release, model: BrainSymphony) -> None:
    """Refuse weights that are not for what their card says.

    Raises
    ------
    BadDataError
        The message names the card with its key and the file with its key.
    """
    contract = release.card.get("contract", {})
    for key, attribute in (("rois", "rois"), ("window_frames", "steps")):
        given, stated = getattr(model, attribute), contract.get(key)
        if None not in (given, stated) and given != stated:
            raise BadDataError(
                f"{card_place(release.name, release.folder)}: contract.{key} is {stated}, but "
                f"{_where(release, model, attribute)} is made for {given}",
                hint="the card and the weights have to come from one release",
            )


def check_network(
    release: Release, model: BrainSymphony, window_frames: int, functional: bool = True
) -> None:
    """Refuse a network that cannot embed what the participant level gives it.

    Parameters
    ----------
    release : Release
        Where the network is from.
    model : BrainSymphony
        The network.
    window_frames : int
        Frames of the windows that it will get.
    functional : bool
        Whether it will get windows at all; connectomes ask less of it.

    Raises
    ------
    BadDataError
        For a network without one of the functional branches, for other ROIs or frames, or one that
        asks for gradient maps; the message names the file and the key.
    """
    absent = [branch for branch in FUNCTIONAL if getattr(model, branch) is None]
    if absent and functional:
        raise BadDataError(
            f"{card_place(release.name, release.folder)}: files.{absent[0]} is missing: the "
            f"functional embedding takes {', '.join(FUNCTIONAL)}",
            hint="choose another model with --model",
        )
    for attribute, what, needed in (
        ("rois", "ROIs", atlas.N_ROIS),
        ("steps", "frames", window_frames),
    ):
        given = getattr(model, attribute)
        if given != needed and (functional or attribute == "rois"):
            raise BadDataError(
                f"{_where(release, model, attribute)} is made for {given} {what} instead of "
                f"{needed}",
                _HINT,
            )
    if functional and model.spatial is not None and model.spatial.gradients:
        raise BadDataError(
            f"{_file(release, 'spatial')}: pos_enc.proj.weight makes the positional code of "
            "gradient maps, which the participant level does not have",
            hint="choose a model with a learnt positional code",
        )


def load_and_check(release: Release, window_frames: int, functional: bool = True) -> None:
    """Load a network strictly and throw it away, for what would be found out much later."""
    from bsym_bids.model.weights import load_model

    check_network(release, load_model(release), window_frames, functional)


def _where(release: Release, model: BrainSymphony, attribute: str) -> str:
    """Return the file and the key that fix a size."""
    branch, key = next(
        place for place in _FIXED_BY[attribute] if getattr(model, place[0]) is not None
    )
    return f"{_file(release, branch)}: {key}"


def _file(release: Release, branch: str) -> Path | str:
    return release.files.get(branch, branch)
