"""The sizes of a model as constraints of each component: by its name, or by the path of its ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npudiff.errors import UsageError, unknown
from npudiff.files.reading import read_plain_file
from npudiff.model.component import Component
from npudiff.model.constraints import Constraints
from npudiff.model.profiles import Boxes, Profiles

MOST_BYTES = 2**22
"""Bytes of a configuration."""


def sizes_of(model: str, components: Sequence[Component]) -> dict[int, Constraints]:
    """Return the constraints of each component, by its identity; of one with nothing of the model there are none.

    Raises
    ------
    UsageError
        If there is no model of this name, or the file is no configuration.
    """
    boxes = _boxes(model, components)
    checked = {key: _checked(one, boxes[key], model) for one in components if (key := id(one)) in boxes}
    return {key: constraints for key, constraints in checked.items() if isinstance(constraints, Constraints)}


def left_out_by(model: str, components: Sequence[Component]) -> dict[str, str]:
    """Return the names of components that have nothing of a model, and why."""
    boxes = _boxes(model, components)
    found = {
        one.name: _checked(one, boxes[id(one)], model) if id(one) in boxes else _without(one) for one in components
    }
    return {name: why for name, why in found.items() if isinstance(why, str)}


def _without(component: Component) -> str:
    """Why a component has no sizes of a model."""
    takes = component.profiles or isinstance(component.profiles, Profiles)  # which may have no model by name
    return "the model has none of it" if takes else "it takes no sizes of models"


def _checked(component: Component, boxes: Boxes, model: str) -> Constraints | str:
    """The constraints, or which value is none of an axis."""
    try:
        return Constraints.of(boxes).checked(component.axes, model)
    except UsageError as refusal:
        return str(refusal)


def _boxes(model: str, components: Sequence[Component]) -> dict[int, Boxes]:
    profiles = [component.profiles for component in components]
    names = sorted({name for one in profiles for name in (*one, *(one.known if isinstance(one, Profiles) else ()))})
    if model in names:
        return {id(one): one.profiles[model] for one in components if model in one.profiles}
    path = Path(model)
    if not (path.suffix == ".json" or "/" in model or path.is_dir()):
        raise unknown("model", model, names)
    configuration = _read(path / "config.json" if path.is_dir() else path)
    found = {}
    for one in components:
        if isinstance(one.profiles, Profiles):
            try:
                boxes = one.profiles.of(configuration)
            except (ValueError, TypeError, ArithmeticError) as error:
                raise UsageError(f"--model {model}: {error}") from None
            if boxes is not None:
                found[id(one)] = boxes
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        configuration = json.loads(read_plain_file(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--model {path}: {error}") from None
    if not isinstance(configuration, dict):
        raise UsageError(f"--model {path}: no configuration of a model")
    return configuration
