"""The monitoring page: what the graph says (`board`), past flights (`flights`), how it is shown (`view`), ROS."""

PATH = "/monitor"
