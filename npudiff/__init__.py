"""The engine: how references, implementations and properties are found, run, compared and reported.

This room is generic: it knows components, implementations, targets and cases, not attention. Importing it imports
neither torch nor Hypothesis, so that a command line or a pytest start that does not use them pays nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npudiff.model.component import Component, History, NotApplicable, Property, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation, Target, TargetUnavailable, implementation, mutant, perturbed
from npudiff.model.ranks import Ranks
from npudiff.model.version import VERSION

if TYPE_CHECKING:
    from npudiff.api import Result, check, components, replay
    from npudiff.draw.cases import Case, axis, seed
    from npudiff.draw.data import Stream
    from npudiff.judge.compare import same_bits
    from npudiff.judge.relations import relation, tokens_do_not_mix
    from npudiff.model.own import component, property_of
    from npudiff.show.document import schema

__version__ = VERSION

__all__ = [
    "Case",
    "Component",
    "Constraints",
    "History",
    "Implementation",
    "NotApplicable",
    "Property",
    "Ranks",
    "Result",
    "Stream",
    "Subject",
    "Target",
    "TargetUnavailable",
    "__version__",
    "axis",
    "check",
    "component",
    "components",
    "implementation",
    "mutant",
    "perturbed",
    "property_of",
    "relation",
    "replay",
    "same_bits",
    "schema",
    "seed",
    "tokens_do_not_mix",
]

_LATE = {
    "schema": "npudiff.show.document",
    "Stream": "npudiff.draw.data",
    "same_bits": "npudiff.judge.compare",
    **dict.fromkeys(("Result", "check", "components", "replay"), "npudiff.api"),
    **dict.fromkeys(("Case", "axis", "seed"), "npudiff.draw.cases"),
    **dict.fromkeys(("relation", "tokens_do_not_mix"), "npudiff.judge.relations"),
    **dict.fromkeys(("component", "property_of"), "npudiff.model.own"),
}
"""Names whose modules are imported when they are asked for: they run something, and import torch."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of a module
    """Return a function that runs something."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - the first use pays

    return getattr(importlib.import_module(_LATE[name]), name)
