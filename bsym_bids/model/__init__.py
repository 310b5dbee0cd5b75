"""The BrainSymphony network."""
