"""Pieces of TIR that templates are written with."""
