"""The fusion gate: trained on a label, since nothing in the data themselves tells how to mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bsym_bids import atlas
from bsym_bids.model.brainsymphony import BrainSymphony, Gate
from bsym_bids.training.data import ConnectomeSet, WindowSet


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """Embeddings of people who have a label and both modalities.

    Attributes
    ----------
    functional, structural : Tensor
        (N, R, D); the functional one is the mean over a person's windows.
    labels : Tensor
        (N,), standardised by the people to train on.
    participants : ndarray of str, shape (N,)
        Who they are.
    """

    functional: Tensor
    structural: Tensor
    labels: Tensor
    participants: NDArray[np.str_]

    def of(self, people: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of some people."""
        return np.flatnonzero(np.isin(self.participants, list(people)))

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return both embeddings and the labels of some people."""
        chosen = torch.from_numpy(indices)
        parts = (self.functional, self.structural, self.labels)
        functional, structural, labels = (part[chosen].to(device) for part in parts)
        return functional, structural, labels


class GateReadout(nn.Module):
    """Predict from the fused embedding, averaged within networks, by a linear head.

    Parameters
    ----------
    gate : Gate
        Which mixes the embeddings.
    outputs : int
        Numbers that are predicted of each person.
    """

    def __init__(self, gate: Gate, outputs: int = 1) -> None:
        super().__init__()
        self.gate = gate
        networks = np.array(atlas.networks())
        members = np.stack([networks == name for name in dict.fromkeys(networks)])
        average = members / members.sum(1, keepdims=True)
        self.register_buffer("average", torch.from_numpy(average).float())
        self.head = nn.Linear(len(average) * gate.width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def averaged(self, functional: Tensor, structural: Tensor) -> Tensor:
        """Map two embeddings (N, R, D) to the mean fused one of each network, (N, networks * D)."""
        fused, _ = self.gate(functional, structural)
        return (self.average @ fused).flatten(1)

    def predict(self, functional: Tensor, structural: Tensor) -> Tensor:
        """Return what is predicted of each person, (N,) or (N, outputs)."""
        return self.head(self.averaged(functional, structural)).squeeze(-1)


class GateObjective(GateReadout):
    """Predict a label from the fused embedding.

    The linear head is not part of a release: it is there to give the gate something to be good at.

    Parameters
    ----------
    model : BrainSymphony
        With a gate.
    """

    def __init__(self, model: BrainSymphony) -> None:
        assert model.gate is not None
        super().__init__(model.gate)

    def forward(self, functional: Tensor, structural: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error as ``label`` and as ``total``."""
        loss = F.mse_loss(self.predict(functional, structural), labels)
        return {"label": loss, "total": loss}


@torch.no_grad()
def embed_labelled(
    model: BrainSymphony,
    windows: WindowSet,
    connectomes: ConnectomeSet,
    labels: Mapping[str, float],
    training: Sequence[str],
) -> LabelledEmbeddings:
    """Embed everyone who has windows, a connectome and a label.

    Parameters
    ----------
    model : BrainSymphony
        Whose branches are not trained further.
    windows, connectomes : WindowSet, ConnectomeSet
        The data.
    labels : mapping of str to float
        By participant.
    training : sequence of str
        People whose mean and spread standardise the labels.
    """
    both = set(windows.participants.tolist()) & set(connectomes.participants.tolist())
    people = sorted(both & set(labels))
    functional, structural = [], []
    for person in people:
        own = windows.of([person])
        embedded = model(
            fmri=windows.windows[own],
            roi_mask=windows.missing[own],
            attention_maps=False,
            context_prediction=False,
        )
        functional.append(embedded.functional_embedding.mean(0).cpu())
        first = connectomes.connectomes[connectomes.of([person])[:1]]
        structural.append(model(sc=first).structural_embedding[0].cpu())
    values = np.array([labels[person] for person in people])
    known = values[np.isin(people, list(training))]
    standard = (values - known.mean()) / (known.std() or 1.0)
    return LabelledEmbeddings(
        torch.stack(functional),
        torch.stack(structural),
        torch.from_numpy(standard).float(),
        np.array(people),
    )
