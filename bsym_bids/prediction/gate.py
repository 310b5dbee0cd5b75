r"""Prediction from both embeddings through the adaptive gate: the fusion of the model's paper.

The functional and the structural embedding are mixed by the network's gate, sigmoid(W [f; s] + b);
the mixture is averaged within networks; a linear head predicts from that. Gate and head are learned
from training units alone, the embeddings stay as they are.

How it is learned keeps a gate of 2 D^2 weights from memorising a few hundred people:

- For a given gate the head is not trained but solved: ridge regression, or logistic regression for
  classes. The penalty is chosen by cross-validation on the half-and-half mixture, whose features
  do not know any label; chosen on a trained gate's features it would be far too weak.
- The gate descends the error of units that are *left out* of the head's fit (`_left_out_error`),
  with its exact gradient through the ridge solution (as kernels are learned in Chapelle et al.
  2002, Machine Learning 46:131). Classes are regressed on as indicators here.
- It starts from half and half. First b alone is learned, the same mixture for everyone, which
  needs the averages within networks only; then W and b.
- Some groups of the training units are set aside (`_choose`): after how many steps they are
  predicted best decides how many steps the gate is trained for on all, which may be none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError
from bsym_bids.model.threads import in_threads, one_thread
from bsym_bids.prediction import logistic, ridge
from bsym_bids.prediction.folds import make_folds
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target

if TYPE_CHECKING:
    from torch import Tensor

    from bsym_bids.training.gate import GateReadout

#: Folds of the training units: heads leave them out in turn, and the first is set aside.
_FOLDS, _FEWEST_FOLDS = 5, 3
#: At most so many steps of b alone, and of W and b.
_CONSTANT_STEPS, _FULL_STEPS = 12, 6
#: Length of the latter: what each weight, and each offset, is moved by.
_WEIGHT_RATE, _BIAS_RATE = 0.001, 0.02
#: How much of the slopes and their squares is kept from step to step; slopes below are none.
_MEMORY, _NO_SLOPE = (0.9, 0.999), 1e-8
#: Steps count as better if they lower the error of those set aside by this share.
_WORTHWHILE = 0.002
#: Units that one thread works on at a time.
_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class GateHead:
    """A trained gate and head.

    Attributes
    ----------
    mean, spread : ndarray, shape (2, R, D)
        Of the functional and the structural embedding over training units; spread is infinite for
        what does not vary there, or is not there: it becomes 0.
    gate_weight, gate_bias : ndarray, shapes (D, 2 D) and (D,)
        W and b of the module's text.
    head_weight, head_bias : ndarray, shapes (m, networks * D) and (m,)
        Of the label, or of the logits of the classes (of two, the second's).
    n_classes : int
        0 for numbers.
    penalty : float
        Of the head's squared weights.
    steps : ndarray of int, shape (2,)
        So many times b alone, and W and b, were moved.
    held_out_error : ndarray, shape (2,)
        Squared error of the units set aside, as a share of what predicting the mean would leave:
        of half and half, and after these steps.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    gate_weight: NDArray[np.float32]
    gate_bias: NDArray[np.float32]
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]
    n_classes: int
    penalty: float
    steps: NDArray[np.int64]
    held_out_error: NDArray[np.float64]

    def predict(
        self, functional: NDArray[np.float32], structural: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Predict the label of each unit.

        Parameters
        ----------
        functional, structural : ndarray, shape (N, R, D)
            Embeddings; NaN for missing ROIs, which are taken to be as the training mean.

        Returns
        -------
        ndarray, shape (N,) or (N, classes)
            Numbers or probabilities; NaN for units that have one of the embeddings at most.

        Raises
        ------
        BadDataError
            The embeddings are of other sizes than those trained on.
        """
        import torch

        from bsym_bids.model.brainsymphony import Gate
        from bsym_bids.training.gate import GateReadout

        present = _present(functional, structural, self.mean.shape[1:])
        readout = GateReadout(Gate(width=len(self.gate_bias)), len(self.head_bias))
        own = {
            "gate.gate_proj.weight": self.gate_weight,
            "gate.gate_proj.bias": self.gate_bias,
            "head.weight": self.head_weight,
            "head.bias": self.head_bias,
        }
        state = {name: torch.from_numpy(np.array(values)) for name, values in own.items()}
        readout.load_state_dict({**readout.state_dict(), **state})
        inputs = _Inputs(functional, structural, self.mean, self.spread)
        rows = np.flatnonzero(present)
        shape = (self.n_classes,) if self.n_classes else ()
        predicted = np.full((len(present), *shape), np.nan)
        if len(rows):
            with one_thread() as threads:
                found = inputs.through(readout.averaged, rows, threads)
                raw = readout.head(found).detach().double().numpy()
            predicted[rows] = logistic.probabilities(raw) if self.n_classes else raw[:, 0]
        return predicted

    def state(self) -> dict[str, NDArray]:
        """Return everything as arrays by name, for `numpy.savez`."""
        return {part.name: np.asarray(getattr(self, part.name)) for part in fields(self)}


def fit_gate(
    functional: NDArray[np.float32],
    structural: NDArray[np.float32],
    labels: NDArray[np.float64],
    training: NDArray[np.bool_],
    groups: Sequence[str],
    n_classes: int | None,
    seed: int,
) -> GateHead:
    """Train gate and head on training units.

    Parameters
    ----------
    functional, structural : ndarray, shape (N, R, D)
        Embeddings; NaN for missing ROIs. Units that do not train are not looked at.
    labels : ndarray, shape (N,)
        Numbers, or indices of classes.
    training : ndarray of bool, shape (N,)
        Who trains; those without label or without one of the embeddings do not.
    groups : sequence of str, length N
        Units of one group are set aside together.
    n_classes : int, optional
        How many classes there are; None for numbers.
    seed : int
        Of who is set aside.

    Returns
    -------
    GateHead

    Raises
    ------
    BadDataError
        Embeddings are not of the atlas's ROIs or differ in size; there are fewer than 3 groups.

    Notes
    -----
    Embeddings are standardised per ROI and dimension, labels too. The time is that of the steps of
    W, of which each takes 12 R D^2 floating-point operations per unit, and of the penalty and the
    steps of b, with matrices of training units by training units.
    """
    training = training & np.isfinite(labels) & _present(functional, structural)
    rows = np.flatnonzero(training)
    inputs = _Inputs.learned(functional, structural, rows)
    own = labels[rows]
    task = CLASSIFICATION if n_classes else REGRESSION
    folds = _folds(Target("label", task, own), np.asarray(groups, dtype=str)[rows], seed)
    targets = logistic.indicators(own, n_classes) if n_classes else own[:, None]
    centre, scale = targets.mean(axis=0), targets.std(axis=0)
    scale[scale == 0] = 1
    with one_thread() as threads:
        problem = _Problem.of(inputs, rows, (targets - centre) / scale, folds, threads)
        steps, errors = _choose(problem)
        bias = _constant_gates(problem, steps[0])[-1]
        readout = _readout(len(bias), bias)
        for _ in islice(_train_further(problem, readout), steps[1]):
            pass
        features = problem.features(readout).numpy()
        if n_classes:
            penalty = _logistic_penalty(problem.mixed(problem.half).numpy(), targets, folds)
            weight, offset = _logistic_head(features, targets, penalty)
        else:
            penalty = problem.penalty
            weight, offset = _ridge_head(features, targets, penalty)
    return GateHead(
        mean=inputs.mean,
        spread=inputs.spread,
        gate_weight=readout.gate.gate_proj.weight.detach().numpy().copy(),
        gate_bias=readout.gate.gate_proj.bias.detach().numpy().copy(),
        head_weight=weight.T.astype(np.float32),
        head_bias=offset.astype(np.float32),
        n_classes=n_classes or 0,
        penalty=penalty,
        steps=np.array(steps),
        held_out_error=np.array(errors),
    )


def _present(
    functional: NDArray[np.float32],
    structural: NDArray[np.float32],
    expected: tuple[int, ...] | None = None,
) -> NDArray[np.bool_]:
    """Return which units have something of both embeddings, or raise BadDataError."""
    from bsym_bids import atlas

    expected = expected or (atlas.N_ROIS, functional.shape[-1])
    for name, values in (("functional", functional), ("structural", structural)):
        if values.ndim != 3 or values.shape[1:] != expected or len(values) != len(functional):
            raise BadDataError(
                f"{name} embeddings are of shape {values.shape}, not {len(functional)} times "
                f"{' x '.join(map(str, expected))}",
                hint="take both embeddings from the same model and the same units",
            )
    return np.all(
        [np.array([np.isfinite(unit).any() for unit in part]) for part in (functional, structural)],
        axis=0,
    )


def _folds(target: Target, groups: NDArray[np.str_], seed: int) -> NDArray[np.int64]:
    """Deal training units out to folds, named 0, 1, ..."""
    n_groups = len(set(groups.tolist()))
    if n_groups < _FEWEST_FOLDS:
        raise BadDataError(
            f"a gate needs {_FEWEST_FOLDS} groups of labelled units to train on; there are "
            f"{n_groups}",
            hint="choose another --group-by, or fewer --folds",
        )
    smallest = n_groups
    if not target.is_regression:
        smallest = np.unique(target.values, return_counts=True)[1].min()
    n_folds = max(_FEWEST_FOLDS, min(_FOLDS, n_groups, smallest))
    if target.is_regression:
        # Spread evenly, by up to as many bins as there are folds: all these units train.
        ranks = np.argsort(np.argsort(target.values, kind="stable"), kind="stable")
        n_bins = max(1, min(n_folds, len(ranks) // n_folds))
        bins = ranks * n_bins // len(ranks)
        names = tuple(str(number) for number in range(n_bins))
        target = replace(target, task=CLASSIFICATION, values=bins.astype(float), classes=names)
    dealt = make_folds(target, groups.tolist(), n_folds=n_folds, n_repeats=1, seed=seed)
    return np.unique(dealt.assignment[0], return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Embeddings of all units (N, R, D), and what standardises them, as in `GateHead`."""

    functional: NDArray[np.float32]
    structural: NDArray[np.float32]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def learned(
        cls, functional: NDArray[np.float32], structural: NDArray[np.float32], rows: NDArray
    ) -> _Inputs:
        shape = (2, *functional.shape[1:])
        mean, spread = np.zeros(shape, np.float32), np.full(shape, np.inf, np.float32)
        for place, part in enumerate((functional, structural)):
            for roi in range(shape[1]):
                own = part[rows, roi].astype(np.float64)
                known = np.isfinite(own)
                n_known = np.maximum(known.sum(axis=0), 1)
                middle = np.where(known, own, 0).sum(axis=0) / n_known
                width = np.sqrt((np.where(known, own - middle, 0) ** 2).sum(axis=0) / n_known)
                mean[place, roi] = middle
                # Of constants, what is left is rounding.
                spread[place, roi] = np.where(width > 1e-6 * np.abs(middle), width, np.inf)
        return cls(functional, structural, mean, spread)

    def of(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return both embeddings of some units, standardised, 0 where they are missing."""
        import torch

        found = []
        for place, part in enumerate((self.functional, self.structural)):
            own = (part[rows] - self.mean[place]) / self.spread[place]
            found.append(torch.from_numpy(np.where(np.isfinite(own), own, 0).astype(np.float32)))
        return found[0], found[1]

    def through(
        self,
        mapping: Callable[[Tensor, Tensor], Tensor],
        rows: NDArray[np.int64],
        threads: int,
    ) -> Tensor:
        """Return what a function of both embeddings gives for some units, without gradient."""
        import torch

        with torch.no_grad():
            parts = in_threads(lambda some: mapping(*self.of(some)), _split(rows), threads)
        return torch.cat(parts)


def _split(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]


@dataclass(frozen=True, eq=False)
class _Problem:
    """Some training units.

    Attributes
    ----------
    inputs : _Inputs
        Of all units of the cohort.
    rows : ndarray of int, shape (n,)
        Which of them these are.
    functional, structural : Tensor, shape (n, networks, D)
        Averages within networks, float64.
    targets : Tensor, shape (n, m)
        Standardised labels or indicators of classes, float64.
    folds : Tensor, shape (n,)
        Who is left out together.
    threads : int
        How many may be used.
    """

    inputs: _Inputs
    rows: NDArray[np.int64]
    functional: Tensor
    structural: Tensor
    targets: Tensor
    folds: Tensor
    threads: int

    @classmethod
    def of(
        cls,
        inputs: _Inputs,
        rows: NDArray[np.int64],
        targets: NDArray[np.float64],
        folds: NDArray[np.int64],
        threads: int,
    ) -> _Problem:
        import torch

        average = _readout(inputs.mean.shape[2]).average

        def averaged(functional: Tensor, structural: Tensor) -> Tensor:
            return torch.stack([average @ functional, average @ structural], 1)

        both = inputs.through(averaged, rows, threads).double()
        labels, dealt = torch.from_numpy(targets), torch.from_numpy(folds)
        return cls(inputs, rows, both[:, 0], both[:, 1], labels, dealt, threads)

    def subset(self, kept: Tensor) -> _Problem:
        """Return some of the units."""
        parts = ("functional", "structural", "targets", "folds")
        chosen = {name: getattr(self, name)[kept] for name in parts}
        return replace(self, rows=self.rows[kept.numpy()], **chosen)

    @property
    def half(self) -> Tensor:
        """(D,), b of the gate that mixes half and half."""
        return self.targets.new_zeros(self.functional.shape[-1])

    def mixed(self, bias: Tensor) -> Tensor:
        """Return features (n, networks * D) of a gate that is the same for everyone."""
        gate = bias.sigmoid()
        return (gate * self.functional + (1 - gate) * self.structural).flatten(1)

    def features(self, readout: GateReadout) -> Tensor:
        """Return features (n, networks * D) of any gate, float64."""
        return self.inputs.through(readout.averaged, self.rows, self.threads).double()

    @cached_property
    def penalty(self) -> float:
        """Penalty with the smallest error of left out units on the half-and-half mixture."""
        features = self.mixed(self.half)
        scale = float((features - features.mean(0)).square().sum(1).mean()) or 1.0
        candidates = [scale * each for each in sorted(ridge.PENALTIES, reverse=True)]
        errors = [
            float(_left_out_error(features, self.targets, self.folds, each)) for each in candidates
        ]
        return candidates[int(np.argmin(errors))]

    def left_out_error(self, features: Tensor) -> Tensor:
        """Return the error that the gate is to lower."""
        return _left_out_error(features, self.targets, self.folds, self.penalty)


def _left_out_error(features: Tensor, targets: Tensor, folds: Tensor, penalty: float) -> Tensor:
    """Return the mean squared error of ridge regression, each fold left out of the fit in turn.

    By the block formula in `bsym_bids.prediction.ridge`; it can be differentiated by the features.
    """
    import torch

    centred = features - features.mean(0)
    inner = centred @ centred.T
    inner = inner + penalty * torch.eye(len(inner), dtype=inner.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    weighted = inverse.sum(1, keepdim=True)
    projection = inverse - weighted @ weighted.T / weighted.sum()
    residuals = projection @ targets
    total = targets.new_zeros(())
    for fold in torch.unique(folds):
        own = torch.nonzero(folds == fold)[:, 0]
        block = projection[own][:, own]
        total = total + torch.linalg.solve(block, residuals[own]).square().sum()
    return total / targets.numel()


def _readout(width: int, bias: Tensor | None = None) -> GateReadout:
    """Return a gate that is the same for everyone, and a head of nothing."""
    import torch

    from bsym_bids.model.brainsymphony import Gate
    from bsym_bids.training.gate import GateReadout

    readout = GateReadout(Gate(width=width))
    with torch.no_grad():
        readout.gate.gate_proj.weight.zero_()
        if bias is not None:
            readout.gate.gate_proj.bias.copy_(bias)
    return readout


def _constant_gates(problem: _Problem, steps: int) -> list[Tensor]:
    """Return b of half and half, and after each step of a quasi-Newton descent (L-BFGS)."""
    import torch
    from scipy.optimize import minimize

    def error(offset: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        bias = torch.from_numpy(offset.copy()).requires_grad_()
        found = problem.left_out_error(problem.mixed(bias))
        (slope,) = torch.autograd.grad(found, bias)
        return float(found.detach()), slope.numpy()

    passed = [problem.half.numpy()]
    if steps:
        minimize(
            error,
            passed[0],
            jac=True,
            method="L-BFGS-B",
            callback=lambda offset: passed.append(offset.copy()),
            options={"maxiter": steps, "ftol": 0, "gtol": 1e-8},
        )
    return [torch.from_numpy(offset) for offset in passed]


def _train_further(problem: _Problem, readout: GateReadout) -> Iterator[None]:
    """Move W and b of a gate that is the same for everyone, and stop after each step.

    The steps are Adam's (Kingma & Ba 2015) on the whole of the units. Quasi-Newton steps in W are
    so long that the first one memorises everyone.
    """
    import torch

    parts = (readout.gate.gate_proj.weight, readout.gate.gate_proj.bias)
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in parts]
    features = problem.mixed(parts[1].detach().double())
    for step in count(1):
        slopes = _gradient(problem, readout, features)
        with torch.no_grad():
            for part, slope, (first, second), rate in zip(
                parts, slopes, moments, (_WEIGHT_RATE, _BIAS_RATE), strict=True
            ):
                first.lerp_(slope, 1 - _MEMORY[0])
                second.lerp_(slope**2, 1 - _MEMORY[1])
                spread = (second / (1 - _MEMORY[1] ** step)).sqrt() + _NO_SLOPE
                part -= rate * first / (1 - _MEMORY[0] ** step) / spread
        yield
        features = problem.features(readout)


def _gradient(problem: _Problem, readout: GateReadout, features: Tensor) -> list[Tensor]:
    """Return the gradient of the error of left out units by W and b.

    First by the features, of all units together; from there on each unit by itself, so that no
    more than a few of them have to be in memory.
    """
    import torch

    parameters = [readout.gate.gate_proj.weight, readout.gate.gate_proj.bias]
    leaf = features.clone().requires_grad_()
    (by_features,) = torch.autograd.grad(problem.left_out_error(leaf), leaf)
    by_features = by_features.float()

    def of_some(places: NDArray[np.int64]) -> tuple[Tensor, ...]:
        found = readout.averaged(*problem.inputs.of(problem.rows[places]))
        return torch.autograd.grad(found, parameters, grad_outputs=by_features[places])

    parts = in_threads(of_some, _split(np.arange(len(problem.rows))), problem.threads)
    return [torch.stack(each).sum(0) for each in zip(*parts, strict=True)]


def _choose(problem: _Problem) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the numbers of steps that predict a fold that is set aside best, and its errors.

    The errors are those without any step, and with these, as shares of that of the mean.
    """
    inner = problem.subset(problem.folds != 0)
    aside = problem.subset(problem.folds == 0)

    def error(own: Tensor, others: Tensor) -> float:
        weight, offset = _ridge_head(own.numpy(), inner.targets.numpy(), inner.penalty)
        left = aside.targets.numpy() - others.numpy() @ weight - offset
        around = aside.targets.numpy() - inner.targets.numpy().mean(axis=0)
        return float((left**2).sum() / ((around**2).sum() or 1.0))

    biases = _constant_gates(inner, _CONSTANT_STEPS)
    errors = [error(inner.mixed(bias), aside.mixed(bias)) for bias in biases]
    constant, best = _worthwhile(errors)
    readout, full = _readout(len(problem.half), biases[constant]), 0
    for _ in islice(_train_further(inner, readout), _FULL_STEPS):
        found = error(inner.features(readout), aside.features(readout))
        if found >= best * (1 - _WORTHWHILE):
            break
        full, best = full + 1, found
    return (constant, full), (errors[0], best)


def _worthwhile(errors: Sequence[float]) -> tuple[int, float]:
    """Return the place of the smallest error and the error; of nearly equal ones, the first."""
    chosen = next(
        place for place, each in enumerate(errors) if each <= min(errors) * (1 + _WORTHWHILE)
    )
    return chosen, errors[chosen]


def _ridge_head(
    features: NDArray[np.float64], targets: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (F, m) and offset (m,) of ridge regression."""
    mean, middle = features.mean(axis=0), targets.mean(axis=0)
    centred = features - mean
    inner = centred @ centred.T + penalty * np.eye(len(centred))
    weight = centred.T @ np.linalg.solve(inner, targets - middle)
    return weight, middle - mean @ weight


def _logistic_fits(
    features: NDArray[np.float64],
    targets: NDArray[np.float64],
    kept: NDArray[np.bool_],
    penalties: NDArray[np.float64],
) -> tuple[logistic.Fits, NDArray[np.float64]]:
    """Return fits to units that each may see (n, fits), and a map (F, r) to their weights."""
    centred = features - features.mean(axis=0)
    points, bound = logistic.points_of(centred @ centred.T)
    ones = np.ones((len(points), 1))
    fits = logistic.fit_many(points, bound, ones, targets, kept, penalties)
    return fits, centred.T @ (points / bound)


def _logistic_penalty(
    features: NDArray[np.float64], targets: NDArray[np.float64], folds: NDArray[np.int64]
) -> float:
    """Return the penalty of logistic regression with the smallest log loss of left out units."""
    scale = float(features.var(axis=0).sum()) or 1.0
    penalties = scale * np.array(sorted(logistic.PENALTIES, reverse=True))
    names = np.arange(folds.max() + 1)
    kept = np.repeat(folds[:, None] != names, len(penalties), axis=1)
    fits, _ = _logistic_fits(features, targets, kept, np.tile(penalties, len(names)))
    losses = logistic.log_loss(fits.logits, targets[:, None])
    total = (losses * ~kept).sum(axis=0).reshape(len(names), -1).sum(axis=0)
    return float(penalties[int(np.argmin(total))])


def _logistic_head(
    features: NDArray[np.float64], targets: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (F, m) and offset (m,) of logistic regression."""
    everyone = np.ones((len(features), 1), bool)
    fits, to_weights = _logistic_fits(features, targets, everyone, np.array([penalty]))
    weight = to_weights @ fits.weights[:, 0]
    return weight, fits.intercepts[0] - features.mean(axis=0) @ weight
