"""What documented code runs in: a folder of its own with a cache of kernel choices, and one thread of torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Choices of kernels made by these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs each test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(cache))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
