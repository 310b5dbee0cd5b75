"""Network recovery of a cohort: what tells the networks of ROIs apart, over several people.

The tests are those of `bsym_bids.model.networks`, whose controls say how much of the recovery comes
from the data at all; here they are done for some people, each for one run, so that there is a
spread beside the mean.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bsym_bids import atlas
from bsym_bids.cohort.parallel import each_apart
from bsym_bids.errors import BsymError
from bsym_bids.model.checking import check_settings, recovery_of_written
from bsym_bids.model.embed import inference
from bsym_bids.model.networks import FEATURES, Recovery
from bsym_bids.model.weights import Release, load_model
from bsym_bids.outputs.reading import WrittenRun

LOGGER = logging.getLogger("bsym_bids")
#: People whose runs are looked at: a few seconds each, and the spread over them says enough.
MOST_PEOPLE = 20

#: Columns of the table, which are described in data/outputs.yaml.
COLUMNS = (
    "what",
    "n_people",
    "accuracy",
    "accuracy_sd",
    "left_to_right",
    "left_to_right_sd",
    "chance",
)


@dataclass(frozen=True)
class CohortRecovery:
    """Network recovery over people.

    Attributes
    ----------
    participants : tuple of str
        Whose runs were looked at.
    files : tuple of Path
        Tables of these runs.
    by_feature : mapping of str to sequence of Recovery
        One for each of them, see `bsym_bids.model.networks.FEATURES`.
    """

    participants: tuple[str, ...]
    files: tuple[Path, ...]
    by_feature: Mapping[str, Sequence[Recovery]]

    def table(self) -> dict[str, list[Any]]:
        """Return the columns of its table, see `COLUMNS`."""
        networks = np.unique(atlas.networks(), return_counts=True)[1]
        table: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for feature, recoveries in self.by_feature.items():
            folds = [recovery.folds for recovery in recoveries]
            sides = [recovery.left_to_right for recovery in recoveries]
            row = (
                feature,
                len(recoveries),
                float(np.mean(folds)),
                _spread(folds),
                float(np.mean(sides)),
                _spread(sides),
                float(networks.max() / networks.sum()),
            )
            for name, value in zip(COLUMNS, row, strict=True):
                table[name].append(value)
        return table


def recover_networks(
    runs: Sequence[WrittenRun], release: Release, *, seed: int, n_workers: int = 0
) -> CohortRecovery | None:
    """Measure network recovery in the first run of up to `MOST_PEOPLE` people.

    Parameters
    ----------
    runs : sequence of WrittenRun
        Runs of the cohort; people are drawn with the seed.
    release : Release
        The model, with all functional branches.
    seed : int
        Of the drawing, of folds and of shuffling.
    n_workers : int
        Processes at a time; 0 for none.

    Returns
    -------
    CohortRecovery or None
        None where no run can be used; each that cannot is named in the log.
    """
    first = _first_runs(runs, seed)
    settings = check_settings(release, seed)
    done: dict[str, Mapping[str, Recovery]] = {}
    work = partial(_recover_one, release, settings)
    for index, result in each_apart(work, first, n_workers):
        if isinstance(result, BsymError):
            LOGGER.warning("%s: not in the network recovery: %s", first[index].label, result)
        else:
            done[first[index].participant] = result
    if not done:
        return None
    people = tuple(sorted(done))
    files = tuple(run.path for run in first if run.participant in done)
    return CohortRecovery(
        people, files, {name: [done[person][name] for person in people] for name in FEATURES}
    )


def _first_runs(runs: Sequence[WrittenRun], seed: int) -> list[WrittenRun]:
    first: dict[str, WrittenRun] = {}
    for run in sorted(runs, key=lambda run: run.label):
        first.setdefault(run.participant, run)
    people = sorted(first)
    if len(people) > MOST_PEOPLE:
        drawn = np.random.default_rng(seed).choice(people, MOST_PEOPLE, replace=False)
        people = sorted(drawn.tolist())
    return [first[person] for person in people]


def _recover_one(
    release: Release, settings: Mapping[str, Any], run: WrittenRun
) -> Mapping[str, Recovery]:
    with inference(1):
        return recovery_of_written(load_model(release), run, settings)


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1)) if np.ptp(values) else 0.0
