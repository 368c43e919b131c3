"""Configurations of runs: their fields, files and checks.

Neither torch nor VMAS is imported here, so that a mistake is told at once.
"""
