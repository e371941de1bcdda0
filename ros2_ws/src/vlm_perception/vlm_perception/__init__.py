"""The streaming vision-language memory of a flight: engine, queue, serving form, ROS node."""
