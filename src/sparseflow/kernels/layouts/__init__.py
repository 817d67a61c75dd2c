"""Orders of dense maps in memory: over vector lanes, and channels last with an index."""
