"""Readers of data sets, on tiny files generated in each format, whole and broken."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparseflow.data import DATASETS, Augment, Batches, ImageData, data_roots, load_data
from sparseflow.data.idx import read_idx
from sparseflow.errors import DataError, RegistryError

ROWS = 4


def pixels(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)


def labels(seed: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, 10, ROWS)]


def png_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = pixels(i).transpose(0, 2, 3, 1).reshape(ROWS, 1024, 3)
        Image.fromarray(rows).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps([x for i in range(5) for x in labels(i)]))
    (folder / "test_lables.json").write_text(json.dumps(labels(5)))
    return folder


def python_folder(folder: Path, protocol: int) -> Path:
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = {b"data": pixels(i).reshape(ROWS, -1), b"labels": labels(i), b"batch_label": b"part"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def idx_folder(folder: Path, packed: bool) -> Path:
    folder.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.array(labels(seed), dtype=np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = head + array.tobytes()
            path = folder / f"{part}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["png", "python2", "python4"])
def test_cifar10_reads_each_form_alike(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in"
    data = load_data("cifar10", png_folder(folder) if form == "png" else python_folder(folder, int(form[-1])))
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert np.array_equal(data.train_images.numpy(), np.concatenate([pixels(i) for i in range(5)]))
    assert data.train_labels.tolist() == [x for i in range(5) for x in labels(i)]
    assert np.array_equal(data.test_images.numpy(), pixels(5))


def test_cifar10_is_found_inside_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_folder(tmp_path / "root" / "cifar-10-batches-py", 2)
    assert len(load_data("cifar10", tmp_path / "root").test_labels) == ROWS
    monkeypatch.setenv("SPARSEFLOW_DATA", str(tmp_path / "root"))
    assert data_roots()[0] == tmp_path / "root"
    assert len(load_data("cifar10").test_labels) == ROWS


class Harmful:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_batch_cannot_run_code(tmp_path: Path) -> None:
    folder = python_folder(tmp_path / "in", 2)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Harmful(str(tmp_path / "made"))}))
    with pytest.raises(DataError, match="mkdir") as caught:
        load_data("cifar10", folder)
    assert not (tmp_path / "made").exists()
    assert "\n" not in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        ("png", "data_batch_3.png", None),
        ("png", "test_batch.png", b"no picture"),
        ("png", "train_lables.json", b"[1, 2]"),
        ("png", "train_lables.json", b"{"),
        ("png", "test_lables.json", b'["cat"]'),
        ("python", "data_batch_2", None),
        ("python", "test_batch", b""),
        ("python", "test_batch", pickle.dumps([1, 2])),
        ("python", "test_batch", pickle.dumps({b"data": np.zeros((4, 5), np.uint8), b"labels": [0] * 4})),
        ("python", "test_batch", pickle.dumps({b"labels": [0]})),
        ("python", "test_batch", pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [99]})),
    ],
)
def test_broken_cifar10_files(tmp_path: Path, form: str, name: str, content: bytes | None) -> None:
    folder = png_folder(tmp_path / "in") if form == "png" else python_folder(tmp_path / "in", 2)
    if content is None:
        _truncate(folder / name)
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data("cifar10", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_idx_sets(tmp_path: Path, packed: bool, name: str) -> None:
    data = load_data(name, idx_folder(tmp_path / "in", packed))
    assert data.train_images.shape[1:] == (1, 28, 28)
    assert data.train_labels.tolist() == labels(0)
    assert len(data.classes) == 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01" + b"\0\0\0\x04" + bytes(4),
        b"\0\0\x08\x01\0\0\0\x09abc",
        b"\x1f\x8bbroken",
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)


def test_truncated_gzip_and_missing_parts(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "in", True)
    _truncate(folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match="t10k-images"):
        load_data("fashion_mnist", folder)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-images"):
        load_data("fashion_mnist", folder)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "mnist"])
def test_missing_data_say_how_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: not found in .*; .*(fetch|install|point)") as caught:
        load_data(name, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RegistryError, match="known: cifar10"):
        load_data("imagenet")


def test_mnist5k_is_split_by_class_and_always_alike() -> None:
    first, second = load_data("mnist5k"), load_data("mnist5k")
    assert first.train_labels.bincount().tolist() == [400] * 10
    assert first.test_labels.bincount().tolist() == [100] * 10
    assert torch.equal(first.test_images, second.test_images)
    both = torch.cat([first.train_images, first.test_images]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 5000  # nothing is in both parts
    with pytest.raises(DataError, match="takes none"):
        load_data("mnist5k", "somewhere")


def test_image_data_checks_itself() -> None:
    x, y = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    ImageData("ok", x, y, x, y, ("a", "b"))
    for bad in (
        lambda: ImageData("bad", x.float(), y, x, y, ("a", "b")),
        lambda: ImageData("bad", x, y[:1], x, y, ("a", "b")),
        lambda: ImageData("bad", x, y, x, y, ("a",)),
        lambda: ImageData("bad", x, y, x[..., :3], y, ("a", "b")),
    ):
        with pytest.raises(DataError, match="bad"):
            bad()
    assert set(DATASETS) >= {"cifar10", "fashion_mnist", "mnist", "mnist5k"}


def images_numbered(count: int) -> torch.Tensor:
    column = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8)
    return (
        (column + torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1) * 8)
        .expand(count, 1, 8, 8)
        .contiguous()
    )


def test_batches_depend_on_seed_and_epoch_only() -> None:
    x, y = images_numbered(20), torch.arange(20)
    statistics = ((0.0,), (1 / 255,))  # so that pixels keep their values

    def epoch(seed: int, number: int) -> list[torch.Tensor]:
        batches = Batches(x, y, 6, statistics, Augment("random", 2), seed)
        batches.set_epoch(number)
        return [t for pair in batches for t in pair]

    assert all(torch.equal(a, b) for a, b in zip(epoch(1, 3), epoch(1, 3), strict=True))
    assert not torch.equal(epoch(1, 3)[1], epoch(1, 4)[1])
    assert not torch.equal(epoch(1, 3)[1], epoch(2, 3)[1])
    assert len(epoch(1, 3)) == 2 * 3  # the last two images are left out


def test_shares_of_a_batch_are_the_whole_batch() -> None:
    x, y = images_numbered(20), torch.arange(20)
    statistics = ((0.0,), (1 / 255,))

    def labels_of(share: tuple[int, int]) -> list[torch.Tensor]:
        batches = Batches(x, y, 6, statistics, Augment("random", 2), seed=1, share=share)
        batches.set_epoch(3)
        return [labels for _, labels in batches]

    whole, first, second = labels_of((0, 1)), labels_of((0, 2)), labels_of((1, 2))
    for all_labels, a, b in zip(whole, first, second, strict=True):
        assert torch.equal(all_labels[0::2], a)
        assert torch.equal(all_labels[1::2], b)
    with pytest.raises(DataError, match="at least one image for each process"):
        Batches(x, y, 2, statistics, Augment(), share=(0, 3))


def test_alternating_flip_mirrors_each_image_in_every_other_epoch() -> None:
    x, y = images_numbered(12), torch.arange(12)
    batches = Batches(x, y, 12, ((0.0,), (1 / 255,)), Augment("alternate"), seed=5)
    mirrored = []
    for number in range(2):
        batches.set_epoch(number)
        ((images, order),) = list(batches)
        back = images[order.argsort()]
        mirrored.append(back[:, 0, 0, 0] > back[:, 0, 0, 7])
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert 0 < int(mirrored[0].sum()) < 12


def test_crop_moves_by_whole_pixels_and_reflects() -> None:
    x, y = images_numbered(30), torch.zeros(30, dtype=torch.int64)
    ((images, _),) = list(Batches(x, y, 30, ((0.0,), (1 / 255,)), Augment(crop=2), seed=1))
    steps = (images[:, 0, :, 1:] - images[:, 0, :, :-1]).abs().round()
    assert bool((steps == 1).all())  # neighbours stay neighbours, also across the reflected border
    assert len(set(images[:, 0, 0, 4].round().remainder(8).tolist())) > 2


def test_evaluation_order_is_kept_and_whole() -> None:
    x, y = images_numbered(10), torch.arange(10)
    got = torch.cat([labels for _, labels in Batches(x, y, 4, ((0.5,), (0.25,)))])
    assert got.tolist() == list(range(10))
    assert len(Batches(x, y, 4, ((0.5,), (0.25,)))) == 3
    images, _ = next(iter(Batches(x, y, 4, ((0.5,), (0.25,)))))
    torch.testing.assert_close(images, (x[:4].float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Augment("sideways"),
        lambda: Augment(crop=-1),
        lambda: Batches(images_numbered(3), torch.arange(3), 4, ((0.0,), (1.0,))),
        lambda: Batches(images_numbered(3), torch.arange(3), 2, ((0.0,), (1.0,)), Augment(crop=8)),
    ],
)
def test_bad_batches(make: Any) -> None:
    with pytest.raises(DataError):
        make()
