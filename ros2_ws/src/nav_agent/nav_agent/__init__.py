"""Flies where the words say: one bounded tool call at a time, hovering in between."""
