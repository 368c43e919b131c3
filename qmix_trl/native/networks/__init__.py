"""The networks of agents and mixers in C++, forward and backward."""
