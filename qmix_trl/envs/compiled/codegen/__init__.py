"""Expressions printed as C++ and as Triton."""
