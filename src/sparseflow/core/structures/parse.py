"""Structures from text, as recipes and the command line write them."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.core.structures.base import STRUCTURES, Structure
from sparseflow.errors import StructureError


@dataclass(frozen=True)
class SparsifySpec:
    """A structure with the density asked for, as in ``block:4x1@0.9``.

    Attributes
    ----------
    structure : Structure
    density : float
        Fraction to keep, 1 − the sparsity of the text.
    text : str
        What was read.
    """

    structure: Structure
    density: float
    text: str

    @property
    def sparsity(self) -> float:
        """Fraction to remove."""
        return round(1.0 - self.density, 12)


def parse_structure(text: str) -> Structure:
    """The structure that ``text`` writes; ``parse_structure(str(s)) == s`` for every structure.

    Parameters
    ----------
    text : str
        ``unstructured``, ``nm:2:4``, ``block:4x1``, ``filter``, ``channel``, ``column``, ``pattern:4``,
        ``connectivity``, ``pattern:4+connectivity``, ``block-punched:8x4``, ``dense-blocks:16x32:column``,
        ``nm:2:4+filter``.

    Raises
    ------
    StructureError
        If the arguments cannot be read.
    RegistryError
        If the name is not known; the message lists the known ones.
    """
    text = text.strip()
    name, _, arguments = text.partition(":")
    if name != "dense-blocks" and "+" in text:
        joint = name.partition("+")[0] == "pattern" and text.partition("+")[2] == "connectivity"
        return STRUCTURES["pattern+connectivity" if joint else "product"].from_text(text)
    return STRUCTURES[name].from_text(arguments)


def parse_sparsify(text: str) -> SparsifySpec:
    """The structure and density that ``STRUCTURE@SPARSITY`` writes.

    ``@SPARSITY`` may be left out where the structure fixes it (``nm:2:4``, ``pattern:4``). For
    ``pattern:4+connectivity`` it is the total sparsity: the pattern fixes 4 of 9, connectivity gives the
    rest.

    Raises
    ------
    StructureError
        If it cannot be read, or the structure cannot have that sparsity.
    RegistryError
        If the structure's name is not known.
    """
    body, at, number = text.strip().partition("@")
    structure = parse_structure(body)
    if not at:
        fixed = structure.fixed_density
        if fixed is None:
            raise StructureError(
                f"{text!r} has no sparsity; write {structure}@SPARSITY, such as {structure}@0.9"
            )
        return SparsifySpec(structure, fixed, text.strip())
    try:
        sparsity = float(number)
    except ValueError:
        sparsity = -1.0
    if not 0.0 <= sparsity <= 1.0:
        raise StructureError(
            f"{text!r}: sparsity {number!r} is not a number in [0, 1]; write the removed fraction, such as "
            f"{structure}@0.9"
        )
    return SparsifySpec(structure, structure.check_density(round(1.0 - sparsity, 12)), text.strip())
