"""The node graph as data, the runner that starts it, the flight of one mission."""
