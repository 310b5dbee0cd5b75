"""Simulated cohorts as the evaluation takes them."""

from __future__ import annotations

import numpy as np

from bsym_bids.prediction.evaluation import Cohort, Options, evaluate
from bsym_bids.prediction.exchange import exchange_of
from bsym_bids.prediction.kernels import FeatureKernel
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.records import CLASSIFICATION, REGRESSION, Target, Unit
from bsym_bids.simulation.cohort import SEXES, simulate_recipe

KINDS = ("fc", "sc", "bs_functional", "bs_structural")
CONFOUNDS = ("mean_fd", "frames_kept", "roi_volume")


def known_cohort(recipe, n, *, kinds=KINDS, confounds=CONFOUNDS, groups=None, **changes):
    """Return a simulated cohort, its target, and the cohort as the evaluation takes it."""
    simulated = simulate_recipe(recipe, n, n_rois=40, kinds=kinds, **changes)
    if simulated.label == "age":
        target = Target("age", REGRESSION, simulated.age, units="years")
    else:
        codes = np.array([SEXES.index(sex) for sex in simulated.sex], dtype=float)
        target = Target("sex", CLASSIFICATION, codes, SEXES)
    names = [name for name in confounds if name in simulated.confounds]
    values = np.column_stack([simulated.confounds[name] for name in names] or [np.empty((n, 0))])
    cohort = Cohort(
        units=tuple(Unit(label) for label in simulated.participants),
        kernels={key: FeatureKernel(values) for key, values in simulated.features.items()},
        confounds=Confounds(tuple(names), values),
        groups=tuple(simulated.participants if groups is None else getattr(simulated, groups)),
        exchange=exchange_of(
            simulated.participants,
            groups=None if groups is None else getattr(simulated, groups),
        ),
    )
    return simulated, target, cohort


def evaluated(recipe, n, *, permutations=100, repeats=2, **changes):
    """Return target, evaluation and cohort of a simulated cohort."""
    _, target, cohort = known_cohort(recipe, n, **changes)
    options = Options(folds=5, repeats=repeats, permutations=permutations, seed=0)
    return target, evaluate(target, cohort, options), cohort
