"""Cross-validation on N x N inner products against scikit-learn's explicit pipeline.

    python benchmarks/prediction.py [--participants 1000] [--permutations 1000] [--repeats 10]
                                    [--lacking 0] [--alone]

simulates a cohort, predicts age from every kind of features with nested folds and a permutation
test, and prints the time, the peak memory and the ratio to the same work done the usual way: for
each training fold, and for each permutation, scikit-learn's ridge regression on the features
themselves with a grid search over the same penalties in the same inner folds.

Two ratios are printed. The first is measured on both sides, in full, on work that is small enough
(--small participants, one repeat, two permutations), with the largest difference between the
predictions. The second is of the whole work; the usual way would take days, so that one of its
outer folds is measured and multiplied by the number of folds, repeats, label sets and candidates.
It is an extrapolation, and printed as one.

With --lacking, so many of the participants lack two of 20 ROIs, by chance: what they lack is
imputed in each training fold, so that no two folds share a matrix.

With --alone, nothing is done the usual way: for how time and memory grow with the participants.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import measure, timed
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bsym_bids.atlas import N_ROIS
from bsym_bids.prediction.evaluation import Cohort, Options, evaluate
from bsym_bids.prediction.exchange import exchange_of, permuted_labels
from bsym_bids.prediction.folds import make_folds
from bsym_bids.prediction.kernels import FeatureKernel
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.records import REGRESSION, Target, Unit
from bsym_bids.prediction.ridge import PENALTIES, Regression, nested_ridges
from bsym_bids.simulation.cohort import simulate_recipe

#: Kinds of features, and what stands in for those that are not simulated: as many features.
KINDS = {
    "fc": "fc",
    "fc_tangent": "fc",
    "sc": "sc",
    "bs_functional": "bs_functional",
    "bs_functional_mean": "bs_functional_mean",
    "bs_structural": "bs_structural",
    "random_functional": "bs_functional",
    "random_structural": "bs_structural",
}
FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small", type=int, default=150, help="participants of the first ratio")
    parser.add_argument("--lacking", type=int, default=0, help="participants who lack ROIs")
    parser.add_argument("--alone", action="store_true", help="without the usual way beside it")
    parser.add_argument(
        "--task", choices=("make", "ours", "both", "explicit"), help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is None:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments, Path(folder))
    elif arguments.task == "make":
        timed(lambda: make(arguments.participants, arguments.lacking, arguments.folder))
    elif arguments.task == "both":
        compare_small(arguments.small, arguments.folder)
    elif arguments.task == "explicit":
        timed(lambda: one_explicit_fold(arguments.folder))
    else:
        timed(lambda: predict_all(arguments))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    size = ("--participants", str(arguments.participants), "--folder", str(folder))
    size += ("--permutations", str(arguments.permutations), "--repeats", str(arguments.repeats))
    script = Path(__file__)
    measure(script, "make", *size, "--lacking", str(arguments.lacking))
    if not arguments.alone:
        ratio = measure(script, "both", *size, "--small", str(arguments.small)).seconds
        print(f"measured in full on both sides: {ratio:.0f} times as fast", flush=True)
    ours = measure(script, "ours", *size)
    print(
        f"ours: {ours.seconds:.1f} s: {arguments.participants} participants "
        f"({arguments.lacking} lack ROIs), "
        f"{arguments.repeats} x {FOLDS} nested folds, "
        f"{arguments.permutations} permutations, all linear candidates",
        flush=True,
    )
    if arguments.alone:
        return
    fold = measure(script, "explicit", *size)
    n_fits = arguments.repeats * FOLDS * (arguments.permutations + 1) * len(candidates(folder))
    print(
        f"scikit-learn: {fold.seconds:.1f} s and {fold.megabytes / 1e3:.2f} GB for one outer fold "
        f"of one candidate and one set of labels; {n_fits} of them, extrapolated: "
        f"{fold.seconds * n_fits / 3600:.0f} h, {fold.seconds * n_fits / ours.seconds:.0f} times"
    )


def make(n: int, n_lacking: int, folder: Path) -> None:
    """Keep the features, age and confounds of a simulated cohort, some of whom lack ROIs."""
    cohort = simulate_recipe("both", n, width=128)
    random = np.random.default_rng(0)
    lost = random.choice(N_ROIS, 20, replace=False)
    lacked = {
        participant: random.choice(lost, 2, replace=False)
        for participant in random.choice(n, n_lacking, replace=False)
    }
    for kind, values in cohort.features.items():
        for participant, rois in lacked.items():
            values[participant, of_rois(values.shape[1], rois)] = np.nan
        np.save(folder / f"{kind}.npy", values)
    np.savez(
        folder / "people.npz",
        age=cohort.age,
        confounds=np.column_stack(
            [cohort.confounds[name] for name in ("mean_fd", "frames_kept", "roi_volume")]
        ),
    )


def of_rois(n_features: int, rois: np.ndarray) -> np.ndarray:
    """Return (n_features,), which of the features of edges, or embeddings, rest on some ROIs."""
    first, second = np.triu_indices(N_ROIS, 1)
    if n_features == len(first):
        return np.isin(first, rois) | np.isin(second, rois)
    return np.repeat(np.isin(np.arange(N_ROIS), rois), n_features // N_ROIS)


def cohort_of(folder: Path, n: int | None = None) -> tuple[Target, Cohort]:
    """Return the cohort with the inner products of all its features."""
    people = np.load(folder / "people.npz")
    age, confounds = people["age"][:n], people["confounds"][:n]
    kernels = {
        key: FeatureKernel(np.load(folder / f"{kind}.npy")[:n]) for key, kind in KINDS.items()
    }
    cohort = Cohort(
        units=tuple(Unit(f"{i:04}") for i in range(len(age))),
        kernels=kernels,
        confounds=Confounds(("mean_fd", "frames_kept", "roi_volume"), confounds),
        groups=tuple(f"{i:04}" for i in range(len(age))),
        exchange=exchange_of([f"{i:04}" for i in range(len(age))]),
    )
    return Target("age", REGRESSION, age, units="years"), cohort


def candidates(folder: Path) -> list[str]:
    """Return the linear candidates that are evaluated."""
    from bsym_bids.prediction.candidates import LINEAR, candidates_for

    return [c.key for c in candidates_for(KINDS) if c.how == LINEAR and c.kinds]


def predict_all(arguments: argparse.Namespace) -> None:
    target, cohort = cohort_of(arguments.folder)
    cores = len(os.sched_getaffinity(0))
    options = Options(FOLDS, arguments.repeats, arguments.permutations, n_workers=cores)
    found = evaluate(target, cohort, options)
    assert set(candidates(arguments.folder)) <= set(found.predictions)
    own, largest = (
        resource.getrusage(who).ru_maxrss * 1024 / 1e9
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        f"memory: at most {own + cores * largest:.2f} GB: {own:.2f} GB here and up to "
        f"{largest:.2f} GB in each of {cores} processes",
        file=sys.stderr,
    )


def compare_small(n: int, folder: Path) -> None:
    """Do the same work in both ways, print the difference, and the ratio of the times."""
    features = np.load(folder / "fc.npy")[:n]
    people = np.load(folder / "people.npz")
    confounds, age = people["confounds"][:n], people["age"][:n]
    target = Target("age", REGRESSION, age)
    groups = [str(i) for i in range(n)]
    folds = make_folds(target, groups, n_folds=FOLDS, n_repeats=1, seed=0)
    permuted = permuted_labels(age, exchange_of(groups), 2, np.random.default_rng(0))
    labels = np.column_stack([age, permuted])
    started = time.perf_counter()
    names = ("mean_fd", "frames_kept", "roi_volume")
    regression = Regression(FeatureKernel(features), Confounds(names, confounds), folds)
    ours = nested_ridges(regression, [labels])[0].values[0]
    middle = time.perf_counter()
    theirs = np.column_stack(
        [explicit(features, confounds, y, folds.assignment[0], regression) for y in labels.T]
    )
    ended = time.perf_counter()
    print(
        f"{n} participants, one repeat, {labels.shape[1]} sets of labels: ours "
        f"{middle - started:.2f} s, scikit-learn {ended - middle:.1f} s, largest difference "
        f"{np.abs(ours - theirs).max():.1e} years",
        file=sys.stderr,  # the last line of the output is for `measure`
    )
    print((ended - middle) / (middle - started))


class Deconfounder(TransformerMixin, BaseEstimator):
    """Take out of the features what the confounds, the last columns, explain in training."""

    def __init__(self, n_confounds: int = 0) -> None:
        self.n_confounds = n_confounds

    def fit(self, values, _=None):
        """Regress the features on the confounds.

        Standardised: LinearRegression drops directions below 1e-6 of the largest, which of motion
        in millimetres beside a volume in cubic millimetres is the motion.
        """
        width = values.shape[1] - self.n_confounds
        self.regression_ = make_pipeline(StandardScaler(), LinearRegression())
        self.regression_.fit(values[:, width:], values[:, :width])
        return self

    def transform(self, values):
        """Return the features without what the confounds explain."""
        width = values.shape[1] - self.n_confounds
        return values[:, :width] - self.regression_.predict(values[:, width:])


def explicit(features, confounds, labels, folds, regression, only=None) -> np.ndarray:
    """Predict out of fold with scikit-learn on the features themselves."""
    predicted = np.full(len(labels), np.nan)
    for fold in np.unique(folds) if only is None else [only]:
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        filled = SimpleImputer().fit(features[train]).transform(features)
        scale = regression.kernel.scale(folds != fold)
        grid = {"ridge__alpha": [penalty * scale for penalty in PENALTIES]}
        inner = PredefinedSplit(np.unique(folds[train], return_inverse=True)[1])
        both = np.hstack([filled, confounds])
        search = GridSearchCV(
            make_pipeline(Deconfounder(confounds.shape[1]), Ridge()),
            grid,
            cv=inner,
            scoring="neg_mean_squared_error",
        )
        search.fit(both[train], labels[train])
        predicted[test] = search.predict(both[test])
    return predicted


def one_explicit_fold(folder: Path) -> None:
    """Predict one outer fold from FC with scikit-learn."""
    features = np.load(folder / "fc.npy")
    people = np.load(folder / "people.npz")
    age = people["age"]
    groups = [str(i) for i in range(len(age))]
    target = Target("age", REGRESSION, age)
    folds = make_folds(target, groups, n_folds=FOLDS, n_repeats=1, seed=0)

    class FixedScale:
        """Only the scale of the penalties is needed of the kernel."""

        @staticmethod
        def scale(training):
            values = SimpleImputer().fit_transform(features[training])
            spread = ((values - values.mean(axis=0)) ** 2).sum(axis=1).mean()
            return float(2.0 ** np.round(np.log2(spread)))

    class Needed:
        kernel = FixedScale

    explicit(features, people["confounds"], age, folds.assignment[0], Needed, only=0)


if __name__ == "__main__":
    main()
