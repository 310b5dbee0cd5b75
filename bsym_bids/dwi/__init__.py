"""Diffusion MRI: from a series and its gradients to the 450 x 450 structural connectome."""
