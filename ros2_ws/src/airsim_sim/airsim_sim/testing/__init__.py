"""What the tests and the benchmarks of the simulator share."""
