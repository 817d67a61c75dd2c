"""Engines at run time: saving and loading, calls, threads, memory."""
