"""Engines: what steps and resets environments."""
