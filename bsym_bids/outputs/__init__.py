"""Output names, tables, sidecars, and how they reach the output dataset whole."""
