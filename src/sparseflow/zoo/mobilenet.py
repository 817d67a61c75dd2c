"""MobileNetV1 (depthwise separable convolutions) and MobileNetV2 (inverted residuals, linear bottlenecks).

References
----------
Howard et al., "MobileNets" (2017), table 1. Sandler et al., "MobileNetV2" (2018), table 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sparseflow.zoo.init import register_convnet

V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""(output channels, stride) of each separable block."""

V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, output channels, repeats, first stride) of each stage."""


def _conv_norm(
    channels: int, out: int, size: int, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    parts = [conv, nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, activation) if activation is not None else nn.Sequential(*parts)


class _MobileNet(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class MobileNetV1(_MobileNet):
    """A strided 3×3 stem and 13 separable blocks, ReLU throughout: (N, 3, H, W) → (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm(3, 32, 3, 2, activation=nn.ReLU())]
        channels = 32
        for out, stride in V1:
            blocks.append(
                nn.Sequential(
                    _conv_norm(channels, channels, 3, stride, channels, nn.ReLU()),
                    _conv_norm(channels, out, 1, activation=nn.ReLU()),
                )
            )
            channels = out
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, classes)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1, added to the input where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        parts: list[nn.Module] = []
        if expansion != 1:
            expand = _conv_norm(channels, hidden, 1, activation=nn.ReLU6())
            expand[0].gain = 1.0  # its input is a linear bottleneck
            parts.append(expand)
        parts.append(_conv_norm(hidden, hidden, 3, stride, hidden, nn.ReLU6()))
        project = _conv_norm(hidden, out, 1)
        project[1].scale = 0.6 if self.residual else 1.0
        parts.append(project)
        self.conv = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(_MobileNet):
    """A strided 3×3 stem, 17 inverted residuals and a 1×1 head: (N, 3, H, W) → (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm(3, 32, 3, 2, activation=nn.ReLU6())]
        channels = 32
        for expansion, out, repeats, stride in V2:
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        head = _conv_norm(channels, 1280, 1, activation=nn.ReLU6())
        head[0].gain = 1.0
        self.features = nn.Sequential(*blocks, head)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))


register_convnet("mobilenet_v1", "MobileNetV1, 3×224×224, 4.2 M weights", MobileNetV1)
register_convnet("mobilenet_v2", "MobileNetV2, 3×224×224, 3.5 M weights", MobileNetV2)
