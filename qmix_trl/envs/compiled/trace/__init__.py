"""VMAS's step as a graph of aten operations, and where a simulator keeps its state."""
