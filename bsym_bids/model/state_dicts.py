"""Reading a state dict strictly: sizes are inferred from it, and every key is checked by name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bsym_bids.errors import BadDataError

_SHOWN = 6  # faults named in one message
_HINT = "the weights have to be those of a BrainSymphony network, complete and unchanged"


class StateDict:
    """The parameters of one branch, as float32 tensors on the CPU.

    Parameters
    ----------
    branch : str
        Name of the branch, for messages.
    values : mapping of str to torch.Tensor or numpy.ndarray
        Parameters by state-dict name; half and double precision are converted.

    Raises
    ------
    BadDataError
        When it is not a state dict or a value is not a finite floating-point array; the message
        names the branch and the key.
    """

    def __init__(self, branch: str, values: Mapping[str, Any]) -> None:
        self.branch = branch
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise BadDataError(f"{branch}: not a state dict (a mapping of names to arrays)", _HINT)
        self.tensors = {key: _as_weight(branch, key, value) for key, value in values.items()}

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def count(self, name: str) -> int:
        """Return how many modules the list ``name`` has, by the highest index in the keys."""
        indices = {
            int(key.split(".")[1])
            for key in self.tensors
            if key.startswith(f"{name}.") and key.split(".")[1].isdecimal()
        }
        if not indices:
            raise BadDataError(f"{self.branch}: no keys {name}.0.*", _HINT)
        if max(indices) >= len(self.tensors):  # more modules than keys: no need to build them all
            raise BadDataError(
                f"{self.branch}: keys of {name}.0.* and following are missing", _HINT
            )
        return max(indices) + 1

    def size(self, *places: tuple[str, int]) -> int:
        """Return a size of the network, as most of the given places have it.

        Parameters
        ----------
        places : tuple of (pattern, axis)
            State-dict names, ``*`` standing for an index, and the axis that has this size. One
            wrong shape among several is outvoted here and named by `load_into`.
        """
        votes: dict[int, list[str]] = {}
        for pattern, axis in places:
            for key, tensor in self.tensors.items():
                if fnmatchcase(key, pattern) and tensor.ndim > axis:
                    votes.setdefault(tensor.shape[axis], []).append(key)
        if not votes:
            pattern = places[0][0].replace("*", "0")
            raise BadDataError(f"{self.branch}: key {pattern} is missing or has no size", _HINT)
        first, *others = sorted(votes, key=lambda size: -len(votes[size]))
        if others and len(votes[others[0]]) == len(votes[first]):
            sides = (f"{', '.join(votes[size][:2])} ({size})" for size in (first, others[0]))
            raise BadDataError(f"{self.branch}: sizes disagree: {' and '.join(sides)}", _HINT)
        return first

    def load_into(self, module: nn.Module) -> None:
        """Put the parameters into a module, strictly.

        Raises
        ------
        BadDataError
            When a key is missing, unexpected or of another shape; the message names all of them,
            up to a few.
        """
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        faults = [f"{key} is missing" for key in expected if key not in self.tensors]
        faults += [f"{key} is unexpected" for key in self.tensors if key not in expected]
        faults += [
            f"{key} has shape {tuple(tensor.shape)} instead of {expected[key]}"
            for key, tensor in self.tensors.items()
            if key in expected and tuple(tensor.shape) != expected[key]
        ]
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise BadDataError(f"{self.branch}: {'; '.join(faults[:_SHOWN])}{more}", _HINT)
        module.load_state_dict(self.tensors, strict=True, assign=True)


def _as_weight(branch: str, key: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        # A copy: the network must not change when the caller's array does.
        tensor = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
    elif isinstance(value, Tensor) and _is_plain(value):
        tensor = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    else:
        raise BadDataError(f"{branch}: {key} is not an array of floating-point numbers", _HINT)
    if not torch.isfinite(tensor).all():
        raise BadDataError(f"{branch}: {key} holds values that are not finite", _HINT)
    return tensor


def _is_plain(value: Tensor) -> bool:
    """Tell whether a tensor has a number in memory for each of its entries.

    One number can stand for any number of them, and would take all memory when it is copied.
    """
    if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
