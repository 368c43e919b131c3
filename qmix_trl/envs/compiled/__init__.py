"""The compiler of VMAS steps: traced, lowered, printed, built and checked against VMAS."""
