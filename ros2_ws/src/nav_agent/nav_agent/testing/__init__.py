"""Rigs that tests and benchmarks fly: `rig` on a virtual clock, `graph` with real processes."""
