"""Engines for frames that resemble each other: only what changed is recomputed."""
