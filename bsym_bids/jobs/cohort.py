"""What is to be done for each BOLD run under cohort scaling, from what is written of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bsym_bids import __version__
from bsym_bids.jobs.bold import EmbeddingJob, EmbeddingSettings, embedding_settings
from bsym_bids.outputs.names import COHORT, COHORT_SCALING, RunNames, dataset_path
from bsym_bids.outputs.publish import FINGERPRINT_KEY, file_identity, fingerprint
from bsym_bids.software import OF_ALL, OF_MODELS, library_versions

if TYPE_CHECKING:
    from bsym_bids.model.weights import Release
    from bsym_bids.outputs.reading import WrittenRun


@dataclass(frozen=True)
class CohortJob(EmbeddingJob):
    """A written BOLD run that is embedded anew under cohort scaling.

    Attributes
    ----------
    run : WrittenRun
        The denoised series.
    names : RunNames
        The output names, of cohort scaling.
    settings : EmbeddingSettings
        What decides the results; `statistics` is among them.
    """

    run: WrittenRun
    names: RunNames
    settings: EmbeddingSettings
    kind = "cohort_"
    scaling_rule = (
        "median and interquartile range over all participants (desc-cohortscaling_qc.tsv); an ROI "
        "that varies too little in this run to be scaled by itself is missing"
    )

    @classmethod
    def of(
        cls,
        run: WrittenRun,
        output_dir: Path,
        release: Release,
        statistics: str,
        *,
        model_tr: float = 0.8,
        window_step: int = 100,
        seed: int = 0,
    ) -> CohortJob:
        """Collect what decides the embedding of a run.

        Parameters
        ----------
        run : WrittenRun
            The run.
        output_dir : Path
            Root of the dataset.
        release : Release
            The model.
        statistics : str
            Fingerprint of the statistics that ROIs are scaled by.
        model_tr, window_step, seed
            As at the participant level.
        """
        embedding = embedding_settings(
            release, model_tr=model_tr, window_step=window_step, scaling=COHORT, seed=seed
        ) | {"ScalingStatistics": statistics}
        timeseries = run.sidecar.get("TimeSeriesSettings", {})
        return cls(
            run,
            run.names(output_dir, cohort_scaled=True),
            EmbeddingSettings(timeseries, embedding, release),
        )

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Expected fingerprint of each group of outputs."""
        series = self.run.sidecar.get(FINGERPRINT_KEY), file_identity(self.run.path)
        software = __version__, library_versions(*OF_ALL, *OF_MODELS)
        return {"embedding": fingerprint(*software, *series, self.settings.embedding)}

    @property
    def embedding_sources(self) -> list[str]:
        """BIDS URIs of what embeddings are made of."""
        table = dataset_path(self.names.output_dir, COHORT_SCALING)
        return [self.names.uri("denoised"), f"bids::{table.name}"]

    @property
    def replaced(self) -> tuple[Path, ...]:
        """Data files that must not survive beside a new embedding."""
        return self.names.possible_paths("embedding")
