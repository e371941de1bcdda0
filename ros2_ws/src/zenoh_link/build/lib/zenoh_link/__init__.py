"""Two machines, one graph: topics and services of the vehicle over zenoh, across a bad internet."""
