"""Flies by instructions in words: one bounded tool call at a time, hovering in between."""
