"""What operators between layers are, once, as data: recognition in Relax, meaning, effect on signs and channels.

Activations are in `sparseflow.core.activations`, where training and kernels can read them too.
"""
