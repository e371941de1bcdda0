"""The robot brain as a service: HTTP API, runtime profile, execution policy, backends. Only `node` needs ROS."""
