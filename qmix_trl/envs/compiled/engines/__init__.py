"""Engines, which step and reset environments."""
