"""Interfaces of the model: embed windows, score their reconstruction, write both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, traits

from bsym_bids.interfaces.base import PlainInputSpec, PlainInterface
from bsym_bids.interfaces.files import load_record, save_record


class _ModelInputSpec(PlainInputSpec):
    release = traits.Any(mandatory=True, desc="the model release")
    seed = traits.Int(0, usedefault=True, desc="seed of random weights, folds and permutations")
    threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of torch")


class _EmbedInputSpec(_ModelInputSpec):
    cleaned = File(exists=True, mandatory=True, desc="cleaned run")
    bold_file = traits.Str(mandatory=True, desc="source file, named in errors")
    model_tr = traits.Float(0.8, usedefault=True, desc="repetition time the model expects")
    window_step = traits.Int(100, usedefault=True, desc="frames between windows")
    scaling = traits.Str("robust", usedefault=True, desc="scaling of each ROI")


class _EmbedOutputSpec(TraitedSpec):
    windows = File(exists=True, desc="windows that the model saw")
    embedding = File(exists=True, desc="embeddings and attention")


class EmbedWindows(PlainInterface):
    """Cut a cleaned run into windows and embed them."""

    input_spec = _EmbedInputSpec
    output_spec = _EmbedOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold.cleaning import CleanedRun
        from bsym_bids.model.embed import embed_run
        from bsym_bids.model.weights import load_model

        inputs = self.inputs
        windows, embedding = embed_run(
            load_model(inputs.release, seed=inputs.seed),
            load_record(CleanedRun, inputs.cleaned),
            model_tr=inputs.model_tr,
            window_step=inputs.window_step,
            scaling=inputs.scaling,
            source=inputs.bold_file,
            threads=inputs.threads,
        )
        return {
            "windows": save_record(windows, folder / "windows.npz"),
            "embedding": save_record(embedding, folder / "embedding.npz"),
        }


class _ScoreInputSpec(_ModelInputSpec):
    windows = File(exists=True, mandatory=True, desc="windows that the model saw")


class _ScoreOutputSpec(TraitedSpec):
    reconstruction = File(exists=True, desc="scores of held-out ROIs")


class ScoreReconstruction(PlainInterface):
    """Hold ROIs out and score how the model and the linear baseline reconstruct them."""

    input_spec = _ScoreInputSpec
    output_spec = _ScoreOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold.windows import Windows
        from bsym_bids.model.reconstruction import score_windows
        from bsym_bids.model.weights import load_model

        inputs = self.inputs
        windows = load_record(Windows, inputs.windows)
        model = load_model(inputs.release, seed=inputs.seed)
        quality = score_windows(model, windows, inputs.seed, inputs.threads)
        return {"reconstruction": save_record(quality, folder / "reconstruction.npz")}


class _WriteInputSpec(PlainInputSpec):
    job = traits.Any(mandatory=True, desc="the run with its settings and output names")
    cleaned = File(exists=True, mandatory=True, desc="cleaned run")
    windows = File(exists=True, mandatory=True, desc="windows that the model saw")
    embedding = File(exists=True, mandatory=True, desc="embeddings and attention")
    reconstruction = File(exists=True, mandatory=True, desc="scores of held-out ROIs")
    after = traits.Any(desc="outputs that must have been written before")


class _WriteOutputSpec(TraitedSpec):
    out_files = traits.List(traits.Str, desc="files written")


class WriteEmbedding(PlainInterface):
    """Publish embeddings, attention and reconstruction quality of a run."""

    input_spec = _WriteInputSpec
    output_spec = _WriteOutputSpec

    def _call(self, folder: Path) -> dict[str, Any]:
        from bsym_bids.bold.cleaning import CleanedRun
        from bsym_bids.bold.windows import Windows
        from bsym_bids.model.embed import FunctionalEmbedding
        from bsym_bids.model.reconstruction import ReconstructionQuality
        from bsym_bids.outputs.embedding import write_embedding

        inputs = self.inputs
        written = write_embedding(
            inputs.job,
            load_record(CleanedRun, inputs.cleaned),
            load_record(Windows, inputs.windows),
            load_record(FunctionalEmbedding, inputs.embedding),
            load_record(ReconstructionQuality, inputs.reconstruction),
        )
        return {"out_files": [str(path) for path in written]}
