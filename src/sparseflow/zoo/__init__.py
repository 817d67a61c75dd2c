"""Networks of standard shape in plain torch, with seeded weights."""

from sparseflow.zoo import bert, mobilenet, resnet, vgg  # noqa: F401  (each registers its models)
from sparseflow.zoo.registry import ZOO, ZooModel, build

__all__ = ["ZOO", "ZooModel", "build"]
