"""What tests and benchmarks of several packages share: random models of the engine's architecture."""
