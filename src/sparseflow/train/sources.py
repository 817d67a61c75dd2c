"""Where a recipe's model and batches come from: what it names, or what is given in Python."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sparseflow.data import Augment, Batches, ImageData, load_data
from sparseflow.errors import RecipeError
from sparseflow.train.models import build_model
from sparseflow.train.recipe import Recipe
from sparseflow.train.trainer import Loader

_TEST_BATCH = 500


@dataclass
class Workspace:
    """What a recipe runs on, when it is not named in the recipe.

    Parameters
    ----------
    model : nn.Module, optional
        Any classifier; the recipe's model otherwise.
    train, test : Loader, optional
        Any loaders of (x, labels); the recipe's data otherwise.
    example_inputs : tuple of Tensor, optional
        For the export; the first test sample otherwise.
    """

    model: nn.Module | None = None
    train: Loader | None = None
    test: Loader | None = None
    example_inputs: tuple[Tensor, ...] | None = None


class Sources:
    """The model and the loaders of a recipe; data are read once, when it is made.

    Parameters
    ----------
    recipe : Recipe
    workspace : Workspace, optional
        Its parts take the place of what the recipe names.

    Raises
    ------
    DataError, RecipeError
        If data are missing in the recipe or on the disk.
    """

    def __init__(self, recipe: Recipe, workspace: Workspace | None = None) -> None:
        self.recipe, self.workspace = recipe, workspace or Workspace()
        self.data = self._load()

    def _load(self) -> ImageData | None:
        own = self.workspace
        if own.train is not None and own.test is not None and own.model is not None:
            return None
        if self.recipe.data is None:
            raise self._missing("data", "model and loaders")
        return load_data(self.recipe.data.name, self.recipe.data.folder)

    def model(self) -> nn.Module:
        """A new model; its random weights come from torch's generator, so seed that first."""
        if self.workspace.model is not None:
            return self.workspace.model
        config = self.recipe.model
        if config is None or self.data is None:
            raise self._missing("model", "a model")
        return build_model(config.name, self.data, config.arguments)

    def train(self, stage: int) -> Loader:
        """Training batches of a stage, which each have a seed of their own."""
        if self.workspace.train is not None:
            return self.workspace.train
        config, data = self.recipe.data, self.data
        if config is None or data is None:
            raise self._missing("data", "a train loader")
        return Batches(
            data.train_images,
            data.train_labels,
            config.batch_size,
            data.statistics(),
            Augment(config.flip, config.crop),
            seed=self.recipe.seed + stage,
        )

    def calibration(self) -> Loader:
        """Training samples without augmentation, in order; a train loader of one's own as it is."""
        if self.workspace.train is not None:
            return self.workspace.train
        data = self.data
        if data is None:
            raise self._missing("data", "a train loader")
        size = min(_TEST_BATCH, len(data.train_images))
        return Batches(data.train_images, data.train_labels, size, data.statistics())

    def test(self) -> Loader:
        """Test batches, in order and whole."""
        if self.workspace.test is not None:
            return self.workspace.test
        data = self.data
        if data is None:
            raise self._missing("data", "a test loader")
        size = min(_TEST_BATCH, len(data.test_images))
        return Batches(data.test_images, data.test_labels, size, data.statistics())

    def _missing(self, section: str, instead: str) -> RecipeError:
        return RecipeError(
            f"{self.recipe.name}: {section}: missing; add a [{section}] section or give {instead} in Python"
        )
