"""Sparsity training inside other people's loops, one framework a file; import the one that you have."""
