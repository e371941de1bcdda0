"""Test rigs that other packages and the benchmarks import too: a lock-step edge, the real node, wrong servers."""
