"""One file for each kind of run: results in, `Document` out; importing this package registers all."""

from sparseflow.report.kinds import bench, feature_maps, kernels, maps, prune, quickstart, streams, sweep

__all__ = ["bench", "feature_maps", "kernels", "maps", "prune", "quickstart", "streams", "sweep"]
