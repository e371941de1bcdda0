"""Experiments on the streaming memory: sink detection, memory use, quality after eviction, time."""
