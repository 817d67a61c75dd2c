"""Where a recipe's model and batches come from: what it names, or what is given in Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sparseflow.data import Augment, Batches, ImageData, hold_out, load_data
from sparseflow.data.folder import FolderSettings, content_hash, load_folder
from sparseflow.errors import RecipeError
from sparseflow.train import parallel
from sparseflow.train.models import build_model
from sparseflow.train.recipe.factories import loaders_from, model_from
from sparseflow.train.recipe.recipe import Recipe
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
        self.data: ImageData | None = None
        self.held_out: tuple[Tensor, Tensor] | None = None
        self.content = ""
        """Identifies a user's own images, for fingerprints; registered data sets are known by their name."""
        self._loaders: tuple[Loader, Loader] | None = None
        own = self.workspace
        if own.train is None or own.test is None or own.model is None:
            self._load()

    def _load(self) -> None:
        config = self.recipe.data
        if config is None:
            raise self._missing("data", "model and loaders")
        if config.factory is not None:
            self._loaders = loaders_from(config.factory, config.arguments)
        elif config.name is not None:
            self.data = load_data(config.name, config.folder)
        elif config.folder is not None and config.size is not None:
            settings = FolderSettings(config.size, config.channels, config.test_fraction, config.split_seed)
            self.data = load_folder(Path(config.folder), settings)
            self.content = content_hash(self.data)
        if self.data is not None and config.validation > 0:
            self.data, self.held_out = hold_out(self.data, config.validation, config.split_seed)

    def model(self) -> nn.Module:
        """A new model; its random weights come from torch's generator, so seed that first."""
        if self.workspace.model is not None:
            return self.workspace.model
        config = self.recipe.model
        if config is None:
            raise self._missing("model", "a model")
        if config.factory is not None:
            return model_from(config.factory, config.arguments)
        if self.data is None or config.name is None:
            raise RecipeError(
                f"{self.recipe.name}: model.name: {config.name!r} is built for images, but the data are loaders; "
                "give model.factory"
            )
        return build_model(config.name, self.data, config.arguments)

    def train(self, stage: int, shared: bool = True) -> Loader:
        """Training batches of a stage, which each have a seed of their own.

        Parameters
        ----------
        stage : int
        shared : bool
            Whether processes that train together get a part of each batch, or all the whole.
        """
        if self.workspace.train is not None:
            return self.workspace.train
        if self._loaders is not None:
            return self._loaders[0]
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
            share=(parallel.rank(), parallel.processes()) if shared else (0, 1),
        )

    def calibration(self) -> Loader:
        """Training samples without augmentation, in order; a train loader of one's own as it is."""
        if self.workspace.train is not None:
            return self.workspace.train
        if self._loaders is not None:
            return self._loaders[0]
        data = self.data
        if data is None:
            raise self._missing("data", "a train loader")
        return _whole(data, data.train_images, data.train_labels)

    def test(self) -> Loader:
        """Test batches, in order and whole."""
        if self.workspace.test is not None:
            return self.workspace.test
        if self._loaders is not None:
            return self._loaders[1]
        data = self.data
        if data is None:
            raise self._missing("data", "a test loader")
        return _whole(data, data.test_images, data.test_labels)

    def validation(self) -> Loader | None:
        """Batches of the images that training does not see, in order; None if the recipe holds out none."""
        if self.data is None or self.held_out is None:
            return None
        return _whole(self.data, *self.held_out)

    def _missing(self, section: str, instead: str) -> RecipeError:
        return RecipeError(
            f"{self.recipe.name}: {section}: missing; add a [{section}] section or give {instead} in Python"
        )


def _whole(data: ImageData, images: Tensor, labels: Tensor) -> Batches:
    """All of them in order, normalised as in training."""
    return Batches(images, labels, min(_TEST_BATCH, len(images)), data.statistics())
