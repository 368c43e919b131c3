"""The traced graph as scalar expressions of one environment."""
