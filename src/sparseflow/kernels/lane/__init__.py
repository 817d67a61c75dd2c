"""Kernels on maps that are cut into blocks over the vector lanes."""
