"""Batches of images in memory, augmented with whole-tensor operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseflow.errors import DataError


@dataclass(frozen=True)
class Augment:
    """Random changes to training images.

    Parameters
    ----------
    flip : {"none", "random", "alternate"}
        Mirroring: at random, or so that each image is seen mirrored in every other epoch.
    crop : int
        Images move by up to so many pixels each way; the border repeats by reflection.

    References
    ----------
    K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3.6 (the
    alternating flip).
    """

    flip: str = "none"
    crop: int = 0

    def __post_init__(self) -> None:
        if self.flip not in ("none", "random", "alternate"):
            raise DataError(f"augment.flip: found {self.flip!r}; none, random or alternate is allowed")
        if self.crop < 0:
            raise DataError(f"augment.crop: found {self.crop}; 0 or more pixels are allowed")


class Batches:
    """Shuffled, augmented, normalised batches; an epoch depends on ``seed`` and its number only.

    Parameters
    ----------
    images : Tensor of uint8, shape (count, channels, height, width)
    labels : Tensor of int64, shape (count,)
    batch_size : int
    statistics : tuple of (mean, std)
        Of each channel, in units of 0..1, as `ImageData.statistics` gives them.
    augment : Augment, optional
        Also turns on shuffling and drops the last, smaller batch; without it the order is kept and no
        image is left out.
    seed : int
    share : tuple of (int, int)
        ``(k, n)``: of each augmented batch only every n-th image from the k-th on, for n processes that train
        together.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        statistics: tuple[tuple[float, ...], tuple[float, ...]],
        augment: Augment | None = None,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise DataError(f"batch_size: found {batch_size}; 1 to {len(images)} is allowed")
        if augment is not None and augment.crop >= min(images.shape[2:]):
            raise DataError(f"augment.crop: found {augment.crop}; less than the image's side is allowed")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        if not 0 <= share[0] < share[1] <= batch_size:
            raise DataError(
                f"batch_size: found {batch_size} for share {share}; at least one image for each process is allowed"
            )
        self.augment, self.seed, self.epoch, self.share = augment, seed, 0, share
        mean, std = statistics
        self._mean = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(std).view(1, -1, 1, 1) * 255)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.augment is not None or rest == 0 else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.augment is None:
            for start in range(0, len(self.images), self.batch_size):
                stop = start + self.batch_size
                yield self._normalise(self.images[start:stop]), self.labels[start:stop]
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        mirrored = self._mirrored(self.augment.flip, generator)
        part, parts = self.share
        if part > 0:  # images of different parts move by different offsets
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * parts + part)
        for i in range(len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size][part::parts]
            x = self._normalise(self.images[index])
            if mirrored is not None:
                x = torch.where(mirrored[index].view(-1, 1, 1, 1), x.flip(3), x)
            if self.augment.crop:
                x = _shift(x, self.augment.crop, generator)
            yield x, self.labels[index]

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self._mean) * self._scale

    def _mirrored(self, flip: str, generator: torch.Generator) -> Tensor | None:
        if flip == "none":
            return None
        if flip == "random":
            return torch.rand(len(self.images), generator=generator) < 0.5
        fixed = torch.Generator().manual_seed(self.seed)
        first = torch.rand(len(self.images), generator=fixed) < 0.5
        return first ^ bool(self.epoch % 2)


def _shift(x: Tensor, by: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own offset in -by..by; as one gather, so that no loop over images is needed."""
    count, channels, height, width = x.shape
    padded = F.pad(x, (by,) * 4, mode="reflect")
    dy = torch.randint(2 * by + 1, (count, 1), generator=generator)
    dx = torch.randint(2 * by + 1, (count, 1), generator=generator)
    rows = (torch.arange(height) + dy).view(count, 1, height, 1)
    columns = (torch.arange(width) + dx).view(count, 1, 1, width)
    return padded[
        torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns
    ]
