"""Descriptions of the command for programs that run it: Boutiques, Nipoppy, BABS, CBRAIN."""
