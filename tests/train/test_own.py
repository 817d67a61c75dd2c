"""A user's own images, model and loaders, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparseflow.data.folder import FolderSettings, content_hash, load_folder
from sparseflow.errors import DataError, RecipeError
from sparseflow.train import parse_recipe, run_recipe

OWN = """
import torch
from torch import nn

def net(width=8, classes=2):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

def loaders(count=16):
    x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2, 3)) > 0).long()
    data = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(data, 8), torch.utils.data.DataLoader(data, 8)

def number():
    return 3

def broken():
    raise ValueError("not today\\nor tomorrow")
"""
STAGES = [{"kind": "magnitude"}, {"kind": "retrain", "epochs": 1, "learning_rate": 0.01}]
RULES = [{"layers": "2", "sparsify": "unstructured@0.5"}]


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_parts", raising=False)


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 14), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def pictures(root: Path, count: int = 10) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for i in range(count):
            modes = ("RGB", "L", "RGBA", "P")
            picture(root / name / f"{i:02}.png", 100 * label + i, (20 + i, 14 + 2 * i), modes[i % 4])
    return root


def test_a_folder_is_split_by_class_and_always_alike(tmp_path: Path) -> None:
    root = pictures(tmp_path / "photos")
    (root / "cat" / "notes.txt").write_text("no image")
    data = load_folder(root, FolderSettings(size=12))
    assert data.classes == ("cat", "dog")
    assert data.train_images.shape[1:] == (3, 12, 12)
    assert data.train_labels.bincount().tolist() == [8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2]
    again = load_folder(root, FolderSettings(size=12))
    assert content_hash(again) == content_hash(data)
    other = load_folder(root, FolderSettings(size=12, split_seed=1))
    assert content_hash(other) != content_hash(data)
    grey = load_folder(root, FolderSettings(size=8, channels=1))
    assert grey.train_images.shape[1:] == (1, 8, 8)


def test_given_parts_are_kept_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        pictures(tmp_path / "photos" / part, count)
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "photos" / "test" / "cat" / "00.png")
    data = load_folder(tmp_path / "photos", FolderSettings(size=4))
    assert (len(data.train_labels), len(data.test_labels)) == (6, 4)
    assert bool((data.test_images[0] == 200).all())


def broken_folder(root: Path, kind: str) -> None:
    pictures(root, 3)
    if kind == "empty class":
        (root / "cow").mkdir()
    elif kind == "one class":
        for path in (root / "dog").iterdir():
            path.unlink()
        (root / "dog").rmdir()
    elif kind == "broken":
        (root / "dog" / "01.png").write_bytes(b"no picture")
    elif kind == "truncated":
        path = root / "dog" / "01.png"
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "few":
        for path in list((root / "dog").iterdir())[1:]:
            path.unlink()
    elif kind == "parts":
        pictures(root / "train", 2)
        picture(root / "test" / "cat" / "0.png", 1)
        picture(root / "test" / "cow" / "0.png", 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty class", "cow: holds no images"),
        ("one class", "found 1 sub-folders"),
        ("broken", r"01\.png: not a readable image"),
        ("truncated", r"01\.png: not a readable image"),
        ("few", "found 1 images, of which 1 would test"),
        ("parts", "class 'cow' is in only one of train and test"),
        ("absent", "no such folder"),
    ],
)
def test_broken_folders(tmp_path: Path, kind: str, message: str) -> None:
    if kind != "absent":
        broken_folder(tmp_path / "photos", kind)
    with pytest.raises(DataError, match=message) as caught:
        load_folder(tmp_path / "photos", FolderSettings(size=8))
    assert "\n" not in str(caught.value)


def test_bad_folder_settings() -> None:
    with pytest.raises(DataError, match="size 0"):
        FolderSettings(size=0)


def recipe(**changes: Any) -> Any:
    content: dict[str, Any] = {
        "name": "own",
        "data": {"folder": "photos", "size": 12, "batch_size": 8},
        "model": {"factory": "own_parts:net"},
        "rules": RULES,
        "stages": STAGES,
    }
    return parse_recipe(content | changes)


def test_a_recipe_with_own_images_and_model(tmp_path: Path) -> None:
    pictures(tmp_path / "photos")
    first = run_recipe(recipe(), tmp_path / "a")
    layers = {layer.name: layer.sparsity for layer in first.layers}
    assert layers["2"] == 0.5
    picture(tmp_path / "photos" / "cat" / "00.png", 999)  # what the images hold counts, not where they lie
    (tmp_path / "photos").rename(tmp_path / "moved")
    data = {"folder": "moved", "size": 12, "batch_size": 8}
    with pytest.raises(Exception, match="another recipe, model or data"):
        run_recipe(recipe(data=data), tmp_path / "a")


def test_a_recipe_with_own_loaders(tmp_path: Path) -> None:
    data = {"factory": "own_parts:loaders", "arguments": {"count": 24}}
    model = {"factory": "own_parts:net", "arguments": {"width": 4}}
    result = run_recipe(recipe(data=data, model=model), tmp_path / "a")
    assert result.layers[0].shape == (4, 3, 3, 3)
    assert torch.export.load(result.exported_path).module()(torch.zeros(1, 3, 12, 12)).shape == (1, 2)
    other = recipe(data=data | {"arguments": {"count": 16}}, model=model)
    assert other.fingerprint(0) != recipe(data=data, model=model).fingerprint(0)


@pytest.mark.parametrize(
    ("part", "factory", "message"),
    [
        ("model", "own_parts", r"model\.factory: found 'own_parts'; 'module:function'"),
        ("model", "own parts:net", "'module:function' is allowed"),
        ("model", "absent_parts:net", r"module 'absent_parts' cannot be imported \(ModuleNotFoundError"),
        ("model", "own_parts:nett", "has no function 'nett'; it has net, loaders, number, broken"),
        ("model", "own_parts:number", r"returned int; a torch\.nn\.Module"),
        ("model", "own_parts:broken", r"failed \(ValueError: not today\)"),
        ("data", "own_parts:number", r"data\.factory: .* returned int; a tuple \(train, test\)"),
        ("data", "own_parts:net", r"returned Sequential; a tuple"),
    ],
)
def test_bad_factories(tmp_path: Path, part: str, factory: str, message: str) -> None:
    changes: dict[str, Any] = {
        "data": {"factory": "own_parts:loaders"},
        "model": {"factory": "own_parts:net"},
    }
    changes[part] = {"factory": factory}
    with pytest.raises(RecipeError, match=message) as caught:
        run_recipe(recipe(**changes), tmp_path / "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data", {"batch_size": 4}, "give name, folder or factory"),
        ("data", {"folder": "photos"}, "size is missing"),
        ("data", {"name": "cifar10", "factory": "a:b"}, "one source of data is allowed"),
        ("model", {}, "exactly one is allowed"),
        ("model", {"name": "mnist_cnn", "factory": "a:b"}, "exactly one is allowed"),
    ],
)
def test_recipes_name_one_source(section: str, value: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"{section}: .*{message}") as caught:
        recipe(**{section: value})
    assert "\n" not in str(caught.value)


def test_a_named_model_needs_images(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'mnist_cnn' is built for images"):
        run_recipe(recipe(data={"factory": "own_parts:loaders"}, model={"name": "mnist_cnn"}), tmp_path / "a")
