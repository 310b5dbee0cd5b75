"""What the jobs of all kinds have in common."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.outputs.names import sidecar_of
from bsym_bids.outputs.publish import is_complete
from bsym_bids.untrusted import read_json

if TYPE_CHECKING:
    from bsym_bids.inputs import Derivatives
    from bsym_bids.outputs.names import Names


class Job(ABC):
    """Something to be done for a participant that gives some groups of output files.

    Attributes
    ----------
    names : Names
        The output names.
    settings : object
        What decides the results.
    domain_product : str
        The product whose sidecar has the verdict on whether the model knows the data.
    kind : str
        What tells its work from that of other jobs whose outputs have the same names.
    """

    names: Names
    settings: Any
    domain_product = ""
    kind = ""

    @property
    def work_name(self) -> str:
        """Name of its folder in the work directory and of its graph, as Nipype takes it."""
        stem = self.kind + self.names.stem
        # Else task-a+b and task-a_b would be one.
        told = f"_{hashlib.sha256(stem.encode()).hexdigest()[:8]}" if "+" in stem else ""
        return re.sub(r"\W", "_", stem) + told

    @property
    def waits_for(self) -> tuple[Job, ...]:
        """The jobs whose outputs it reads."""
        return ()

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is called in messages and tables."""

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """Expected fingerprint of each group of outputs."""

    def is_done(self, group: str) -> bool:
        """Tell whether a group of outputs is there and up to date."""
        return is_complete(self.names.group_paths(group), self.fingerprints[group])

    @property
    def to_do(self) -> tuple[str, ...]:
        """The groups of outputs that have to be made."""
        return tuple(group for group in self.fingerprints if not self.is_done(group))

    def model_domain(self) -> str:
        """Return the verdict in the sidecars on whether the model knows the data; empty if none."""
        if not self.domain_product:
            return ""
        try:
            path = sidecar_of(self.names.path(self.domain_product))
            return str(read_json(path)["ModelDomain"]["Verdict"])
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def expected_deviations(self) -> list[str]:
        """Say how the model will be used otherwise than it was made for."""
        return []


def uri_of(path: Path, dataset: Derivatives) -> str:
    """Return the BIDS URI of a file of an input dataset."""
    root = dataset.root
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return f"bids:{dataset.name}:{inside}"
