"""Times of engines, peers, layers and kernels."""
