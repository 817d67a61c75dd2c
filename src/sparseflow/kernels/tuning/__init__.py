"""Which kernel a layer gets: candidates timed on the target, and what was measured kept on disk."""
