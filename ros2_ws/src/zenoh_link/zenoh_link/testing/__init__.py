"""What tests and benchmarks share: the two sides of a link in one process, and network namespaces between machines."""
