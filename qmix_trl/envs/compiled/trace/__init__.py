"""From unmodified VMAS to a graph of aten operations over a state of tensors."""
