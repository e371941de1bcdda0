"""Record, judge, replay and evaluate flights. Only `node` needs ROS."""
