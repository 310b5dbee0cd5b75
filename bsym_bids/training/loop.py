"""The training loop: a phase per group of branches, checkpoints, a log.

Everything that is drawn at a step comes from a generator seeded by the phase and the step, and the
learning rate is a function of the step. A run that is killed and goes on from its checkpoint
therefore ends with the same bits as one that was not, on the same machine with as many threads.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsym_bids.errors import BadDataError, OutputIOError
from bsym_bids.outputs.publish import explained
from bsym_bids.outputs.tables import Table

LOGGER = logging.getLogger("bsym_bids")
CHECKPOINT = "checkpoint.pt"
LOG = "log.tsv"
LOG_COLUMNS = {
    "phase": "functional, structural or gate",
    "step": "Steps of the phase so far; 0 is before any",
    "objective": "What was predicted, or validation",
    "loss": "Mean squared error, mean over the steps since the last row; of validation 1 - R2",
    "rate_share": "Learning rates as a share of their peaks",
    "seconds": "Since the phase began, breaks not counted",
}


@dataclass(frozen=True)
class Schedule:
    """How a phase is trained.

    Attributes
    ----------
    steps : int
        Steps of AdamW.
    learning_rate : float
        Its peak; it rises linearly over ``warmup_share`` of the steps and falls with a cosine.
    rates : mapping of str to float
        Other peaks, by the name of a part of the objective.
    weight_decay : float
        Of AdamW.
    warmup_share : float
        Share of the steps.
    gradient_clip : float
        Largest norm of the gradient.
    validate_every : int
        Steps between validations; each is followed by a checkpoint.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup_share: float = 0.05
    gradient_clip: float = 1.0
    validate_every: int = 100
    rates: Mapping[str, float] = field(default_factory=dict)

    def share(self, step: int) -> float:
        """Return which share of its peak a learning rate has at a step, counted from 0."""
        warmup = max(1.0, self.warmup_share * self.steps)
        return min(1.0, (step + 1) / warmup) * (1 + cos(pi * step / self.steps)) / 2


@dataclass(frozen=True, eq=False)
class Phase:
    """Something to train.

    Attributes
    ----------
    name : str
        In the log.
    objective : nn.Module
        Whose parameters are trained.
    loss : callable
        Maps a generator to the losses of one step, by objective, with their sum as ``total``.
    validate : callable
        Returns the score of the present weights on people who were held out; higher is better.
        None when there are none.
    schedule : Schedule
        How.
    """

    name: str
    objective: nn.Module
    loss: Callable[[torch.Generator], Mapping[str, Tensor]]
    validate: Callable[[], float] | None
    schedule: Schedule


@dataclass
class Progress:
    """What a checkpoint holds beside weights.

    Attributes
    ----------
    phase, step : int
        Index of the phase, and steps of it that are done.
    seconds : float
        Spent on the phase.
    best_score : float
        Of the phase so far.
    rows : list of dict
        Of the log.
    """

    phase: int = 0
    step: int = 0
    seconds: float = 0.0
    best_score: float = -float("inf")
    rows: list[dict[str, Any]] = field(default_factory=list)


def generator_of(seed: int, phase: str, step: int) -> torch.Generator:
    """Return the source of everything that is drawn at one step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {phase} {step}".encode()))


def train(
    phases: Sequence[Callable[[], Phase]],
    model: nn.Module,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Train one phase after the other, going on from a checkpoint where there is one.

    At the end of a phase the weights with the best validation score are kept; those before the
    first step take part.

    Parameters
    ----------
    phases : sequence of callable
        Each makes a phase, once those before it are done.
    model : nn.Module
        Whose weights are saved: all phases train parts of it.
    out : Path
        Folder of checkpoint and log.
    seed : int
        Of everything that is drawn.
    settings : mapping
        What decides the result, JSON-like. A checkpoint of other settings is refused.

    Returns
    -------
    list of dict
        Rows of the log.

    Raises
    ------
    BadDataError
        For a checkpoint of other settings or that cannot be read, and when the loss is not finite.
    OutputIOError
        When the disk is full.
    """
    checkpoint = _read_checkpoint(out / CHECKPOINT, settings)
    progress = Progress()
    if checkpoint:
        progress = Progress(**checkpoint["progress"])
        model.load_state_dict(checkpoint["model"])
        LOGGER.info("going on from %s", out / CHECKPOINT)
    for index in range(progress.phase, len(phases)):
        phase = phases[index]()
        state = checkpoint if checkpoint and progress.phase == index else None
        if state is None:
            progress = Progress(phase=index, rows=progress.rows)
        _train_phase(phase, model, out, seed, settings, progress, state)
        checkpoint = None
    _write_log(out, progress.rows)
    return progress.rows


def _train_phase(
    phase: Phase,
    model: nn.Module,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
    progress: Progress,
    state: Mapping[str, Any] | None,
) -> None:
    schedule = phase.schedule
    parameters = list(phase.objective.requires_grad_(True).parameters())
    optimiser = _optimiser(phase.objective, schedule)
    peaks = [group["lr"] for group in optimiser.param_groups]
    best = _weights(phase.objective)
    if state is not None:
        phase.objective.load_state_dict(state["objective"])
        optimiser.load_state_dict(state["optimiser"])
        best = state["best"]
    before, started = progress.seconds, time.perf_counter()
    gathered: dict[str, list[float]] = {}

    def score() -> None:
        nonlocal best
        progress.seconds = before + time.perf_counter() - started
        share = schedule.share(progress.step - 1) if progress.step else 0.0
        common = {"phase": phase.name, "step": progress.step}
        rest = {"rate_share": share, "seconds": round(progress.seconds, 1)}
        for name, values in gathered.items():
            mean = sum(values) / len(values)
            progress.rows.append({**common, "objective": name, "loss": mean, **rest})
        said = {name: round(sum(values) / len(values), 4) for name, values in gathered.items()}
        gathered.clear()
        if phase.validate is not None:
            phase.objective.eval()
            reached = phase.validate()
            phase.objective.train()
            if not isfinite(reached):
                raise BadDataError(
                    f"{phase.name}: the participants held out cannot be scored",
                    hint="their data may be constant; choose others with --seed",
                )
            loss = 1 - reached
            progress.rows.append({**common, "objective": "validation", "loss": loss, **rest})
            said["validation"] = round(reached, 4)
            if reached > progress.best_score:
                progress.best_score, best = reached, _weights(phase.objective)
        elif progress.step:
            best = _weights(phase.objective)
        LOGGER.info("%s, step %d of %d: %s", phase.name, progress.step, schedule.steps, said)

    if progress.step == 0 and state is None:
        score()
    while progress.step < schedule.steps:
        losses = phase.loss(generator_of(seed, phase.name, progress.step))
        if not torch.isfinite(losses["total"]):
            raise BadDataError(
                f"{phase.name}: the loss at step {progress.step} is not finite",
                hint="choose a lower --learning-rate",
            )
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.share(progress.step)
        optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.gradient_clip)
        optimiser.step()
        progress.step += 1
        for name, loss in losses.items():
            if name != "total":
                gathered.setdefault(name, []).append(loss.item())
        last = progress.step == schedule.steps
        due = progress.step % schedule.validate_every == 0
        if due or last:
            score()
            _write_checkpoint(out, model, phase.objective, optimiser, best, progress, settings)
    phase.objective.load_state_dict(best)
    phase.objective.requires_grad_(False)


def _optimiser(objective: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return AdamW with a group for each peak of the learning rate, at that peak."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        peak = schedule.rates.get(name.split(".")[0], schedule.learning_rate)
        groups.setdefault(peak, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "lr": peak} for peak, members in groups.items()],
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
    )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _write_checkpoint(
    out: Path,
    model: nn.Module,
    objective: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    progress: Progress,
    settings: Mapping[str, Any],
) -> None:
    """Replace the checkpoint in one step, so that a kill leaves the old or the new one."""
    path = out / CHECKPOINT
    part = path.with_name(f".{path.name}.part")
    with explained(path):
        try:
            torch.save(
                {
                    "settings": dict(settings),
                    "progress": vars(progress),
                    "model": model.state_dict(),
                    "objective": objective.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "best": dict(best),
                },
                part,
            )
        except RuntimeError as error:  # torch's own for a write that fails
            part.unlink(missing_ok=True)
            raise OutputIOError(f"{path}: cannot be written: {error}") from error
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    _write_log(out, progress.rows)


def _read_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        stored = checkpoint["settings"]
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise BadDataError(
            f"{path}: cannot be read: {str(error).splitlines()[0]}",
            hint="take it away to start anew, or name another output folder",
        ) from error
    different = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
    if different:
        raise BadDataError(
            f"{path}: was made with other settings or data ({', '.join(sorted(different))})",
            hint="repeat the command that it is from, or name another output folder",
        )
    return checkpoint


def _write_log(out: Path, rows: list[dict[str, Any]]) -> None:
    columns = {name: [row[name] for row in rows] for name in LOG_COLUMNS}
    path = out / LOG
    part = path.with_name(f".{path.name}.part")
    with explained(path):
        Table(columns).write(part)
        os.replace(part, path)
