"""The networks of agents and mixers in C++, forward and backward.

Each kernel is a header and a Python file of one name. The Python file defines the structure of the
arguments, which is printed in front of the header: no structure is written twice.
"""
