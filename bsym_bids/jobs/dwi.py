"""What is to be done for each diffusion scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bsym_bids import __version__
from bsym_bids.jobs.base import Job, uri_of
from bsym_bids.outputs.names import ScanNames
from bsym_bids.outputs.publish import file_identity, fingerprint
from bsym_bids.software import OF_ALL, OF_MODELS, OF_SCANS, library_versions

if TYPE_CHECKING:
    from bsym_bids.config import RunConfig
    from bsym_bids.dwi.engines import Engine
    from bsym_bids.dwi.presets import Preset
    from bsym_bids.dwi.sampling import SamplingRule
    from bsym_bids.inputs import DwiScan
    from bsym_bids.model.structural import EdgeConvention
    from bsym_bids.model.weights import Release


@dataclass(frozen=True)
class ScanSettings:
    """The settings that decide what is made of diffusion scans.

    Attributes
    ----------
    connectome : mapping
        What decides the connectome.
    structural : mapping
        What decides, on top of that, the structural embedding; empty when the model has none.
    preprocessing : mapping
        What preprocesses raw series here, which decides their connectomes too; without what
        differs between scans (`ScanJob.preprocessing`).
    engine : Engine
        What tracks.
    preset : Preset
        How.
    rule : SamplingRule
        How many streamlines.
    tractogram : str, optional
        Format in which streamlines are kept.
    release : Release
        The model in use.
    """

    connectome: Mapping[str, Any]
    structural: Mapping[str, Any]
    preprocessing: Mapping[str, str]
    engine: Engine
    preset: Preset
    rule: SamplingRule
    tractogram: str | None
    release: Release

    @classmethod
    def of(cls, config: RunConfig, release: Release) -> ScanSettings:
        """Collect the settings of a run.

        Raises
        ------
        InputMissingError
            The engine that is asked for is not installed.
        UsageError
            The preset cannot be used.
        """
        from bsym_bids.dwi.engines import resolve_engine
        from bsym_bids.dwi.presets import load_preset
        from bsym_bids.dwi.sampling import SamplingRule
        from bsym_bids.dwi.tools import preprocessing_tools

        preset = load_preset(config.preset)
        engine = resolve_engine(config.engine)
        fixed = config.streamlines
        rule = SamplingRule(
            reliability=None if fixed else config.reliability or preset.reliability,
            max_streamlines=config.max_streamlines or preset.max_streamlines,
            streamlines=fixed,
        )
        return cls(
            connectome={
                "Engine": engine.name,
                "EngineVersion": engine.version,
                "Preset": preset.parameters(engine.name),
                "SamplingRule": asdict(rule),
                "GradientCheck": config.gradient_check,
                "Seed": config.seed,
            },
            structural=_structural_settings(config, release),
            preprocessing=preprocessing_tools(),
            engine=engine,
            preset=preset,
            rule=rule,
            tractogram=config.save_tractogram,
            release=release,
        )

    @property
    def convention(self) -> EdgeConvention:
        """What is made of counts before the model gets them."""
        from bsym_bids.model.structural import EdgeConvention

        return EdgeConvention(self.structural["Measure"], self.structural["Transform"])


def _structural_settings(config: RunConfig, release: Release) -> dict[str, Any]:
    """Return what decides structural embeddings, or nothing when the model makes none."""
    from bsym_bids.model.structural import usual_convention

    if not release.has_branch("structural"):
        return {}
    usual = usual_convention(release.card)
    return {
        "Model": release.name,
        "ModelFingerprint": release.fingerprint,
        "Measure": config.sc_measure or usual.measure,
        "Transform": config.sc_transform or usual.transform,
        "Seed": config.seed,
    }


@dataclass(frozen=True)
class ScanJob(Job):
    """One diffusion scan with its settings and output names.

    Attributes
    ----------
    scan : DwiScan
        The input files.
    names : ScanNames
        The output names.
    settings : ScanSettings
        What decides the results.
    """

    scan: DwiScan
    names: ScanNames
    settings: ScanSettings
    domain_product = "edge_quality"

    @property
    def label(self) -> str:
        """What the scan is called in messages and tables."""
        return self.scan.label

    @cached_property
    def preprocessing(self) -> Mapping[str, str]:
        """What preprocesses the series; empty where that was done elsewhere."""
        from bsym_bids.dwi.tools import motion_tool

        if self.scan.is_preprocessed:
            return {}
        return {**self.settings.preprocessing, "MotionCorrection": motion_tool(self.scan)}

    @property
    def uses_fsl(self) -> bool:
        """Whether FSL's eddy takes part in preprocessing."""
        return self.preprocessing.get("MotionCorrection", "").startswith("FSL")

    @cached_property
    def work_bytes(self) -> int:
        """Bytes that the series has while it is worked on."""
        from bsym_bids.dwi.series import work_bytes

        return work_bytes(self.scan.images)

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Expected fingerprint of each group of outputs."""
        inputs = [file_identity(path) for path in self.scan.files]
        acquired = [
            (image.phase_encoding, image.readout_time)
            for image in (*self.scan.images, *self.scan.reverse)
        ]
        software = __version__, library_versions(*OF_ALL, *OF_SCANS), self.preprocessing
        settings = self.settings.connectome, self.settings.tractogram
        common = [*software, inputs, acquired, *settings]
        found = {"connectome": fingerprint(*common)}
        if self.settings.structural:
            model = library_versions(*OF_MODELS), self.settings.structural
            found["structural"] = fingerprint(*common, *model)
        return found

    def expected_deviations(self) -> list[str]:
        """Say how connectomes will differ from those that the model was made for."""
        from bsym_bids.model.contract import connectome_deviations

        if not self.settings.structural:
            return []
        return connectome_deviations(self.settings.release.card, self.settings.convention) or []

    def sources(self) -> list[str]:
        """Return BIDS URIs of the input files."""
        anatomy = self.scan.anatomy
        files = [uri_of(path, self.scan.dataset) for path in self.scan.own_files]
        return files + [
            uri_of(path, anatomy.dataset) for path in (anatomy.files if anatomy else ())
        ]
