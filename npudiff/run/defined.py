"""The implementations that modules define."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from npudiff.model.implementation import DEFINED, Implementation


def implementations_in(module: ModuleType) -> list[Implementation]:
    """Return the implementations of a module, each once.

    They are those whose functions are written in it, as in a loop or in a factory, in the order in which they were
    decorated; and those that its names hold, also in a list, tuple, set or dictionary. What begins with an underscore
    is private: a function, or a name that alone holds an implementation.
    """
    public: list[Implementation] = []
    private: list[Implementation] = []
    for name, value in vars(module).items():
        if name != DEFINED:
            (private if name[0] == "_" else public).extend(_held(value))
    shown, hidden = ({identity(item): item for item in items} for items in (public, private))
    defined = {identity(item): item for item in vars(module).get(DEFINED, ())}
    written = {key: shown.get(key, item) for key, item in defined.items() if key in shown or key not in hidden}
    return list({**written, **shown}.values())


def _held(value: object) -> list[Implementation]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else (value,)
    return [item for item in items if isinstance(item, Implementation)]


def identity(item: Implementation) -> tuple[str, str, int]:
    """What two objects have in common that are one implementation, perhaps with other limits."""
    return item.component, item.name, id(item.function)


def implementations_below(package: str, paths: Iterable[str]) -> dict[str, Implementation]:
    """Return the implementations that the modules of a package define, by the names of their functions.

    Raises
    ------
    ValueError
        If two modules have functions of one name.
    """
    found: dict[str, Implementation] = {}
    for info in pkgutil.iter_modules(paths):
        module = importlib.import_module(f"{package}.{info.name}")
        for name, item in vars(module).items():
            if not isinstance(item, Implementation) or name[0] == "_" or item.origin != module.__name__:
                continue
            if name in found:
                raise ValueError(f"two implementations in {package} are named {name}")
            found[name] = item
    return found
