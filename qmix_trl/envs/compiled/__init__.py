"""VMAS as a pure step, compiled and checked beside VMAS (``compile.py`` is the way in)."""
