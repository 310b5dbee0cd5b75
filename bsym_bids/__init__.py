"""bsym-bids: fMRIPrep derivatives and diffusion MRI to BrainSymphony embeddings."""

__version__ = "0.1.0"
