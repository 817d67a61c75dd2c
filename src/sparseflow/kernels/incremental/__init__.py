"""Kernels that bring kept maps up to date where a frame changed."""
