"""Simulated people: their connectivity, BOLD series and connectomes."""
