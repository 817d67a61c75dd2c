"""Linear layers of few rows, which wait for their weights."""
