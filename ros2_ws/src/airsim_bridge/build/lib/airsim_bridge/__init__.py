"""The edge: the only part that touches the drone. Needs no ROS, except `node`, `parameters` and `testing.graph`."""
