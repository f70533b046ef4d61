"""The sizes of models, as values of a component's axes: by name, and by a published configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from npudiff.model.constraints import Box

Boxes = Box | Sequence[Box]
"""Values of axes, or alternatives of that: layers of different kinds, whose sizes belong together."""


class Profiles(Mapping[str, Boxes]):
    """Name of a model to the values that it has.

    Parameters
    ----------
    named : mapping
        Models that are known by name.
    known : sequence of str
        Names of all models, those that a component has nothing for included.
    made : callable
        Turns a configuration, as Hugging Face publishes it, into values; None where a component has nothing to do with
        the model. Raises ``ValueError`` for what is no configuration.
    """

    def __init__(
        self, named: Mapping[str, Boxes], known: Sequence[str], made: Callable[[Mapping[str, Any]], Boxes | None]
    ) -> None:
        self._named, self.known, self._made = dict(named), tuple(known), made

    def __getitem__(self, name: str) -> Boxes:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def of(self, configuration: Mapping[str, Any]) -> Boxes | None:
        """Return the values of a model with this configuration."""
        return self._made(configuration)
