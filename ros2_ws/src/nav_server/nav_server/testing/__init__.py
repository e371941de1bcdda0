"""What tests and benchmarks of the HTTP API share."""
