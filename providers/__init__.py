"""Wires and vendors: pure code, no I/O, no clock, no randomness. `router` imports this package, never the other way."""
