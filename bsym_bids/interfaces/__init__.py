"""Nipype interfaces: unpack the inputs, call one plain function, pack the results."""
