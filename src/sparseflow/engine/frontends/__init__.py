"""Readers of foreign model formats; each gives one Relax function with named weight constants."""
