"""What both sides of StreamPilot must agree on: topics, time, frames, wire format. Needs no ROS, except `ros`."""
