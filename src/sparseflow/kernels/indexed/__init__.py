"""Kernels on channels-last maps that carry the index of their zeros."""
