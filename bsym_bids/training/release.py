"""Writing a trained network as a release that ``--model-dir`` takes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsym_bids import __version__
from bsym_bids.atlas import N_ROIS
from bsym_bids.bold.resampling import TOLERANCE
from bsym_bids.bold.windows import WINDOW_LENGTH
from bsym_bids.model.brainsymphony import BRANCHES, BrainSymphony
from bsym_bids.model.cards import CARD_FILES, check_card
from bsym_bids.model.contract import roi_names_sha256
from bsym_bids.model.weights import Release
from bsym_bids.outputs.publish import explained

if TYPE_CHECKING:
    from bsym_bids.training.pretrain import PretrainSettings

#: Sizes of a network that is trained from the start: those of the published code, the Perceiver's
#: "input dimension" of 384 included, with a positional code as long as there are ROIs and frames.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "spatial": {"steps": 200, "width": 128, "layers": 6, "mlp_width": 512, "positions": 450},
    "temporal": {"rois": 450, "width": 128, "layers": 6, "mlp_width": 512, "positions": 200},
    "context": {"channels": 64, "hidden": [32, 8]},
    "perceiver": {
        "rois": 450,
        "steps": 200,
        "width": 128,
        "layers": 1,
        "mlp_width": 512,
        "projection": 128,
        "head_width": 256,
        "roi_width": 128,
        "time_width": 128,
        "channels": 64,
    },
    "structural": {
        "rois": 450,
        "width": 128,
        "layers": 6,
        "mlp_width": 512,
        "eigenvectors": 0,
        "learnable": True,
        "edge_widths": [512, 128],
    },
    "gate": {"width": 128},
}
NETWORK: Mapping[str, Any] = {
    "spatial_heads": 4,
    "temporal_heads": 4,
    "perceiver_heads": 2,
    "structural_heads": 4,
    "attention": "first_hop",
    "max_hops": 2,
    "diffusion_theta": 0.1,
}
_ORDER = (
    "1-50 Tian Scale III, 51-250 Schaefer-400 left, 251-450 Schaefer-400 right (seven-network "
    "order)"
)


@dataclass(frozen=True)
class Origin:
    """Where a release comes from.

    Attributes
    ----------
    name : str
        Of the release.
    notice : str
        Sentence for the card and for every output of the model; may be empty.
    settings : PretrainSettings
        How it was trained.
    init : Release, optional
        What the training went on from.
    phases : tuple of str
        What was trained: functional, structural, gate.
    training, held_out : tuple of str
        People.
    half : bool
        Whether weights are written in half precision.
    """

    name: str
    notice: str
    settings: PretrainSettings
    init: Release | None
    phases: tuple[str, ...]
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    half: bool = False


def network_card(branches: Sequence[str]) -> dict[str, Any]:
    """Return what `random_state_dicts` needs to know of a network with these branches."""
    return {
        "sizes": {name: dict(SIZES[name]) for name in branches},
        "network": dict(NETWORK),
    }


def stored_states(model: BrainSymphony, half: bool) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each branch as they are stored."""
    kind = torch.float16 if half else torch.float32
    return {
        name: {key: value.detach().cpu().to(kind) for key, value in branch.state_dict().items()}
        for name in BRANCHES
        if (branch := getattr(model, name)) is not None
    }


def as_stored(model: BrainSymphony, network: Mapping[str, Any], half: bool) -> BrainSymphony:
    """Return the network as it comes back from a release: rounded, if it is stored so."""
    return BrainSymphony.from_state_dicts(**stored_states(model, half), **network)


def write_release(
    model: BrainSymphony,
    network: Mapping[str, Any],
    folder: Path,
    origin: Origin,
    quality: Mapping[str, Any],
) -> Path:
    """Write weights and card; the card last, so that a folder with a card is complete.

    Parameters
    ----------
    model : BrainSymphony
        The network.
    network : mapping
        What cannot be read off weights, see `BrainSymphony.from_state_dicts`.
    folder : Path
        Of the release.
    origin : Origin
        Where it comes from.
    quality : mapping
        What was measured on the people held out.

    Returns
    -------
    Path
        The folder.
    """
    import yaml

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # No card while files are being replaced, and no files but those of the card.
        for path in (*(folder / name for name in CARD_FILES), *folder.glob("*.pth")):
            path.unlink(missing_ok=True)
        files, version = {}, hashlib.sha256()
        for branch, state in stored_states(model, origin.half).items():
            buffer = io.BytesIO()
            torch.save(state, buffer)
            content = buffer.getvalue()
            _write(folder / f"{branch}.pth", content)
            files[branch] = {
                "path": f"{branch}.pth",
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            version.update(content)
        card = _card(network, origin, files, version.hexdigest()[:12], quality)
        check_card(card, str(folder / CARD_FILES[0]))
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
        _write(folder / CARD_FILES[0], text.encode())
    return folder


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _card(
    network: Mapping[str, Any],
    origin: Origin,
    files: Mapping[str, Any],
    version: str,
    quality: Mapping[str, Any],
) -> dict[str, Any]:
    init, settings = origin.init, origin.settings
    known = init.card if init else {}
    start: Any = settings.start
    if init:
        start = {"release": init.name, "fingerprint": init.fingerprint}
    warning = " ".join(text for text in (known.get("warning"), origin.notice) if text)
    limit = "it knows what it was trained on; `bsym-model check` measures it on other data"
    lacks = {
        "heads": "no phenotype heads, so nothing is predicted from the release alone",
        "scaling statistics": "each run is scaled by its own median and spread",
    }
    if "gate" not in files:
        lacks["gate"] = "no weights of the fusion gate, so there is no fused embedding"
    return {
        "name": origin.name,
        "version": version,
        "trained": True,
        "summary": f"trained with bsym-model pretrain on {len(origin.training)} participants",
        "licence": known.get("licence", "that of whoever trained it"),
        **({"warning": warning} if warning else {}),
        "files": dict(files),
        "network": dict(network),
        "contract": _contract(origin, files),
        "training": {
            "program": f"bsym-bids {__version__}",
            "start": start,
            "phases": list(origin.phases),
            "participants": len(origin.training),
            "held_out_participants": len(origin.held_out),
            "settings": _plain(asdict(settings)),
        },
        "quality": dict(quality),
        "lacks": lacks,
        "limits": [*(text for text in known.get("limits", ()) if text != limit), limit],
    }


def _contract(origin: Origin, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the network was made for: of branches that were not trained, as it was before."""
    rules = origin.settings.rules
    known = dict(origin.init.card.get("contract", {})) if origin.init else {}
    contract: dict[str, Any] = {
        "rois": N_ROIS,
        "roi_order": _ORDER,
        "roi_names_sha256": roi_names_sha256(),
        "window_frames": WINDOW_LENGTH,
        "repetition_time": rules.repetition_time,
        "repetition_time_tolerance": TOLERANCE,
        "scaling": rules.scaling,
    }
    if "functional" not in origin.phases:
        contract |= known
    structural = known.get("structural_connectivity")
    if "structural" in origin.phases:
        structural = {
            "measure": "streamline count",
            "volume_normalised": rules.volume_normalised,
            "transform": rules.convention,
        }
    contract.pop("structural_connectivity", None)
    if structural and "structural" in files:
        contract["structural_connectivity"] = structural
    return contract


def _plain(value: Any) -> Any:
    """Return settings as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
