"""Small convolutional networks for the data sets of `sparseflow.data`, by name in recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.data import ImageData
from sparseflow.errors import RecipeError
from sparseflow.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Builders ``build(data, **arguments) -> nn.Module``; weights come from torch's generator, so seed it first."""


class ConvBlock(nn.Sequential):
    """3×3 convolution, max pooling if asked for, batch norm, ReLU.

    The convolution starts as the identity on its first channels where it does not narrow, which speeds up the
    first epochs.

    References
    ----------
    K. Jordan, arXiv 2404.00498, section 3.3 (identity initialisation).
    """

    def __init__(self, inputs: int, outputs: int, pool: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        if outputs >= inputs:
            nn.init.dirac_(conv.weight.data[:inputs])
        pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
        super().__init__(conv, *pooling, nn.BatchNorm2d(outputs), nn.ReLU())


class ResidualBlock(nn.Module):
    """``relu(x + bn(conv(relu(bn(conv(x))))))`` with 3×3 convolutions of equal width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width, height, width) in and out."""
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(x + self.bn2(self.conv2(y)))
        return out


class CifarNet(nn.Module):
    """A network for 32×32 colour images that trains in about twenty minutes on two CPU cores.

    A fixed 2×2 whitening stem, five 3×3 convolutions on 31×31, 15×15 and 7×7 maps, a residual block of two
    more on 3×3, global max pooling, a linear classifier: 1.75 million weights, 69 million
    multiply-accumulates.

    Parameters
    ----------
    classes : int
    widths : sequence of three int
        Filters of the three stages.

    References
    ----------
    K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, sections 3.1 to 3.3; the
    residual block as in D. Page, "How to train your ResNet", 2018.
    """

    def __init__(self, classes: int = 10, widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(3, 24, 2)
        self.relu = nn.ReLU()
        self.features = nn.Sequential(
            ConvBlock(24, a, pool=2),
            ConvBlock(a, a),
            ConvBlock(a, b, pool=2),
            ConvBlock(b, b),
            ConvBlock(b, c, pool=2),
            ResidualBlock(c),
            nn.MaxPool2d(3),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 3, 32, 32)."""
        features = self.features(self.relu(self.stem(x)))
        logits: Tensor = self.classifier(features * 0.125)  # keeps the classifier's steps small
        return logits

    def whiten(self, images: Tensor) -> None:
        """Set the stem to the whitening of 2×2 patches, each filter also with opposite sign, and freeze it.

        Parameters
        ----------
        images : Tensor of float, shape (count, 3, height, width)
            Normalised as in training; a few thousand are enough.
        """
        with torch.no_grad():
            patches = (
                images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
            )
            covariance = patches.T @ patches / len(patches)
            values, vectors = torch.linalg.eigh(covariance)
            filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).float()
            self.stem.weight.copy_(torch.cat([filters, -filters]))
            self.stem.bias.zero_()
            self.stem.weight.requires_grad_(False)


class _GreyNet(nn.Module):
    """A linear classifier of features."""

    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, 1, 28, 28)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class MnistCnn(_GreyNet):
    """A network for 28×28 grey images: four 3×3 convolutions with batch norm, and a linear classifier.

    Pooling comes after the ReLU, so that a compiler can fold each batch norm into its convolution. 17 million
    multiply-accumulates.

    Parameters
    ----------
    classes : int
    widths : sequence of two int
        Filters of the two stages.
    """

    def __init__(self, classes: int = 10, widths: Sequence[int] = (48, 96)) -> None:
        super().__init__()
        a, b = widths
        self.features = nn.Sequential(
            ConvBlock(1, a),
            nn.MaxPool2d(2),
            ConvBlock(a, a),
            ConvBlock(a, b),
            nn.MaxPool2d(2),
            ConvBlock(b, b),
            nn.MaxPool2d(7),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(b, classes)


class Downsample(nn.Module):
    """Half the map, another width: ``relu(bn(conv1x1(x)) + bn(conv(relu(bn(conv(x))))))``, both ways with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, inputs, height, width) to (batch, outputs, height / 2, width / 2)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn3(self.shortcut(x)) + self.bn2(self.conv2(y)))


class MnistResNet(_GreyNet):
    """A residual network for 28×28 grey images: two blocks of each width; 14 million multiply-accumulates.

    Parameters
    ----------
    classes : int
    widths : sequence of two int
        Filters of the two stages.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016, sections 3.3 and 4.2.
    """

    def __init__(self, classes: int = 10, widths: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        a, b = widths
        self.features = nn.Sequential(
            ConvBlock(1, a),
            nn.MaxPool2d(2),
            ResidualBlock(a),
            ResidualBlock(a),
            Downsample(a, b),
            ResidualBlock(b),
            nn.MaxPool2d(7),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(b, classes)


def build_model(name: str, data: ImageData, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The registered model ``name`` for ``data``.

    Raises
    ------
    RecipeError
        If its builder takes no such arguments.
    """
    build, given = MODELS[name], dict(arguments or {})
    allowed = list(inspect.signature(build).parameters)[1:]
    for key in given:
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise RecipeError(f"model.arguments.{key}: {name} has no such argument; known: {known}")
    try:
        return build(data, **given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.arguments: {name} cannot be built with {given} ({error})") from error


@MODELS.register("cifar_net")
def cifar_net(data: ImageData, widths: Sequence[int] = (64, 128, 256)) -> nn.Module:
    """`CifarNet` with its stem whitened on the first 5,000 training images."""
    model = CifarNet(len(data.classes), widths)
    mean, std = data.statistics()
    images = data.train_images[:5000].float() / 255
    model.whiten((images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1))
    return model


@MODELS.register("mnist_cnn")
def mnist_cnn(data: ImageData, widths: Sequence[int] = (48, 96)) -> nn.Module:
    """`MnistCnn` for the classes of ``data``."""
    return MnistCnn(len(data.classes), widths)


@MODELS.register("mnist_resnet")
def mnist_resnet(data: ImageData, widths: Sequence[int] = (32, 64)) -> nn.Module:
    """`MnistResNet` for the classes of ``data``."""
    return MnistResNet(len(data.classes), widths)
