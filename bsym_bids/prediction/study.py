"""The predictions of one call: from settings and outputs to published files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import __version__
from bsym_bids.config import RunConfig
from bsym_bids.errors import BadDataError, BsymError, InputMissingError, UsageError
from bsym_bids.model.weights import resolve_release
from bsym_bids.outputs.names import file_label, own_uri
from bsym_bids.outputs.predictions import Applied, write_applied, write_predictions
from bsym_bids.prediction.assembly import Source, gated_embeddings, make_kernels
from bsym_bids.prediction.bias import correct_bias
from bsym_bids.prediction.candidates import CONFOUNDS, HEADLINES, REFERENCES, first_of
from bsym_bids.prediction.cautions import Circumstances, knows_hcp, warnings_for
from bsym_bids.prediction.column_values import class_names
from bsym_bids.prediction.comparisons import Comparison, compare
from bsym_bids.prediction.confound_sources import confounds_named, gather_confounds
from bsym_bids.prediction.consistency import check_consistent, settings_of
from bsym_bids.prediction.evaluation import Cohort, Evaluation, Options, evaluate
from bsym_bids.prediction.exchange import n_rearrangements
from bsym_bids.prediction.features import COMBINATION, available_kinds, chosen_kinds
from bsym_bids.prediction.folds import leave_group_out
from bsym_bids.prediction.heads import Head, HeadFile, heads_of, read_heads, write_heads
from bsym_bids.prediction.inventory import Inventory
from bsym_bids.prediction.kernels import Kernel
from bsym_bids.prediction.phenotypes import Phenotypes, read_phenotypes
from bsym_bids.prediction.questions import Question, ask_column, ask_state
from bsym_bids.prediction.random_network import random_kinds
from bsym_bids.prediction.records import Target, Unit
from bsym_bids.prediction.results import Result
from bsym_bids.prediction.scores import Scored, assess
from bsym_bids.prediction.store import FILE_NAME, FeatureStore
from bsym_bids.prediction.units import of_units
from bsym_bids.prediction.verdict import RANDOM, verdict
from bsym_bids.untrusted import read_json

LOGGER = logging.getLogger("bsym_bids")
#: Columns that usually say who is related to whom.
FAMILY_COLUMNS = ("family", "family_id", "household", "twin_pair", "mother_id")


@dataclass(frozen=True, eq=False)
class Study:
    """What all questions of one call share.

    Attributes
    ----------
    config : RunConfig
        What is asked for.
    inventory : Inventory
        The outputs.
    source : Source
        The features.
    cautions : tuple of str
        What differs between outputs but may.
    """

    config: RunConfig
    inventory: Inventory
    source: Source
    cautions: tuple[str, ...]
    _kernels: dict[tuple[Unit, ...], Mapping[str, Kernel]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, inventory: Inventory, work: Path, n_workers: int) -> Study:
        """Check that outputs can be put together, and find out which features there are.

        Raises
        ------
        BadDataError
            Outputs were made in different ways.
        UsageError
            A kind of features is asked for that there is not.
        """
        cautions = check_consistent(inventory)
        kinds = {kind.key: kind for kind in available_kinds(inventory)}
        kinds |= random_kinds(inventory, config.model_dir, config.seed)
        kinds = chosen_kinds(kinds, config.features)
        store = FeatureStore(work / FILE_NAME, inventory.output_dir)
        return cls(config, inventory, Source(store, inventory, kinds, n_workers), cautions)

    @cached_property
    def phenotypes(self) -> Phenotypes:
        """The tables of the BIDS dataset."""
        return read_phenotypes(self.config.bids_dir)

    def predict(self, column: str) -> list[str | Path]:
        """Predict a column of the tables, publish what comes out, and say it in lines."""
        return self._answer(self.ask(column), column)

    def tell_states(self, labels: Sequence[str]) -> list[str | Path]:
        """Tell sessions or tasks of the same people apart; as `predict`."""
        return self._answer(self.ask_states(labels), "state" + "".join(labels))

    def ask(self, column: str) -> Question:
        """Return the target of a column and whom it is asked of; raises as `ask_column`."""
        config = self.config
        return ask_column(
            column,
            self.phenotypes,
            self.inventory,
            task_type=config.task_type,
            group_by=config.group_by,
            site=config.site,
            n_folds=config.folds,
        )

    def ask_states(self, labels: Sequence[str]) -> Question:
        """Return the states as a target; raises as `ask_state`."""
        config = self.config
        return ask_state(
            labels,
            self.inventory,
            config.folds,
            phenotypes=self._phenotypes_if_any(),
            group_by=config.group_by,
            site=config.site,
        )

    def _answer(self, question: Question, label: str) -> list[str | Path]:
        cohort = self._cohort(question)
        options = Options(
            folds=self.config.folds,
            repeats=self.config.repeats,
            permutations=self.config.permutations,
            seed=self.config.seed,
            n_workers=self.source.n_workers,
        )
        evaluation = evaluate(question.target, cohort, options)
        result = self._result(question, cohort, evaluation, options)
        uses = self.source.store.uses(self.source.kinds.values(), self.inventory.records)
        paths = write_predictions(result, self.inventory, uses, label)
        said: list[str | Path] = [f"{question.target.name}: {result.verdict}"]
        said += [f"  mind: {caution.text}" for caution in result.cautions]
        if self.config.save_head:
            path = _numbered(self.config.save_head, label, len(self.config.predict) > 1)
            write_heads(path, self._head_file(result, cohort))
            paths = (*paths, path)
        return [*said, *paths]

    def _cohort(self, question: Question) -> Cohort:
        phenotypes = self._phenotypes_if_any()
        confounds = gather_confounds(
            self.config.confounds, question.target, question.units, self.inventory, phenotypes
        )
        return Cohort(
            units=question.units,
            kernels=self._kernels_of(question),
            confounds=confounds,
            groups=question.groups,
            exchange=question.exchange,
            embeddings=gated_embeddings(self.source, question.units),
        )

    def _phenotypes_if_any(self) -> Phenotypes | None:
        """Return the tables; states can be told apart without any."""
        try:
            return self.phenotypes
        except InputMissingError:
            return None

    def _kernels_of(self, question: Question) -> Mapping[str, Kernel]:
        if question.units not in self._kernels:
            sites = None
            if self.config.harmonize:
                if question.sites is None:
                    raise UsageError(
                        f"--harmonize {self.config.harmonize}: no column {self.config.site!r} says "
                        "who was scanned where",
                        hint="name it with --site",
                    )
                sites = np.array(question.sites)
            self._kernels.clear()  # they are large
            self._kernels[question.units] = make_kernels(self.source, question.units, sites)
        return self._kernels[question.units]

    def _result(
        self, question: Question, cohort: Cohort, evaluation: Evaluation, options: Options
    ) -> Result:
        target, predictions = question.target, evaluation.predictions
        headline, reference = first_of(HEADLINES, predictions), first_of(REFERENCES, predictions)
        scored = self._scores(question, evaluation)
        comparisons = _comparisons(evaluation, headline, reference)
        by_site = self._by_site(question, cohort, options)
        about = Circumstances(
            [unit.participant for unit in question.units],
            question.sites,
            _dataset_name(self.config.bids_dir),
            _knows_hcp(self.inventory, self.config.model_dir),
            n_rearrangements(target.values, question.exchange),
            self._unharmonized(question, evaluation),
            self._relatives(question),
        )
        corrected = {}
        if target.is_regression:
            for key, found in predictions.items():
                corrected[key] = correct_bias(target, found, evaluation.folds)
        return Result(
            question=question,
            evaluation=evaluation,
            scored=scored,
            comparisons=comparisons,
            headline=headline,
            reference=reference,
            verdict=verdict(target, scored, comparisons),
            cautions=warnings_for(target, scored, comparisons, about),
            corrected=corrected,
            confounds=evaluation.confounds,
            settings=self._settings(question, cohort, evaluation),
            sources=self._sources(question),
            by_site=by_site,
        )

    def _unharmonized(self, question: Question, evaluation: Evaluation) -> int:
        """Return how many labelled people share their site with nobody who trains for them."""
        if not self.config.harmonize or question.sites is None:
            return 0
        sites, alone = np.array(question.sites), set()
        for assignment in evaluation.folds.assignment:
            for fold in np.unique(assignment[assignment >= 0]):
                tested, training = assignment == fold, (assignment >= 0) & (assignment != fold)
                unseen = tested & ~np.isin(sites, sites[training])
                alone |= {question.units[row].participant for row in np.flatnonzero(unseen)}
        return len(alone)

    def _relatives(self, question: Question) -> str:
        """Return a column of families that holds several people and was not asked for."""
        phenotypes = self._phenotypes_if_any()
        if phenotypes is None or self.config.group_by not in (None, self.config.site):
            return ""
        for name in FAMILY_COLUMNS:
            column = phenotypes.optional(name)
            if column is None:
                continue
            members: dict[str, str] = {}
            known = of_units(class_names(column), question.units)
            for unit, families in zip(question.units, known, strict=True):
                if any(
                    members.setdefault(f, unit.participant) != unit.participant for f in families
                ):
                    return name
        return ""

    def _scores(self, question: Question, evaluation: Evaluation) -> dict[str, Scored]:
        groups: Sequence[str] = question.groups
        if self.config.group_by == self.config.site:
            # A handful of sites cannot be resampled: the interval is for these sites.
            groups = [unit.participant for unit in question.units]
        return {
            key: assess(
                question.target,
                found,
                groups,
                self.config.bootstrap,
                np.random.default_rng([self.config.seed, 2]),
            )
            for key, found in evaluation.predictions.items()
        }

    def _by_site(self, question: Question, cohort: Cohort, options: Options) -> dict[str, Scored]:
        """Return scores of predictions of each site by all others, where groups are sites."""
        if self.config.group_by != self.config.site or question.sites is None:
            return {}
        try:
            folds = leave_group_out(question.target, question.groups)
        except BadDataError as error:
            LOGGER.warning("no leave-site-out: %s", error)
            return {}
        alone = replace(cohort, embeddings=None)
        found = evaluate(question.target, alone, replace(options, permutations=0), folds)
        return self._scores(question, found)

    def _sources(self, question: Question) -> list[str]:
        """Return BIDS URIs of the table of the labels and of what features were read from."""
        table, found = question.target.source, []
        if table is not None and table.is_relative_to(self.config.bids_dir):
            found.append(f"bids:raw:{table.relative_to(self.config.bids_dir).as_posix()}")
        output_dir = self.inventory.output_dir
        files = self.source.files(question.units)
        return found + [own_uri(output_dir, path) for path in files]

    def _settings(
        self, question: Question, cohort: Cohort, evaluation: Evaluation
    ) -> dict[str, Any]:
        config = self.config
        return {
            "Column": question.target.name,
            "Table": question.target.source.name if question.target.source else None,
            "Units": len(question.units),
            "Labelled": int(question.target.labelled.sum()),
            "Groups": len(set(question.groups)),
            "GroupBy": config.group_by or "participant",
            "Exchange": question.exchange.said,
            "Folds": config.folds,
            "Repeats": config.repeats,
            "GateRepeats": Options().gate_repeats,
            "Permutations": config.permutations,
            "Bootstrap": config.bootstrap,
            "Confounds": list(evaluation.confounds.names),
            "ConfoundsLeftOut": sorted(
                set(cohort.confounds.names) - set(evaluation.confounds.names)
            ),
            "Harmonize": config.harmonize,
            "Features": sorted(cohort.kernels),
            "Combination": COMBINATION,
            "Seed": config.seed,
            "Model": dict(self.inventory.model),
            "ModelWarning": self.inventory.model_warning,
            "Differences": list(self.cautions),
            "NotUsed": [*self.inventory.warnings, *self.source.problems],
            "Unmatched": list(question.warnings),
            "Version": __version__,
        }

    def _head_file(self, result: Result, cohort: Cohort) -> HeadFile:
        target = result.question.target
        heads = heads_of(
            result.evaluation,
            cohort,
            lambda kind: self.source.matrix(kind, result.question.units).values,
        )
        about = {
            "Target": target.name,
            "TaskType": target.task,
            "Classes": list(target.classes),
            "Units": target.units,
            "Headline": result.headline or result.reference,
            "Scores": {key: dict(scored.scores) for key, scored in result.scored.items()},
            "Settings": settings_of(self.inventory),
            "PredictionSettings": dict(result.settings),
        }
        return HeadFile(heads, about)

    def apply(self, path: Path) -> list[str | Path]:
        """Predict everyone with predictors that were fitted to another dataset.

        Raises
        ------
        BadDataError
            They were fitted to outputs that were made in another way, or to other features.
        """
        file = read_heads(path)
        _check_same(path, file, self.inventory)
        units = tuple(Unit(participant) for participant in self.inventory.participants)
        target = Target(
            str(file.about["Target"]),
            str(file.about["TaskType"]),
            np.full(len(units), np.nan),
            tuple(file.about.get("Classes", ())),
            str(file.about.get("Units", "")),
        )
        needed = {kind for head in file.heads.values() for kind in head.parts}
        usable = {key: h for key, h in file.heads.items() if set(h.parts) <= set(self.source.kinds)}
        if not usable:
            raise BadDataError(
                f"{path}: needs features that there are none of: {', '.join(sorted(needed))}"
            )
        features = {
            kind: self.source.matrix(kind, units).values
            for kind in sorted({kind for head in usable.values() for kind in head.parts})
        }
        _check_widths(path, usable, features)
        predicted, known = {}, {}
        for key, head in usable.items():
            confounds = confounds_named(
                head.confounds, units, self.inventory, self._phenotypes_if_any()
            )
            predicted[key] = file.predict(key, features, confounds)
            known |= dict(zip(head.confounds, confounds.T, strict=True))
        applied = Applied(
            target,
            units,
            predicted,
            {key: head.shares for key, head in usable.items()},
            known,
            {"Head": path.name, **file.about},
            self.source.files(units, features),
        )
        kinds = [self.source.kinds[kind] for kind in features]
        uses = self.source.store.uses(kinds, self.inventory.records)
        return [write_applied(applied, self.inventory, uses)]


def _comparisons(
    evaluation: Evaluation, headline: str | None, reference: str | None
) -> list[Comparison]:
    """Compare every candidate with connectivity and with the confounds alone.

    And what stands for the network with the same of random weights.
    """
    pairs = [
        (candidate.key, base)
        for base in (reference, CONFOUNDS)
        for candidate in evaluation.candidates
        if candidate.key != base
    ]
    pairs.append((headline or "", RANDOM.get(headline or "", "")))
    found = evaluation.predictions
    return [
        compare(evaluation.target, found[a], found[b], evaluation.folds)
        for a, b in pairs
        if a in found and b in found
    ]


def _numbered(path: Path, label: str, several: bool) -> Path:
    """Return where a head goes: a file of its own for each of several columns, in one folder."""
    return path.with_name(f"{path.stem}_{file_label(label)}{path.suffix}") if several else path


def _check_widths(
    path: Path, heads: Mapping[str, Head], features: Mapping[str, NDArray[np.floating]]
) -> None:
    """Refuse predictors of features that are of another number than those here."""
    for head in heads.values():
        for kind, part in head.parts.items():
            here, there = features[kind].shape[1], len(part.means)
            if here != there:
                raise BadDataError(
                    f"{path}: was fitted to {there} features of {kind}, but there are {here} here",
                    hint="process this dataset with the settings of that one",
                )


def _dataset_name(bids_dir: Path) -> str:
    """Return what a dataset calls itself; empty where it doesn't."""
    try:
        description = read_json(bids_dir / "dataset_description.json")
        return str(description.get("Name", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _knows_hcp(inventory: Inventory, model_dir: Path | None) -> bool:
    """Return whether people of the Human Connectome Project trained the model."""
    if not inventory.model:
        return False
    try:
        return knows_hcp(resolve_release(str(inventory.model["Name"]), model_dir=model_dir).card)
    except BsymError:  # its card is not here
        return False


def _check_same(path: Path, file: HeadFile, inventory: Inventory) -> None:
    """Refuse features that were made in another way than those that a head was fitted to."""
    fitted, here = dict(file.about.get("Settings", {})), settings_of(inventory)
    common = fitted.keys() & here.keys()
    differing = sorted(key for key in common if fitted[key] != here[key])
    if differing:
        said = "; ".join(f"{key}: {fitted[key]} there, {here[key]} here" for key in differing[:5])
        raise BadDataError(
            f"{path}: was fitted to outputs that were made in another way: {said}",
            hint="process this dataset with the settings of that one",
        )
