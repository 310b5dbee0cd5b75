"""Pretraining from a derivative dataset to a release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsym_bids import __version__
from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.bold.volumes import LONGEST_TR
from bsym_bids.bold.windows import WINDOW_LENGTH
from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.model.brainsymphony import BRANCHES, BrainSymphony
from bsym_bids.model.cards import is_release_name, known_releases
from bsym_bids.model.contract import FUNCTIONAL, check_contract, check_network
from bsym_bids.model.weights import Release, load_model, random_state_dicts
from bsym_bids.outputs.dataset import make_writable
from bsym_bids.outputs.publish import fingerprint
from bsym_bids.training.data import (
    ConnectomeSet,
    InputRules,
    WindowSet,
    collect_connectomes,
    collect_windows,
    groups_of,
    split_people,
)
from bsym_bids.training.figure import draw_losses
from bsym_bids.training.gate import GateObjective, embed_labelled
from bsym_bids.training.loop import Phase, Schedule, train
from bsym_bids.training.objectives import FunctionalObjective, Masking, StructuralObjective
from bsym_bids.training.release import Origin, as_stored, network_card, write_release
from bsym_bids.training.start import smoothing_state_dicts
from bsym_bids.training.validation import (
    edge_score,
    edges_on_card,
    reconstruction_on_card,
    reconstruction_score,
)

#: The branches that each phase trains.
BRANCHES_OF: Mapping[str, tuple[str, ...]] = {
    "functional": FUNCTIONAL,
    "structural": ("structural",),
    "gate": ("gate",),
}
STARTS = ("connectivity", "random")
PRECISIONS = ("float32", "bfloat16")
RELEASE, FIGURE = "release", "losses.svg"


@dataclass(frozen=True)
class PretrainSettings:
    """All that decides a training, beside the data.

    Attributes
    ----------
    start : str
        ``connectivity`` (see `bsym_bids.training.start`) or ``random``; without effect when a
        release is continued.
    steps, structural_steps, gate_steps : int
        Steps of the three phases.
    batch_size : int
        Windows, connectomes or people of a step.
    learning_rate : float
        Peak for the spatial transformer and the Perceiver. They start as something that works,
        with weights that are large where logits have to be sharp: a rate ten times the default
        destroys it.
    side_learning_rate : float
        Peak for the temporal transformer and the context module, which start at random.
    structural_learning_rate, gate_learning_rate : float
        Peaks of the other phases.
    weight_decay : float
        Of AdamW.
    warmup_share, gradient_clip
        See `bsym_bids.training.loop.Schedule`.
    validate_every : int
        Steps between validations and checkpoints.
    validation_share : float
        Share of people held out.
    masking : Masking
        What is hidden.
    rules : InputRules
        How data become input.
    gate_label : str, optional
        Column of participants.tsv that the gate is trained on; None trains no gate.
    seed : int
        Of everything that is drawn.
    threads : int
        CPU threads; the last digits hang on them.
    device : str
        ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
    precision : str
        ``float32``, or ``bfloat16`` for the products of the functional and structural phases:
        half as fast again on processors that have it, and no worse.
    """

    start: str = "connectivity"
    steps: int = 2000
    structural_steps: int = 1000
    gate_steps: int = 300
    batch_size: int = 4
    learning_rate: float = 3e-5
    side_learning_rate: float = 1e-3
    structural_learning_rate: float = 5e-4
    gate_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_share: float = 0.05
    gradient_clip: float = 1.0
    validate_every: int = 100
    validation_share: float = 0.1
    masking: Masking = field(default_factory=Masking)
    rules: InputRules = field(default_factory=InputRules)
    gate_label: str | None = None
    seed: int = 0
    threads: int = 1
    device: str = "auto"
    precision: str = "float32"

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises
        ------
        UsageError
            The message names the setting.
        """
        masking, rules = self.masking, self.rules
        low, high = masking.roi_share
        ranges = {
            "steps": self.steps >= 0 and self.structural_steps >= 0 and self.gate_steps >= 0,
            "batch_size": self.batch_size >= 1,
            "learning_rate": self.learning_rate > 0,
            "side_learning_rate": self.side_learning_rate > 0,
            "structural_learning_rate": self.structural_learning_rate > 0,
            "gate_learning_rate": self.gate_learning_rate > 0,
            "weight_decay": self.weight_decay >= 0,
            "warmup_share": 0 <= self.warmup_share < 1,
            "gradient_clip": self.gradient_clip > 0,
            "validate_every": self.validate_every >= 1,
            "validation_share": 0 <= self.validation_share < 1,
            "seed": self.seed >= 0,
            "threads": self.threads >= 1,
            "roi_share": 0 < low <= high < 1,
            "frame_share": 0 < masking.frame_share < 1,
            "sample_share": 0 < masking.sample_share < 1,
            "edge_share": 0 < masking.edge_share < 1,
            "keys_per_roi": masking.keys_per_roi >= 1,
            "repetition_time": 0 < rules.repetition_time <= LONGEST_TR,
            "window_step": rules.window_step >= 1,
            "start": self.start in STARTS,
            "precision": self.precision in PRECISIONS,
        }
        if wrong := [name for name, holds in ranges.items() if not holds]:
            raise UsageError(
                f"out of range: {', '.join(wrong)}", hint="see bsym-model pretrain --help"
            )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What there is to train on; None where the dataset has none."""

    windows: WindowSet | None
    connectomes: ConnectomeSet | None
    labels: Mapping[str, float]


def pretrain(
    derivatives: Path,
    out: Path,
    settings: PretrainSettings,
    init: Release | None = None,
    *,
    name: str = "own",
    notice: str = "",
    half: bool = False,
) -> Path:
    """Train on the outputs of the participant level; a killed training goes on where it was.

    Parameters
    ----------
    derivatives : Path
        Output folder of the participant level; time series, connectomes or both.
    out : Path
        Folder for the checkpoint, the log, the figure and the release.
    settings : PretrainSettings
        How.
    init : Release, optional
        Release to continue from (domain adaptation).
    name : str
        Name of the new release.
    notice : str
        Sentence for the card and for every output of the model.
    half : bool
        Whether to store weights in half precision; what the card says is measured after rounding.

    Returns
    -------
    Path
        Folder of the new release.

    Raises
    ------
    InputMissingError
        When there is nothing to train on.
    UsageError, BadDataError
        For settings that do not fit each other or the data.
    """
    settings.check()
    make_writable(out)
    torch.set_num_threads(settings.threads)
    device = _device(settings.device)
    check_name(name)
    windows = collect_windows(derivatives, settings.rules, out / "data")
    connectomes = collect_connectomes(derivatives, settings.rules)
    if windows is None and connectomes is None:
        raise InputMissingError(
            f"{derivatives}: no denoised time series and no connectomes",
            hint="run the participant level first, and name its output folder",
        )
    groups = groups_of(windows, connectomes)
    training, held_out = split_people(groups, settings.validation_share, settings.seed)
    data = TrainingData(windows, connectomes, _labels(derivatives, settings.gate_label))
    model, card = _start(settings, init, data, training)
    trainer = _Trainer(model.to(device), settings, data, training, held_out, device)
    phases = trainer.phases()
    decisive = {
        **asdict(settings),
        "device": device.type,
        "program": __version__,
        "torch": str(torch.__version__),
        "init": init.fingerprint if init else None,
        "time series": windows.key if windows else None,
        "connectomes": connectomes.key if connectomes else None,
        "labels": fingerprint(data.labels),
        "training": training,
        "held_out": held_out,
    }
    rows = train(list(phases.values()), model, out, settings.seed, decisive)
    draw_losses(rows, out / FIGURE)
    if not notice and windows is not None and windows.simulated:
        notice = f"{name} was trained on simulated people."
    stored = as_stored(_without_untrained(model.cpu(), init, phases), card["network"], half)
    origin = Origin(
        name, notice, settings, init, tuple(phases), tuple(training), tuple(held_out), half
    )
    quality = _quality(stored, data, held_out, settings)
    return write_release(stored, card["network"], out / RELEASE, origin, quality)


def check_name(name: str) -> None:
    """Refuse a name that ``--model`` could not take.

    Raises
    ------
    UsageError
        For a name of the program's own, and for one that is no name.
    """
    if name in known_releases():
        raise UsageError(f"the name {name!r} is taken", hint="choose another with --name")
    if not is_release_name(name):
        raise UsageError(
            f"{name!r} is not a name for a release",
            hint="letters, digits, '.', '_' and '-' are allowed in --name",
        )


def _without_untrained(
    model: BrainSymphony, init: Release | None, phases: Iterable[str]
) -> BrainSymphony:
    """Take out the branches that are as random as before the training."""
    if init is not None and init.trained:
        return model
    kept = {branch for phase in phases for branch in BRANCHES_OF[phase]}
    for branch in BRANCHES:
        if branch not in kept:
            setattr(model, branch, None)
    return model


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU", hint="say --device cpu")
    return torch.device(wanted)


def _start(
    settings: PretrainSettings, init: Release | None, data: TrainingData, training: list[str]
) -> tuple[BrainSymphony, dict[str, Any]]:
    """Return the network to train and the card that describes it, without branches of no data."""
    if init is not None:
        check_contract(init, WINDOW_LENGTH)
        model = load_model(init, settings.seed)
        if data.windows is not None and settings.steps:
            check_network(init, model, WINDOW_LENGTH)
        return model, dict(init.card)
    branches = [
        *(FUNCTIONAL if data.windows is not None and settings.steps else ()),
        *(("structural",) if data.connectomes is not None and settings.structural_steps else ()),
        *(("gate",) if settings.gate_label is not None and settings.gate_steps else ()),
    ]
    card = network_card(branches)
    if settings.start == "connectivity":
        average = None
        if data.connectomes is not None and len(own := data.connectomes.of(training)):
            average = data.connectomes.connectomes[own].mean(0)
        states = smoothing_state_dicts(
            card, group_functional_connectivity(), settings.seed, average
        )
    else:
        states = random_state_dicts(card, settings.seed)
    return BrainSymphony.from_state_dicts(**states, **card["network"]), card


def _labels(derivatives: Path, column: str | None) -> dict[str, float]:
    """Return a column of participants.tsv by participant, those without a number left out."""
    if column is None:
        return {}
    import pandas as pd

    path = derivatives / "participants.tsv"
    try:
        table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, na_values="n/a")
    except FileNotFoundError as error:
        raise InputMissingError(f"{path}: is absent, but the gate needs its labels") from error
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read: {error}") from error
    if column not in table or "participant_id" not in table:
        raise BadDataError(f"{path}: has no column {column!r}, or no participant_id")
    values = pd.to_numeric(table[column], errors="coerce")
    people = table["participant_id"].str.removeprefix("sub-")
    return {str(p): float(v) for p, v in zip(people, values, strict=True) if np.isfinite(v)}


class _Trainer:
    """Makes the phases of a training from data and settings."""

    def __init__(
        self,
        model: BrainSymphony,
        settings: PretrainSettings,
        data: TrainingData,
        training: list[str],
        held_out: list[str],
        device: torch.device,
    ) -> None:
        self.model, self.settings, self.data = model, settings, data
        self.training, self.held_out, self.device = training, held_out, device

    def phases(self) -> dict[str, Callable[[], Phase]]:
        """Return what there is to train by name, in order.

        Raises
        ------
        UsageError, BadDataError
            When there is nothing, or a gate is asked for that cannot be trained.
        """
        model, data = self.model, self.data
        phases: dict[str, Callable[[], Phase]] = {}
        if data.windows is not None and model.perceiver is not None and self.settings.steps:
            phases["functional"] = self._functional
        if data.connectomes is not None and model.structural and self.settings.structural_steps:
            phases["structural"] = self._structural
        if self.settings.gate_label is not None and self.settings.gate_steps:
            self._check_gate()
            phases["gate"] = self._gate
        if not phases:
            raise UsageError(
                "there is nothing to train: no branch of the network has both data and steps",
                hint="give it steps, data of a kind that it takes, or another --init",
            )
        return phases

    def _check_gate(self) -> None:
        """Refuse early what the last phase could not do."""
        data, label = self.data, self.settings.gate_label
        if data.windows is None or data.connectomes is None or self.model.gate is None:
            raise UsageError(
                "a gate is trained on people with time series and a connectome, in a network that "
                "has one",
                hint="leave out --gate-label",
            )
        both = set(data.windows.participants) & set(data.connectomes.participants)
        usable = both & set(data.labels) & set(self.training)
        if len(usable) < 2:
            raise BadDataError(
                f"{len(usable)} participants to train on have a {label!r}, time series and a "
                "connectome: too few to train the gate on",
                hint="leave out --gate-label",
            )

    def _schedule(
        self, steps: int, rate: float, rates: Mapping[str, float] | None = None
    ) -> Schedule:
        chosen = self.settings
        return Schedule(
            steps,
            rate,
            chosen.weight_decay,
            chosen.warmup_share,
            chosen.gradient_clip,
            chosen.validate_every,
            rates or {},
        )

    def _draw(self, indices: NDArray[np.int64], random: torch.Generator) -> NDArray[np.int64]:
        """Draw a batch, sorted since neighbours in the file are read faster."""
        drawn = torch.randint(len(indices), (self.settings.batch_size,), generator=random)
        return np.sort(indices[drawn.numpy()])

    def _rounding(self) -> torch.autocast:
        """Return what has products computed in the precision of the settings."""
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _functional(self) -> Phase:
        windows, chosen = self.data.windows, self.settings
        assert windows is not None
        objective = FunctionalObjective(self.model, chosen.masking).to(self.device)
        indices = windows.of(self.training)

        def loss(random: torch.Generator) -> Mapping[str, Tensor]:
            batch = windows.batch(self._draw(indices, random), self.device)
            with self._rounding():
                return objective(batch, random)

        score = partial(reconstruction_score, self.model, windows, windows.of(self.held_out))
        sides = dict.fromkeys(("temporal", "frame_decoder", "context"), chosen.side_learning_rate)
        schedule = self._schedule(chosen.steps, chosen.learning_rate, sides)
        return Phase("functional", objective, loss, self._if_held_out(score, windows), schedule)

    def _structural(self) -> Phase:
        connectomes, chosen = self.data.connectomes, self.settings
        assert connectomes is not None
        objective = StructuralObjective(self.model, chosen.masking).to(self.device)
        indices = connectomes.of(self.training)

        def loss(random: torch.Generator) -> Mapping[str, Tensor]:
            batch = connectomes.batch(self._draw(indices, random), self.device)
            with self._rounding():
                return objective(batch, random)

        score = partial(edge_score, self.model, connectomes, connectomes.of(self.held_out))
        schedule = self._schedule(chosen.structural_steps, chosen.structural_learning_rate)
        return Phase("structural", objective, loss, self._if_held_out(score, connectomes), schedule)

    def _if_held_out(
        self, score: Callable[[], float], data: WindowSet | ConnectomeSet
    ) -> Callable[[], float] | None:
        return score if len(data.of(self.held_out)) else None

    def _gate(self) -> Phase:
        chosen, data = self.settings, self.data
        assert data.windows is not None and data.connectomes is not None
        embedded = embed_labelled(
            self.model, data.windows, data.connectomes, data.labels, self.training
        )
        objective = GateObjective(self.model).to(self.device)
        indices, others = embedded.of(self.training), embedded.of(self.held_out)

        def loss(random: torch.Generator) -> Mapping[str, Tensor]:
            return objective(*embedded.batch(self._draw(indices, random), self.device))

        def score() -> float:
            with torch.no_grad():
                *inputs, labels = embedded.batch(others, self.device)
                error = (objective.predict(*inputs) - labels).square().mean()
            return 1 - float(error)

        schedule = self._schedule(chosen.gate_steps, chosen.gate_learning_rate)
        return Phase("gate", objective, loss, score if len(others) else None, schedule)


def _quality(
    model: BrainSymphony, data: TrainingData, held_out: list[str], settings: PretrainSettings
) -> dict[str, Any]:
    """Measure the trained network on the people held out, for the card."""
    measured: dict[str, Any] = {}
    windows, connectomes = data.windows, data.connectomes
    if windows is not None and model.perceiver is not None and len(windows.of(held_out)):
        measured["reconstruction"] = reconstruction_on_card(model, windows, held_out, settings.seed)
    if connectomes is not None and model.structural and len(connectomes.of(held_out)):
        measured["edges"] = edges_on_card(
            model, connectomes, held_out, settings.rules, settings.seed
        )
    return measured
