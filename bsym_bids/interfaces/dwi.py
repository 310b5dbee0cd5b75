"""Interfaces of diffusion processing: prepare, check, place the anatomy, model, track, write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bsym_bids.interfaces.base import PlainInputSpec, PlainInterface
from bsym_bids.interfaces.files import load_record, save_record

#: Folder, beside those of a scan's nodes, of the batches of streamlines that are finished.
BATCHES = "batches"


class _ThreadsInputSpec(PlainInputSpec):
    threads = traits.Int(1, usedefault=True, nohash=True, desc="processes or threads at once")


class _PrepareInputSpec(_ThreadsInputSpec):
    scan = traits.Any(mandatory=True, desc="the scan's input files")
    identity = traits.Any(desc="state of the input files, so that changes are seen")
    tools = traits.Any(desc="what preprocesses raw series, so that changes are seen")


class _DwiOutputSpec(TraitedSpec):
    dwi = File(exists=True, desc="the prepared series")


class PrepareDwi(PlainInterface):
    """Bring a diffusion series into a shape that can be modelled."""

    input_spec = _PrepareInputSpec
    output_spec = _DwiOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.preprocessing import prepare_dwi

        dwi = prepare_dwi(self.inputs.scan, folder, threads=self.inputs.threads)
        return {"dwi": save_record(dwi, folder / "dwi.npz")}


class _OrientInputSpec(_ThreadsInputSpec):
    dwi = File(exists=True, mandatory=True, desc="the prepared series")
    mode = traits.Enum("correct", "warn", "off", usedefault=True, desc="what to do about a flip")


class CheckOrientation(PlainInterface):
    """Check the gradients for exchanged and inverted axes, and map anisotropy by direction."""

    input_spec = _OrientInputSpec
    output_spec = _DwiOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.maps import with_coloured_anisotropy
        from bsym_bids.dwi.orientation import check_orientation
        from bsym_bids.dwi.records import PreparedDwi

        inputs = self.inputs
        dwi = check_orientation(
            load_record(PreparedDwi, inputs.dwi), folder, mode=inputs.mode, threads=inputs.threads
        )
        dwi = with_coloured_anisotropy(dwi, folder, threads=inputs.threads)
        return {"dwi": save_record(dwi, folder / "dwi.npz")}


class _AnatomyInputSpec(PlainInputSpec):
    anatomy = traits.Any(desc="the participant's anatomical files; undefined for none")
    identity = traits.Any(desc="state of the input files, so that changes are seen")


class _AnatomyOutputSpec(TraitedSpec):
    anatomy = File(exists=True, desc="the prepared anatomy")


class PrepareAnatomy(PlainInterface):
    """Bring atlas and tissues into the space of the T1-weighted image."""

    input_spec = _AnatomyInputSpec
    output_spec = _AnatomyOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.anatomy import prepare_anatomy

        anatomy = self.inputs.anatomy if isdefined(self.inputs.anatomy) else None
        prepared = prepare_anatomy(anatomy, folder)
        return {"anatomy": save_record(prepared, folder / "anatomy.npz")}


class _PlaceInputSpec(PlainInputSpec):
    dwi = File(exists=True, mandatory=True, desc="the prepared series")
    anatomy = File(exists=True, mandatory=True, desc="the prepared anatomy")
    same_space = traits.Bool(False, usedefault=True, desc="whether they lie on each other already")


class _PlaceOutputSpec(TraitedSpec):
    placed = File(exists=True, desc="atlas and tissues in the space of the series")


class PlaceAnatomy(PlainInterface):
    """Register the anatomy to the diffusion series."""

    input_spec = _PlaceInputSpec
    output_spec = _PlaceOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.anatomy import place_anatomy
        from bsym_bids.dwi.records import PreparedAnatomy, PreparedDwi

        inputs = self.inputs
        placed = place_anatomy(
            load_record(PreparedDwi, inputs.dwi),
            load_record(PreparedAnatomy, inputs.anatomy),
            folder,
            same_space=inputs.same_space,
        )
        return {"placed": save_record(placed, folder / "placed.npz")}


class _EngineInputSpec(_ThreadsInputSpec):
    engine = traits.Any(mandatory=True, desc="what tracks")
    preset = traits.Any(mandatory=True, desc="its parameters")
    seed = traits.Int(0, usedefault=True, desc="seed of everything random")
    placed = File(exists=True, mandatory=True, desc="atlas and tissues")


class _FitInputSpec(_EngineInputSpec):
    dwi = File(exists=True, mandatory=True, desc="the prepared series")


class _FitOutputSpec(TraitedSpec):
    model = File(exists=True, desc="fibre orientations")


class FitOrientations(PlainInterface):
    """Estimate fibre orientations."""

    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.records import PlacedAnatomy, PreparedDwi

        inputs = self.inputs
        model = inputs.engine.fit(
            load_record(PreparedDwi, inputs.dwi),
            load_record(PlacedAnatomy, inputs.placed),
            inputs.preset,
            folder,
            threads=inputs.threads,
            seed=inputs.seed,
        )
        return {"model": save_record(model, folder / "model.npz")}


class _SampleInputSpec(_EngineInputSpec):
    model = File(exists=True, mandatory=True, desc="fibre orientations")
    rule = traits.Any(mandatory=True, desc="how many streamlines")
    tractogram = traits.Str(desc="format in which streamlines are kept: tck or trx")


class _SampleOutputSpec(TraitedSpec):
    connectome = File(exists=True, desc="edges and how they were found")
    tractogram = File(desc="the streamlines, where they are kept")


class SampleConnectome(PlainInterface):
    """Track until the connectome is reliable."""

    input_spec = _SampleInputSpec
    output_spec = _SampleOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.records import FittedModel, PlacedAnatomy
        from bsym_bids.dwi.sampling import sample_connectome

        inputs = self.inputs
        kept = folder / f"tractogram.{inputs.tractogram}" if isdefined(inputs.tractogram) else None
        # Beside the folder of the node: that is emptied when a killed run goes on.
        batches = folder.parent / BATCHES
        batches.mkdir(exist_ok=True)
        connectome = sample_connectome(
            inputs.engine,
            load_record(FittedModel, inputs.model),
            load_record(PlacedAnatomy, inputs.placed),
            inputs.preset,
            batches,
            rule=inputs.rule,
            seed=inputs.seed,
            processes=inputs.threads,
            tractogram=kept,
        )
        results = {"connectome": save_record(connectome, folder / "connectome.npz")}
        return results | ({"tractogram": str(kept)} if kept else {})


class _WriteInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the scan with its settings and output names")
    connectome = File(exists=True, mandatory=True, desc="edges and how they were found")


class _WriteConnectomeInputSpec(_WriteInputSpec):
    dwi = File(exists=True, mandatory=True, desc="the prepared series")
    placed = File(exists=True, mandatory=True, desc="atlas and tissues")
    model = File(exists=True, mandatory=True, desc="fibre orientations")
    tractogram = File(desc="the streamlines, where they are kept")


class _WriteOutputSpec(TraitedSpec):
    out_files = traits.List(traits.Str, desc="files written")


class WriteConnectome(PlainInterface):
    """Publish the connectome, its quality, and the atlas in the person's space."""

    input_spec = _WriteConnectomeInputSpec
    output_spec = _WriteOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.dwi.connectome import Connectome
        from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
        from bsym_bids.outputs.connectome import write_connectome

        inputs = self.inputs
        written = write_connectome(
            inputs.job,
            load_record(PreparedDwi, inputs.dwi),
            load_record(PlacedAnatomy, inputs.placed),
            load_record(FittedModel, inputs.model),
            load_record(Connectome, inputs.connectome),
            Path(inputs.tractogram) if isdefined(inputs.tractogram) else None,
        )
        return {"out_files": [str(path) for path in written]}


class _EmbedInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the scan with its settings and output names")
    after = traits.Any(desc="outputs that must have been written before")


class _EmbedOutputSpec(TraitedSpec):
    given = File(exists=True, desc="what the model got")
    embedding = File(exists=True, desc="what it said")


class EmbedConnectome(PlainInterface):
    """Embed the connectome that was published, and score the prediction of its edges.

    On one thread, so that the last digits don't depend on how many there are; it takes seconds.
    """

    input_spec = _EmbedInputSpec
    output_spec = _EmbedOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.model.structural_embedding import (
            connectome_input,
            embed_connectome,
            expected_streamlines,
            group_input,
        )
        from bsym_bids.model.weights import load_model
        from bsym_bids.outputs.connectome import read_counts

        settings = self.inputs.job.settings
        release, convention = settings.release, settings.convention
        seed = settings.structural["Seed"]
        counts, volumes = read_counts(self.inputs.job)
        given = connectome_input(counts, volumes, convention, expected_streamlines(release.card))
        embedding = embed_connectome(
            load_model(release, seed=seed),
            given,
            seed=seed,
            group=group_input(convention),
            threads=1,
        )
        return {
            "given": save_record(given, folder / "given.npz"),
            "embedding": save_record(embedding, folder / "embedding.npz"),
        }


class _WriteStructuralInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the scan with its settings and output names")
    given = File(exists=True, mandatory=True, desc="what the model got")
    embedding = File(exists=True, mandatory=True, desc="what it said")


class WriteStructural(PlainInterface):
    """Publish the structural embedding of a scan."""

    input_spec = _WriteStructuralInputSpec
    output_spec = _WriteOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.model.structural_embedding import ConnectomeInput, StructuralEmbedding
        from bsym_bids.outputs.structural import write_structural

        inputs = self.inputs
        written = write_structural(
            inputs.job,
            load_record(ConnectomeInput, inputs.given),
            load_record(StructuralEmbedding, inputs.embedding),
        )
        return {"out_files": [str(path) for path in written]}


class _TidyInputSpec(PlainInputSpec):
    keep = traits.List(traits.Str, desc="folders of nodes that others still read")
    after = traits.Any(desc="outputs that must have been written before")


class RemoveWork(PlainInterface):
    """Remove what the steps of a scan have left: series and orientations take gigabytes."""

    input_spec = _TidyInputSpec
    output_spec = TraitedSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        for other in folder.parent.iterdir():
            if other.is_dir() and other != folder and other.name not in self.inputs.keep:
                shutil.rmtree(other)
        return {}


class _FuseInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the run and the scan with their output names")
    functional = traits.Any(desc="outputs that must have been written before")
    structural = traits.Any(desc="outputs that must have been written before")


class FuseEmbeddings(PlainInterface):
    """Read the embeddings of a run and a scan, and publish the fused one."""

    input_spec = _FuseInputSpec
    output_spec = _WriteOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.model.structural_embedding import fuse
        from bsym_bids.model.weights import load_model
        from bsym_bids.outputs.structural import read_embeddings, write_fused

        job = self.inputs.job
        model = load_model(job.settings.release)
        written = write_fused(job, fuse(model, *read_embeddings(job)))
        return {"out_files": [str(path) for path in written]}
