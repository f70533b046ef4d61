"""Per mutant: what it was made from, where its bug shows, where it does not, and how small it shrinks.

One module per component, each with its ``PAIRS``.
"""

import importlib
import pkgutil

from mutant_pairs.pair import Pair

PAIRS: dict[str, Pair] = {}

for _found in pkgutil.iter_modules(__path__):
    for _name, _pair in getattr(importlib.import_module(f"{__name__}.{_found.name}"), "PAIRS", {}).items():
        if _name in PAIRS:
            raise ValueError(f"two mutants are named {_name}")
        PAIRS[_name] = _pair
