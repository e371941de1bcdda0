"""Recordings (rosbag2, MCAP): read, and repaired. They are written by nav_common.bag_writer."""

from nav_common.bag_writer import BagError, BagWriteError, BagWriter
from nav_eval.bags.reader import Bag, Logged
from nav_eval.bags.repair import repair

__all__ = ["Bag", "BagError", "BagWriteError", "BagWriter", "Logged", "repair"]
