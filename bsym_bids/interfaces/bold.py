"""Interfaces of BOLD processing: parcellate, clean, write time series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bsym_bids.interfaces.base import PlainInputSpec, PlainInterface
from bsym_bids.interfaces.files import load_record, save_record


class _ParcellateInputSpec(PlainInputSpec):
    # Files of the dataset need not exist: who reads one that is gone explains it, where a trait
    # would end the making of everybody's graph.
    bold_file = File(mandatory=True, desc="preprocessed series, volumes or CIFTI")
    mask_file = File(desc="brain mask")
    space = traits.Str(desc="space of the series")
    repetition_time = traits.Float(desc="from the sidecar, in seconds; else the header's is used")
    method = traits.Enum("mean", "pca", usedefault=True, desc="summary of an ROI's voxels")


class _ParcellateOutputSpec(TraitedSpec):
    parcellation = File(exists=True, desc="time series and coverage of 450 ROIs")


class ParcellateBold(PlainInterface):
    """Summarise a series by ROI."""

    input_spec = _ParcellateInputSpec
    output_spec = _ParcellateOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold import parcellate

        inputs = self.inputs
        parcellation = parcellate(
            inputs.bold_file,
            mask=_or_none(inputs.mask_file),
            method=inputs.method,
            space=_or_none(inputs.space),
            repetition_time=_or_none(inputs.repetition_time),
            work_dir=folder,
        )
        return {"parcellation": save_record(parcellation, folder / "parcellation.npz")}


class _CleanInputSpec(PlainInputSpec):
    parcellation = File(exists=True, mandatory=True, desc="time series and coverage")
    confounds_file = File(desc="confounds table of fMRIPrep")
    confounds_json = File(desc="its description, read beside it: here so that changes are seen")
    bold_file = traits.Str(mandatory=True, desc="source file, named in errors")
    strategy = traits.Any(mandatory=True, desc="nuisance strategy")
    high_pass = traits.Float(mandatory=True, desc="cut-off in Hz, 0 for none")
    low_pass = traits.Float(mandatory=True, desc="cut-off in Hz, 0 for none")
    fd_threshold = traits.Float(0.0, usedefault=True, desc="in mm, 0 for no censoring")
    min_coverage = traits.Float(0.5, usedefault=True, desc="ROIs below become n/a")


class _CleanOutputSpec(TraitedSpec):
    cleaned = File(exists=True, desc="cleaned run")


class CleanBold(PlainInterface):
    """Regress nuisance signals out of the ROI series, filter and censor."""

    input_spec = _CleanInputSpec
    output_spec = _CleanOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold.cleaning import clean_run
        from bsym_bids.bold.parcellate import Parcellation, drop_low_coverage

        inputs = self.inputs
        parcellation = load_record(Parcellation, inputs.parcellation)
        cleaned = clean_run(
            drop_low_coverage(parcellation.timeseries, parcellation.coverage, inputs.min_coverage),
            parcellation.repetition_time or 0.0,
            _or_none(inputs.confounds_file),
            inputs.strategy,
            high_pass=inputs.high_pass,
            low_pass=inputs.low_pass,
            fd_threshold=inputs.fd_threshold,
            source=inputs.bold_file,
        )
        return {"cleaned": save_record(cleaned, folder / "cleaned.npz")}


class _WriteInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the run with its settings and output names")
    parcellation = File(exists=True, mandatory=True, desc="time series and coverage")
    cleaned = File(exists=True, mandatory=True, desc="cleaned run")


class _WriteOutputSpec(TraitedSpec):
    out_files = traits.List(traits.Str, desc="files written")


class WriteTimeSeries(PlainInterface):
    """Publish time series, coverage, connectivity and run quality."""

    input_spec = _WriteInputSpec
    output_spec = _WriteOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold.cleaning import CleanedRun
        from bsym_bids.bold.parcellate import Parcellation
        from bsym_bids.outputs.timeseries import write_timeseries

        written = write_timeseries(
            self.inputs.job,
            load_record(Parcellation, self.inputs.parcellation),
            load_record(CleanedRun, self.inputs.cleaned),
        )
        return {"out_files": [str(path) for path in written]}


def _or_none(value: Any) -> Any:
    return value if isdefined(value) else None
