"""What a single weight counts, by different measures, one a file; methods take them by name."""

from sparseflow.train.criteria.base import CRITERIA, Criterion, Reads, Scores

__all__ = ["CRITERIA", "Criterion", "Reads", "Scores"]
