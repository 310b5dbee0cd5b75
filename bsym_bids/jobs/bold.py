"""What is to be done for each BOLD run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids import __version__
from bsym_bids.errors import UsageError
from bsym_bids.jobs.base import Job, uri_of
from bsym_bids.outputs.names import RunNames
from bsym_bids.outputs.publish import file_identity, fingerprint
from bsym_bids.software import OF_ALL, OF_MODELS, library_versions

if TYPE_CHECKING:
    from bsym_bids.bold.nuisance import NuisanceStrategy
    from bsym_bids.config import RunConfig
    from bsym_bids.inputs import BoldRun
    from bsym_bids.model.weights import Release
    from bsym_bids.outputs.reading import WrittenRun


@dataclass(frozen=True)
class EmbeddingSettings:
    """The settings that decide the embedding of a BOLD run.

    Attributes
    ----------
    timeseries : mapping
        What decides time series and connectivity.
    embedding : mapping
        What decides, on top of that, embeddings and reconstruction.
    release : Release
        The model in use.
    """

    timeseries: Mapping[str, Any]
    embedding: Mapping[str, Any]
    release: Release


def embedding_settings(
    release: Release, *, model_tr: float, window_step: int, scaling: str, seed: int
) -> dict[str, Any]:
    """Return what decides embeddings of given series, as sidecars have it."""
    return {
        "Model": release.name,
        "ModelFingerprint": release.fingerprint,
        "ModelRepetitionTime": model_tr,
        "WindowStep": window_step,
        "Scaling": scaling,
        "Seed": seed,
    }


@dataclass(frozen=True)
class Settings(EmbeddingSettings):
    """The settings that decide the results of the participant level.

    Attributes
    ----------
    strategy : NuisanceStrategy
        The nuisance strategy in use.
    """

    strategy: NuisanceStrategy

    @classmethod
    def of(cls, config: RunConfig, strategy: NuisanceStrategy, release: Release) -> Settings:
        """Collect the settings of a run.

        Raises
        ------
        UsageError
            The filter would let nothing pass.
        BadDataError
            The model was made for other ROIs or windows.
        """
        from bsym_bids.bold.windows import WINDOW_LENGTH
        from bsym_bids.model.contract import check_contract

        check_contract(release, WINDOW_LENGTH)
        high_pass = strategy.high_pass if config.high_pass is None else config.high_pass
        low_pass = strategy.low_pass if config.low_pass is None else config.low_pass
        if 0 < low_pass <= high_pass:
            raise UsageError(
                f"the high-pass cut-off of {high_pass:g} Hz is not below the low-pass cut-off of "
                f"{low_pass:g} Hz",
                hint=f"--high-pass and --low-pass change those of {strategy.name}; 0 is none",
            )
        return cls(
            timeseries={
                "ParcelMethod": config.parcel_method,
                "MinCoverage": config.min_coverage,
                "NuisanceStrategy": _without_cutoffs(strategy),
                "HighPass": high_pass,
                "LowPass": low_pass,
                "FDThreshold": config.fd_threshold,
            },
            embedding=embedding_settings(
                release,
                model_tr=config.model_tr,
                window_step=config.window_step,
                scaling=config.scaling,
                seed=config.seed,
            ),
            strategy=strategy,
            release=release,
        )


class EmbeddingJob(Job):
    """Something that ends with the embedding of a BOLD run.

    Attributes
    ----------
    run : BoldRun or WrittenRun
        The run.
    names : RunNames
        The output names.
    settings : EmbeddingSettings
        What decides the results.
    """

    run: BoldRun | WrittenRun
    names: RunNames
    settings: EmbeddingSettings
    domain_product = "reconstruction"

    @property
    def label(self) -> str:
        """What the run is called in messages and tables."""
        return self.run.label

    @property
    @abstractmethod
    def scaling_rule(self) -> str:
        """Where the statistics come from that ROIs are scaled by."""

    @property
    @abstractmethod
    def embedding_sources(self) -> list[str]:
        """BIDS URIs of what embeddings are made of."""

    @property
    @abstractmethod
    def replaced(self) -> tuple[Path, ...]:
        """Data files that must not survive beside a new embedding."""

    def deviations(self, repetition_time: float) -> list[str] | None:
        """Say how windows with frames so many seconds apart differ from what the model is for."""
        from bsym_bids.model.contract import contract_deviations

        return contract_deviations(
            self.settings.release.card, repetition_time, self.settings.embedding["Scaling"]
        )

    def expected_deviations(self) -> list[str]:
        """Say the same before anything is read, by what the sidecar has on the run."""
        from bsym_bids.bold.resampling import needs_resampling

        wanted = self.settings.embedding["ModelRepetitionTime"]
        own = self.run.repetition_time
        kept = own is not None and not needs_resampling(own, wanted)
        return self.deviations(own if kept else wanted) or []


@dataclass(frozen=True)
class RunJob(EmbeddingJob):
    """One BOLD run with its settings and output names.

    Attributes
    ----------
    run : BoldRun
        The input files.
    names : RunNames
        The output names.
    settings : Settings
        What decides the results.
    """

    run: BoldRun
    names: RunNames
    settings: Settings
    scaling_rule = "statistics over kept frames"

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Expected fingerprint of each group of outputs."""
        files = (self.run.bold, self.run.mask, self.run.confounds, self.run.confounds_json)
        inputs = [file_identity(path) for path in files]
        software = __version__, library_versions(*OF_ALL)
        common = [*software, self.run.repetition_time, inputs, self.settings.timeseries]
        model = library_versions(*OF_MODELS), self.settings.embedding
        return {
            "timeseries": fingerprint(*common),
            "embedding": fingerprint(*common, *model),
        }

    @property
    def embedding_sources(self) -> list[str]:
        """BIDS URIs of what embeddings are made of."""
        return [self.names.uri("denoised")]

    @property
    def replaced(self) -> tuple[Path, ...]:
        """Data files that must not survive beside a new embedding: also what it was fused to."""
        return *self.names.possible_paths("embedding"), *self.names.possible_paths("fused")

    def sources(self) -> dict[str, str]:
        """Return BIDS URIs of the input files by their role."""
        derivatives = self.run.derivatives
        files = {
            "bold": self.run.bold,
            "mask": self.run.mask,
            "confounds": self.run.confounds,
        }
        return {role: uri_of(path, derivatives) for role, path in files.items() if path is not None}


def _without_cutoffs(strategy: NuisanceStrategy) -> dict[str, Any]:
    """Return a strategy without the cut-offs, which may not be the ones in use."""
    return {
        key: value
        for key, value in asdict(strategy).items()
        if key not in ("high_pass", "low_pass")
    }
