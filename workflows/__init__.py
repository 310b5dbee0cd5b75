"""Nipype workflows: what runs, in which order, on which files."""
