"""Kernel templates: the code generators for convolutions and linear layers, and the layouts they read and write."""
