"""A stack of attentions over ROIs that predicts ROIs from others, learnt from their covariance.

The conditional Gaussian (kriging) predicts a hidden ROI as a linear combination of the others, with
weights from the inverse of their covariance. A transformer has no inverse, but softmax attention
whose logits depend on position alone is linear in the series, too; and what a linear map leaves
unexplained follows from the covariance, without any series:

    E |x_m - W x_o|^2 = [(W - S) C (W - S)^T + r W W^T]_mm,

with S selecting ROIs and r the noise of those that are seen.

So the positions and the maps of a few attentions are found by descending this expectation over
random hidden ROIs. That takes seconds, where learning the same from series takes hours. The result
is what `bsym_bids.training.start` writes into a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Noise of a single ROI beside a correlation of 1: the ridge of the linear baseline.
NOISE = 0.05
_STEPS = 1000
_RATE = 0.02
_HIDDEN_SHARE = (0.1, 0.35)
_FIRST_SHARPNESS, _LATER_SHARPNESS = 15.0, 5.0
_FIRST_GAIN, _LATER_GAIN = 1.0, -0.2
_JITTER = 0.02  # layers that start alike must be able to part


@dataclass(frozen=True)
class Smoother:
    """Attentions over ROIs, one after the other: ``x <- x + gain * softmax(q k^T + flag) x``.

    Attributes
    ----------
    positions : Tensor
        (R, P), what queries and keys are made of.
    query, key : Tensor
        (layers, P, P), applied to positions from the right.
    gain : Tensor
        (layers,), of what is read; negative where a layer takes away what an earlier one blurred.
    flag : Tensor
        (layers,), added to the logits of hidden ROIs.
    """

    positions: Tensor
    query: Tensor
    key: Tensor
    gain: Tensor
    flag: Tensor

    def __call__(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Fill in hidden ROIs.

        Parameters
        ----------
        x : Tensor
            (R, anything), rows of hidden ROIs 0.
        hidden : Tensor
            (R,) bool.
        """
        for layer in range(len(self.gain)):
            query = self.positions @ self.query[layer]
            key = self.positions @ self.key[layer]
            weights = torch.softmax(query @ key.mT + self.flag[layer] * hidden, dim=-1)
            x = x + self.gain[layer] * (weights @ x)
        return x


def learn_smoother(
    correlation: NDArray[np.floating],
    rank: int,
    layers: int,
    seed: int,
    steps: int = _STEPS,
) -> Smoother:
    """Find the smoother that leaves least of hidden ROIs unexplained.

    It starts from one attention with logits of 15 times the correlation at the given rank, and
    layers that take away a fifth of a wider average.

    Parameters
    ----------
    correlation : ndarray
        (R, R), positive definite, diagonal 1.
    rank : int
        Dimensions of the positions.
    layers : int
        Attentions.
    seed : int
        Of the hidden ROIs and of the jitter at the start.
    steps : int
        Steps of Adam.

    Returns
    -------
    Smoother
        With detached tensors.
    """
    random = torch.Generator().manual_seed(seed)
    values, vectors = np.linalg.eigh(np.asarray(correlation, dtype=np.float64))
    leading = vectors[:, -rank:]
    leading = leading * np.sign(leading[np.abs(leading).argmax(0), np.arange(rank)])
    sharpness = torch.full((layers, 1, 1), _LATER_SHARPNESS)
    sharpness[0] = _FIRST_SHARPNESS
    maps = torch.eye(rank) * sharpness.sqrt() + _JITTER * torch.randn(
        (2, layers, rank, rank), generator=random
    )
    gain = torch.full((layers,), _LATER_GAIN)
    gain[0] = _FIRST_GAIN
    smoother = Smoother(
        torch.from_numpy(leading * np.sqrt(values[-rank:])).float(),
        maps[0].clone(),
        maps[1].clone(),
        gain,
        torch.zeros(layers),
    )
    parameters = [value.requires_grad_() for value in vars(smoother).values()]
    optimiser = torch.optim.Adam(parameters, lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps, pct_start=0.1)
    covariance = torch.from_numpy(np.array(correlation)).float()
    with torch.enable_grad():
        for _ in range(steps):
            low, high = _HIDDEN_SHARE
            share = low + (high - low) * torch.rand((), generator=random)
            hidden = torch.rand(len(covariance), generator=random) < share
            loss = unexplained(smoother, covariance, hidden)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
    return Smoother(*(value.detach() for value in parameters))


def unexplained(smoother: Smoother, covariance: Tensor, hidden: Tensor) -> Tensor:
    """Return the expected squared error of hidden ROIs, mean over them, noise-free variance 1.

    Parameters
    ----------
    smoother : Smoother
        What fills in.
    covariance : Tensor
        (R, R), of the series without the noise of single ROIs.
    hidden : Tensor
        (R,) bool.
    """
    weights = smoother(torch.diag((~hidden).float()), hidden)[hidden]
    error = weights - torch.eye(len(covariance))[hidden]
    return ((error @ covariance) * error).sum(1).mean() + NOISE * weights.square().sum(1).mean()
