"""A dictionary of named things that refuses duplicates and lists the known names on a miss."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from sparseflow.errors import RegistryError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Named entries of one kind, in the order of their registration.

    Parameters
    ----------
    kind : str
        What the entries are, in the singular; used in error messages ("structure", "index format").
    packages : tuple of str
        Packages whose modules register entries. They are imported when an entry is first asked for, in alphabetical
        order, so that a file put there is found without being named anywhere.
    """

    def __init__(self, kind: str, packages: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._unread = packages

    def _found(self) -> dict[str, T]:
        packages, self._unread = self._unread, ()
        for package in map(importlib.import_module, packages):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        return self._entries

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its argument under ``name``.

        Raises
        ------
        RegistryError
            If the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise RegistryError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._found()[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise RegistryError(f"unknown {self.kind} {name!r}; known: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())
